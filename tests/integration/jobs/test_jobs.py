"""Durable jobs through real processes: accepted, run, watched, cancelled, refused."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import admin_pb2, job_pb2


async def test_a_job_is_accepted_durably_run_once_and_its_answer_can_be_had(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy())
    response, trailers = await relay.submit("key-1", account="bob")
    assert trailers["relay-durability"] == "sqlite-full"
    states = []
    watch = relay.jobs.WatchJob(
        job_pb2.WatchJobRequest(id=response.job.id, include_payloads=True), timeout=20
    )
    async for change in watch:
        states.append(change.job.state)
        last = change.job
    assert states[-1] == job_pb2.JOB_STATE_COMPLETED
    answer = payment_pb2.ChargeResponse.FromString(last.response.value)
    assert (answer.charge.account, answer.charge.amount_minor) == ("bob", 100)
    assert last.response.type_url.endswith("/downstream.v1.ChargeResponse")
    again, _ = await relay.submit("key-1", account="bob")
    assert (again.existed, again.job.id) == (True, response.job.id)
    assert await lab.effects() == {"bob": 1}
    listed = (await relay.all_jobs())[0]
    assert not listed.work.HasField("request")
    assert not listed.HasField("response")
    assert listed.work.request_bytes > 0


async def test_a_direct_call_and_a_job_under_one_key_have_one_effect(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy())
    await relay.submit("shared", account="carol")
    await helpers.all_ended(relay, 1)
    charge = payment_pb2.ChargeRequest(account="carol", amount_minor=100, currency="EUR")
    await relay.payments.Charge(charge, metadata=(("idempotency-key", "shared"),), timeout=10)
    assert await lab.effects() == {"carol": 1}


async def test_what_cannot_be_run_is_refused_with_its_reason(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy())
    await relay.submit("taken", amount=1)
    for wanted, changes in (
        ("IDEMPOTENCY_KEY_REUSED", {"key": "taken", "amount": 2}),
        ("IDEMPOTENCY_KEY_INVALID", {"key": "x" * 256}),
        ("JOB_INVALID", {"priority": 101}),
        ("JOB_INVALID", {"metadata": {"traceparent": "x"}}),
        ("JOB_INVALID", {"metadata": {"relay-identity-bin": "bWU="}}),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await relay.submit(**changes)
        assert helpers.reason_of(refused.value) == wanted
    work = helpers.a_charge()
    work.method = "downstream.v1.PaymentService/WatchCharges"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await relay.jobs.Submit(job_pb2.SubmitRequest(work=work))
    assert helpers.reason_of(refused.value) == "JOB_INVALID"


async def test_a_refusal_quotes_what_was_submitted_in_short(lab: Any, helpers: Any) -> None:
    """Whole, it would be larger than trailers may be, and end the connection that all submissions share."""
    relay = await lab.relay(helpers.policy())
    method, request_type = helpers.a_charge(), helpers.a_charge()
    method.method = "m" * 200_000
    request_type.request.type_url = "t" * 200_000
    for work in (method, request_type):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await relay.jobs.Submit(job_pb2.SubmitRequest(work=work), timeout=20)
        assert helpers.reason_of(refused.value) == "JOB_INVALID"


async def test_cancelled_and_paused_jobs_do_not_run_and_an_order_key_keeps_its_order(
    lab: Any, helpers: Any
) -> None:
    relay = await lab.relay(helpers.policy())
    later = job_pb2.SubmitRequest(work=helpers.a_charge(account="cancelled"))
    later.delay.seconds = 3600
    job = (await relay.jobs.Submit(later)).job
    paused = job_pb2.SubmitRequest(work=helpers.a_charge(account="paused", order_key="held"))
    paused.delay.seconds = 1
    await relay.jobs.Submit(paused)
    which = job_pb2.JobFilter(order_key="held")
    assert (await relay.jobs.PauseJobs(job_pb2.PauseJobsRequest(filter=which))).paused == 1
    cancelled = await relay.jobs.CancelJob(job_pb2.CancelJobRequest(id=job.id))
    assert cancelled.job.state == job_pb2.JOB_STATE_CANCELLED
    for number in range(10):
        await relay.submit(account=f"in-order-{number}", order_key="order")
    await helpers.eventually(lambda: _count(relay, "COMPLETED", 10))
    charges = (await lab.ledger.ListCharges(payment_pb2.ListChargesRequest())).charges
    assert [charge.account for charge in reversed(charges)] == [f"in-order-{n}" for n in range(10)]
    assert (await relay.jobs.ResumeJobs(job_pb2.ResumeJobsRequest(filter=which))).resumed == 1
    await helpers.eventually(lambda: _count(relay, "COMPLETED", 11))
    assert (await lab.effects())["cancelled"] == 0


async def _count(relay: Any, state: str, count: int) -> bool:
    return bool((await relay.states())[state] == count)


async def test_an_outage_is_waited_out_with_backoff_and_conservation_holds(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy())
    await lab.set_faults({"failure": {"code": 14}, "methods": ["downstream.v1.PaymentService/Charge"]})
    await asyncio.gather(*(relay.submit(f"k-{n}", account=f"a-{n}") for n in range(50)))
    await helpers.eventually(lambda: _some_retried(relay))
    await lab.heal()
    assert await helpers.all_ended(relay, 50) == {"COMPLETED": 50}
    assert set((await lab.effects()).values()) == {1}

    async def conserved() -> bool:
        stats = (await relay.admin.GetStats(admin_pb2.GetStatsRequest())).stats.jobs
        return stats.submitted == 50 == stats.jobs["COMPLETED"] == stats.completed

    await helpers.eventually(conserved)


async def _some_retried(relay: Any) -> bool:
    return any(len(job.tries) > 1 for job in await relay.all_jobs())


async def test_a_drain_hands_back_what_it_has_not_begun_and_loses_nothing(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy(jobs={"workers": 4}))
    await lab.set_faults({"latency": {"fixed": "0.05s"}})
    await asyncio.gather(*(relay.submit(f"k-{n}", account=f"a-{n}") for n in range(100)))
    await relay.process.stop(grace_s=15)
    await relay.start()
    assert await helpers.all_ended(relay, 100) == {"COMPLETED": 100}
    assert sum((await lab.effects()).values()) == 100
    assert sum(job.lost_leases for job in await relay.all_jobs()) == 0


async def test_jobs_of_one_method_go_in_batches_and_each_gets_its_own_end(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy(batch=helpers.BATCH, jobs={"maxAttempts": 2}))
    works = [relay.submit(f"k-{n}", account=f"a-{n}", amount=-1 if n % 10 == 3 else 100) for n in range(100)]
    await asyncio.gather(*works)
    assert await helpers.all_ended(relay, 100) == {"COMPLETED": 90, "DEAD": 10}
    assert set((await lab.effects()).values()) == {1}
    stats = (await relay.admin.GetStats(admin_pb2.GetStatsRequest())).stats.jobs
    assert stats.batches < 60
    done = next(job for job in await relay.all_jobs() if job.state == job_pb2.JOB_STATE_COMPLETED)
    job = (await relay.jobs.GetJob(job_pb2.GetJobRequest(id=done.id, include_payloads=True))).job
    answer = payment_pb2.ChargeResponse.FromString(job.response.value)
    assert answer.charge.account.startswith("a-")
