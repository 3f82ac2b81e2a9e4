"""Writes that wait together are one commit on PostgreSQL too, and hurt each other no more than before."""

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from relay_service.core.idempotency import Decision, RecordState
from relay_service.stores.interface import KeyTakenError, StoreUnavailableError
from relay_service.stores.postgres import PostgresStore

MANY = 50
BOUND_S = 30.0
DAY_S = 24 * 3600.0


@pytest.fixture
async def relay(postgres_rig: Any) -> PostgresStore:
    """One that makes one transaction of a kind at a time, so that what comes together goes together."""
    await postgres_rig.engine()
    return await opened(postgres_rig, lanes=1)


async def opened(rig: Any, **settings: Any) -> PostgresStore:
    store = PostgresStore(replace(rig.settings, **settings))
    rig.stores.append(store)
    await store.open()
    return store


async def test_what_waits_together_is_committed_together(
    relay: PostgresStore, make: Any, postgres_rig: Any
) -> None:
    claims = [make.claim(make.scope()) for _ in range(MANY)]
    claimed = await asyncio.gather(*(relay.claim(claim) for claim in claims))
    assert len({one.record.fence for one in claimed}) == MANY
    assert [one.record.scope for one in claimed] == [claim.scope for claim in claims]
    finished = await asyncio.gather(
        *(relay.finish(one.record.scope, one.record.fence, one.record.scope.key, DAY_S) for one in claimed)
    )
    assert all(finished)
    for claim in claims:
        record = await relay.look_up(claim.scope)
        assert record is not None
        assert (record.state, record.answer) == (RecordState.DONE, claim.scope.key)
    await asyncio.gather(*(relay.submit([make.job(key=f"job-{n}".encode())]) for n in range(MANY)))
    jobs = await relay.lease("worker-1", methods=None, limit=MANY, lease_s=60)
    ends = [relay.complete(job.id, job.fence, make.tried(), job.work.key, DAY_S) for job in jobs[::2]]
    ends += [relay.retry(job.id, job.fence, make.tried(), 0) for job in jobs[1::2]]
    assert all(await asyncio.gather(*ends))
    states = await postgres_rig.rows("SELECT state, count(*) FROM jobs GROUP BY state")
    assert dict(states) == {"completed": MANY / 2, "pending": MANY / 2}
    for job in jobs[::2]:
        assert (await relay.job(job.id)).answer == job.work.key
    assert relay.rows_per_commit > MANY / 2


async def test_one_that_fails_hurts_only_its_own_caller(relay: PostgresStore, make: Any) -> None:
    taken = make.scope(b"taken")
    await relay.claim(make.claim(taken))
    submissions = [make.job(key=f"k-{n}".encode()) for n in range(10)]
    submissions[4] = make.job(key=b"taken")
    results = await asyncio.gather(*(relay.submit([one]) for one in submissions), return_exceptions=True)
    assert isinstance(results.pop(4), KeyTakenError)
    assert [is_new for ((_job, is_new),) in results] == [True] * 9


async def test_a_stale_fence_among_good_ones_changes_nothing(relay: PostgresStore, make: Any) -> None:
    claimed = await asyncio.gather(*(relay.claim(make.claim(make.scope())) for _ in range(10)))
    fences = [one.record.fence for one in claimed]
    fences[3] -= 1000
    finished = await asyncio.gather(
        *(
            relay.finish(one.record.scope, fence, b"answer", DAY_S)
            for one, fence in zip(claimed, fences, strict=True)
        )
    )
    assert [number for number, done in enumerate(finished) if not done] == [3]


async def test_jobs_of_one_order_key_stay_in_order(relay: PostgresStore, make: Any) -> None:
    """They are not committed together: each has to see the one before it."""
    submissions = [make.job(order_key="one", key=f"k-{n}".encode()) for n in range(10)]
    await asyncio.gather(*(relay.submit([one]) for one in submissions))
    for submission in submissions:
        (job,) = await relay.lease("worker-1", methods=None, limit=10, lease_s=60)
        assert job.id == submission.id
        assert await relay.complete(job.id, job.fence, make.tried(), b"", DAY_S)


async def test_a_lock_that_somebody_keeps_holds_up_one_key_only(
    relay: PostgresStore, postgres_rig: Any, make: Any
) -> None:
    scopes = [make.scope() for _ in range(10)]
    claimed = await asyncio.gather(*(relay.claim(make.claim(scope)) for scope in scopes))
    psql = await asyncpg.connect(postgres_rig.settings.url)
    async with psql.transaction():
        await psql.execute("SELECT 1 FROM keys WHERE key = $1 FOR UPDATE", scopes[5].key)
        finishing = [
            asyncio.create_task(relay.finish(one.record.scope, one.record.fence, b"answer", DAY_S))
            for one in claimed
        ]
        done, held = await asyncio.wait(finishing, timeout=BOUND_S, return_when=asyncio.FIRST_COMPLETED)
        async with asyncio.timeout(BOUND_S):
            while len(held) > 1:
                more, held = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
                done |= more
        assert held == {finishing[5]}
    assert all(await asyncio.gather(*finishing))
    await psql.close()


async def test_relays_that_claim_the_same_keys_crosswise_agree(postgres_rig: Any, make: Any) -> None:
    await postgres_rig.engine()
    relays = [await opened(postgres_rig, lanes=2) for _ in range(2)]
    scopes = [make.scope() for _ in range(4 * MANY)]
    claims = [
        relay.claim(make.claim(scope, owner=f"relay-{number}"))
        for number, relay in enumerate(relays)
        for scope in (scopes if number else reversed(scopes))
    ]
    claimed = await asyncio.gather(*claims)
    executing = [one.record for one in claimed if one.decision is Decision.EXECUTE]
    assert len(executing) == len({record.scope for record in executing}) == len(scopes)
    waiting = {one.record.scope: one.record.fence for one in claimed if one.decision is Decision.WAIT}
    assert waiting == {record.scope: record.fence for record in executing}


async def test_everybody_is_told_when_the_server_goes_away_under_them(
    postgres_rig: Any, relay: PostgresStore, make: Any
) -> None:
    scopes = [make.scope() for _ in range(10)]
    claimed = await asyncio.gather(*(relay.claim(make.claim(scope)) for scope in scopes))
    psql = await asyncpg.connect(postgres_rig.settings.url)
    async with psql.transaction():
        await psql.execute("LOCK TABLE keys")
        finishing = asyncio.gather(
            *(relay.finish(one.record.scope, one.record.fence, b"answer", DAY_S) for one in claimed),
            return_exceptions=True,
        )
        async with asyncio.timeout(BOUND_S):
            while not await psql.fetch("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                pass
        await psql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        )
    results = await finishing
    assert all(isinstance(one, StoreUnavailableError) or one is True for one in results)
    assert any(isinstance(one, StoreUnavailableError) for one in results)
    await psql.close()
    async with asyncio.timeout(BOUND_S):
        while await relay.healthy():  # noqa: ASYNC110 - a server that comes back tells nobody
            await asyncio.sleep(0.02)
    assert all(
        await asyncio.gather(
            *(relay.finish(one.record.scope, one.record.fence, b"answer", DAY_S) for one in claimed)
        )
    )
