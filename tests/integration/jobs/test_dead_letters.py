"""Dead letters through real processes: what dies, what replays do, and what operators decide."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import dead_letter_pb2, job_pb2

CHARGE = "downstream.v1.PaymentService/Charge"
OPEN = dead_letter_pb2.LETTER_STATE_OPEN


async def test_letters_whose_effect_exists_are_told_apart_and_not_done_twice(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy(jobs={"maxAttempts": 1}))
    await lab.set_faults({"failure": {"code": 2, "when": "WHEN_AFTER_EFFECT"}, "methods": [CHARGE]})
    await asyncio.gather(*(relay.submit(f"k-{n}", account=f"a-{n}") for n in range(10)))
    await helpers.all_ended(relay, 10)
    await lab.heal()
    ends, report = await relay.replay(canary=0, rate_per_second=500)
    assert {end.forecast.protection for end in ends} == {dead_letter_pb2.PROTECTION_KEYED}
    assert (report.already_executed, len(report.contradicted)) == (10, 0)
    assert set((await lab.effects()).values()) == {1}


async def test_what_operators_decide(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy())
    await asyncio.gather(*(relay.submit(f"k-{n}", account=f"a-{n}", amount=-1) for n in range(4)))
    assert await helpers.all_ended(relay, 4) == {"DEAD": 4}
    held, discarded, edited, left = [letter.id for letter in await relay.all_letters()]
    await relay.letters.Hold(dead_letter_pb2.HoldRequest(id=held, note="ask"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await relay.letters.Discard(dead_letter_pb2.DiscardRequest(id=discarded))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await relay.letters.Discard(dead_letter_pb2.DiscardRequest(id=discarded, reason="refunded"))

    better = payment_pb2.ChargeRequest(account="edited", amount_minor=5, currency="EUR")
    request = dead_letter_pb2.EditAndReplayRequest(id=edited, idempotency_key="better")
    request.request.Pack(better)
    job_id = (await relay.letters.EditAndReplay(request)).job_id
    async for change in relay.jobs.WatchJob(job_pb2.WatchJobRequest(id=job_id), timeout=20):
        last = change.job
    assert last.state == job_pb2.JOB_STATE_COMPLETED
    assert await lab.effects() == {"edited": 1}

    ends, report = await relay.replay(filter=dead_letter_pb2.LetterFilter(), canary=0)
    assert (report.not_started, report.failed) == (3, 1)
    assert next(end for end in ends if end.forecast.letter_id == left).detail.startswith("INVALID_ARGUMENT")
    await relay.letters.Release(dead_letter_pb2.ReleaseRequest(id=held))
    states = {letter.id: letter.state for letter in await relay.all_letters()}
    assert states == {
        held: OPEN,
        discarded: dead_letter_pb2.LETTER_STATE_DISCARDED,
        edited: dead_letter_pb2.LETTER_STATE_RESOLVED,
        left: OPEN,
    }
    again, _ = await relay.submit("k-0", account="a-0", amount=-1)
    assert (again.existed, again.job.state) == (True, job_pb2.JOB_STATE_DEAD)


async def test_a_full_dead_letter_store_blocks_admission_and_says_so(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy(deadLetters={"maxEntries": 3}))
    for number in range(3):
        await relay.submit(f"k-{number}", amount=-1)
    await helpers.all_ended(relay, 3)

    async def blocked() -> bool:
        health = await relay.admin.GetHealth(helpers.admin_pb2.GetHealthRequest())
        return bool(health.serving and health.refusing_jobs)

    await helpers.eventually(blocked)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await relay.submit("one-more")
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first = (await relay.all_letters())[0]
    await relay.letters.Discard(dead_letter_pb2.DiscardRequest(id=first.id, reason="test"))

    async def accepted() -> bool:
        return bool((await relay.submit("one-more"))[0].job.id)

    await helpers.eventually(accepted)
