"""The two runs that say what durable jobs are for, on each engine: 200 messages in tens with duplicates and
failures, and a dead downstream that is asked carefully whether it lives again."""

import asyncio
from collections import Counter
from typing import Any

from protos.relay.v1 import dead_letter_pb2, job_pb2

CHARGE = "downstream.v1.PaymentService/Charge"
CHARGES = "downstream.v1.PaymentService/ChargeBatch"
OPEN = dead_letter_pb2.LETTER_STATE_OPEN
RESOLVED = dead_letter_pb2.LETTER_STATE_RESOLVED
MESSAGES, DUPLICATES, HOPELESS = 200, 50, 10
AGAIN = {"action": "retry", "delay": "0.2s", "limit": 50}


async def test_the_anti_stampede_run(shared_lab: Any, helpers: Any) -> None:
    """200 messages in tens, a quarter of them duplicates, a quarter of the runs failing: every message is
    accounted for, each duplicate is caught, and all that can be recovered is, by itself."""
    lab = shared_lab
    relays = await lab.all_relays(
        helpers.policy(
            batch=helpers.BATCH,
            jobs={"maxAttempts": 1, "lease": "20s"},
            off=["retry", "retryBudget", "breaker"],
            deadLetters={"recovery": {"RETRIES_EXHAUSTED": AGAIN, "DEADLINE": AGAIN}},
        )
    )
    keys = [f"k-{number}" for number in range(MESSAGES - DUPLICATES)]
    hopeless = set(keys[:: len(keys) // HOPELESS])
    await lab.set_faults({"failure": {"code": 14}, "probability": 0.25, "methods": [CHARGE, CHARGES]})
    accepted = await asyncio.gather(
        *(
            relays[number % len(relays)].submit(key, account=key, amount=-1 if key in hopeless else 100)
            for number, key in enumerate(keys + keys[:DUPLICATES])
        )
    )
    assert sum(response.existed for response, _ in accepted) == DUPLICATES
    assert len({response.job.id for response, _ in accepted}) == len(keys)

    async def only_the_hopeless_are_left() -> bool:
        jobs = await relays[0].all_jobs()
        done = {job.work.idempotency_key for job in jobs if job.state == job_pb2.JOB_STATE_COMPLETED}
        return done == set(keys) - hopeless and all(job.state in helpers.ENDED for job in jobs)

    await helpers.eventually(only_the_hopeless_are_left)
    found = await relays[0].all_letters()
    left = {letter.work.idempotency_key: letter.cause for letter in found if letter.state == OPEN}
    assert left == dict.fromkeys(hopeless, dead_letter_pb2.CAUSE_NON_RETRYABLE)
    recovered = [letter for letter in found if letter.state == RESOLVED]
    assert len(recovered) + len(left) == len(found)
    effects = await lab.effects()
    assert effects == dict.fromkeys(set(keys) - hopeless, 1)

    stats = [await relay.job_stats() for relay in relays]
    assert sum(one.submitted for one in stats) == len(keys)
    assert sum(one.duplicates for one in stats) == DUPLICATES
    assert sum(one.resolved for one in stats) == len(recovered) > 0
    batches, batched = sum(one.batches for one in stats), sum(one.batched for one in stats)
    assert batches < batched <= batches * helpers.BATCH["maxSize"]
    print(f"{batched} jobs in {batches} batches, {len(recovered)} letters recovered")


async def test_a_dead_downstream_healed_then_canary_replay(shared_lab: Any, helpers: Any) -> None:
    lab = shared_lab
    relays = await lab.all_relays(helpers.policy(jobs={"maxAttempts": 1, "lease": "20s"}))
    relay = relays[0]
    await lab.set_faults({"failure": {"code": 14}, "methods": [CHARGE]})
    submitted = (relays[n % len(relays)].submit(f"k-{n}", account=f"a-{n}") for n in range(30))
    await asyncio.gather(*submitted)
    assert await helpers.all_ended(relay, 30) == {"DEAD": 30}
    found = await relay.all_letters()
    assert {letter.cause for letter in found} == {dead_letter_pb2.CAUSE_RETRIES_EXHAUSTED}
    assert all(letter.tries and letter.policy and not letter.work.HasField("request") for letter in found)
    groups = (await relay.letters.GroupLetters(dead_letter_pb2.GroupLettersRequest())).groups
    assert [(group.count, group.code) for group in groups] == [(30, 14)]

    for canary in (1, 3):
        before = await lab.calls()
        _, report = await relay.replay(canary=canary)
        assert "canary" in report.stopped
        assert (report.total, report.failed + report.not_started) == (30, 30)
        assert 1 <= (await lab.calls()) - before <= canary
        assert Counter(letter.state for letter in await relay.all_letters()) == {OPEN: 30}

    # Without a canary it is the failures that end it: those under way at most are begun beyond them.
    _, report = await relay.replay(canary=0, max_failures=5, rate_per_second=20)
    assert report.stopped.endswith("replays failed")
    assert report.failed < 30
    assert report.failed + report.not_started == 30

    await lab.heal()
    planned = [
        answer.forecast
        async for answer in relay.letters.PlanReplay(dead_letter_pb2.PlanReplayRequest(), timeout=30)
    ]
    # All were refused; on a busy machine one may have gone unanswered, and then its key protects it.
    protected = {dead_letter_pb2.PROTECTION_NOT_EXECUTED, dead_letter_pb2.PROTECTION_KEYED}
    assert len(planned) == 30
    assert {forecast.protection for forecast in planned} <= protected
    ends, report = await relay.replay(canary=2, rate_per_second=500)
    assert (len(ends), report.executed, report.stopped) == (30, 30, "")
    assert not report.contradicted
    resolved = await relay.all_letters()
    assert {letter.state for letter in resolved} == {RESOLVED}
    assert all(len(letter.replays) >= 1 for letter in resolved)
    effects = await lab.effects()
    assert (len(effects), set(effects.values())) == (30, {1})
