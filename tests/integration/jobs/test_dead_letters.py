"""Dead letters through real processes: what dies, what replays do, and what operators decide."""

import asyncio
from collections import Counter
from typing import Any

import grpc.aio
import pytest

from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import dead_letter_pb2, job_pb2

CHARGE = "downstream.v1.PaymentService/Charge"
OPEN = dead_letter_pb2.LETTER_STATE_OPEN


async def letters(relay: Any, **which: Any) -> list[Any]:
    request = dead_letter_pb2.ListLettersRequest(filter=dead_letter_pb2.LetterFilter(**which), page_size=1000)
    return list((await relay.letters.ListLetters(request, timeout=10)).letters)


async def replay(relay: Any, **plan: Any) -> tuple[list[Any], Any]:
    """Each letter's end, and the report."""
    ends, report = [], None
    plan.setdefault("filter", dead_letter_pb2.LetterFilter(states=[OPEN]))
    async for event in relay.letters.Replay(dead_letter_pb2.ReplayRequest(**plan), timeout=90):
        match event.WhichOneof("event"):
            case "end":
                ends.append(event.end)
            case "report":
                report = event.report
    return ends, report


async def test_a_dead_downstream_healed_then_canary_replay(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy(jobs={"maxAttempts": 1}))
    await lab.set_faults({"failure": {"code": 14}, "methods": [CHARGE]})
    await asyncio.gather(*(relay.submit(f"k-{n}", account=f"a-{n}") for n in range(30)))
    assert await helpers.all_ended(relay, 30) == {"DEAD": 30}
    found = await letters(relay)
    assert {letter.cause for letter in found} == {dead_letter_pb2.CAUSE_RETRIES_EXHAUSTED}
    assert all(letter.tries and letter.policy and not letter.work.HasField("request") for letter in found)
    groups = (await relay.letters.GroupLetters(dead_letter_pb2.GroupLettersRequest())).groups
    assert [(group.count, group.code) for group in groups] == [(30, 14)]

    before = await lab.calls()
    _, report = await replay(relay, canary=3)
    assert "canary" in report.stopped
    assert (await lab.calls()) - before <= 3
    assert Counter(letter.state for letter in await letters(relay)) == {OPEN: 30}

    await lab.heal()
    planned = [
        answer.forecast
        async for answer in relay.letters.PlanReplay(dead_letter_pb2.PlanReplayRequest(), timeout=30)
    ]
    assert {forecast.protection for forecast in planned} == {dead_letter_pb2.PROTECTION_NOT_EXECUTED}
    ends, report = await replay(relay, canary=2, rate_per_second=500)
    assert (len(ends), report.executed, report.stopped) == (30, 30, "")
    assert not report.contradicted
    resolved = await letters(relay)
    assert {letter.state for letter in resolved} == {dead_letter_pb2.LETTER_STATE_RESOLVED}
    assert all(len(letter.replays) >= 1 for letter in resolved)
    effects = await lab.effects()
    assert (len(effects), set(effects.values())) == (30, {1})


async def test_letters_whose_effect_exists_are_told_apart_and_not_done_twice(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy(jobs={"maxAttempts": 1}))
    await lab.set_faults({"failure": {"code": 2, "when": "WHEN_AFTER_EFFECT"}, "methods": [CHARGE]})
    await asyncio.gather(*(relay.submit(f"k-{n}", account=f"a-{n}") for n in range(10)))
    await helpers.all_ended(relay, 10)
    await lab.heal()
    _, report = await replay(relay, canary=0, rate_per_second=500)
    assert report.already_executed == 10
    assert set((await lab.effects()).values()) == {1}


async def test_what_operators_decide(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy())
    await asyncio.gather(*(relay.submit(f"k-{n}", account=f"a-{n}", amount=-1) for n in range(4)))
    assert await helpers.all_ended(relay, 4) == {"DEAD": 4}
    held, discarded, edited, left = [letter.id for letter in await letters(relay)]
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

    ends, report = await replay(relay, filter=dead_letter_pb2.LetterFilter(), canary=0)
    assert (report.not_started, report.failed) == (3, 1)
    assert next(end for end in ends if end.forecast.letter_id == left).detail.startswith("INVALID_ARGUMENT")
    await relay.letters.Release(dead_letter_pb2.ReleaseRequest(id=held))
    states = {letter.id: letter.state for letter in await letters(relay)}
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
    first = (await letters(relay))[0]
    await relay.letters.Discard(dead_letter_pb2.DiscardRequest(id=first.id, reason="test"))

    async def accepted() -> bool:
        return bool((await relay.submit("one-more"))[0].job.id)

    await helpers.eventually(accepted)


async def test_the_anti_stampede_run(lab: Any, helpers: Any) -> None:
    """200 messages in tens, a quarter duplicates, a quarter failing: all accounted for, duplicates caught,
    and what can be recovered is, by itself."""
    recovery = {"RETRIES_EXHAUSTED": {"action": "retry", "delay": "0.5s", "limit": 20}}
    relay = await lab.relay(
        helpers.policy(
            batch=helpers.BATCH,
            jobs={"maxAttempts": 2},
            deadLetters={"recovery": recovery},
        )
    )
    keys = [f"k-{number}" for number in range(150)]
    messages = keys + keys[:50]
    await lab.set_faults(
        {
            "failure": {"code": 14},
            "probability": 0.25,
            "methods": [CHARGE, "downstream.v1.PaymentService/ChargeBatch"],
        }
    )
    accepted = await asyncio.gather(*(relay.submit(key, account=key) for key in messages))
    assert sum(response.existed for response, _ in accepted) == 50
    assert len({response.job.id for response, _ in accepted}) == 150

    async def all_done() -> bool:
        left = [letter for letter in await letters(relay) if letter.state != 4]
        jobs = await relay.all_jobs()
        done = {job.work.idempotency_key for job in jobs if job.state == job_pb2.JOB_STATE_COMPLETED}
        return not left and done == set(keys)

    await helpers.eventually(all_done)
    effects = await lab.effects()
    assert (len(effects), set(effects.values())) == (150, {1})
