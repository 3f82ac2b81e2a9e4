"""What every engine promises of jobs."""

import asyncio
import random
from typing import Any

import pytest

from relay_service.core.idempotency import Decision, RecordState
from relay_service.core.job import JobState
from relay_service.stores.interface import JobFilter, KeyTakenError, Store

pytestmark = pytest.mark.usefixtures("counted")
DAY_S = 24 * 3600.0
LONG_S = 600.0


async def lease(
    store: Store, limit: int = 10, worker: str = "worker-1", lease_s: float = LONG_S
) -> list[str]:
    return [job.id for job in await store.lease(worker, methods=None, limit=limit, lease_s=lease_s)]


async def test_a_job_comes_back_as_it_was_submitted(store: Store, other: Store, make: Any) -> None:
    wanted = make.job(
        request=bytes(range(256)),
        metadata=(("a", b"1"), ("b-bin", b"\x00\xff")),
        key=b"\x00key",
        order_key="account-7",
        priority=-3,
        traceparent="00-ab-cd-01",
        tenant="team",
    )
    ((job, is_new),) = await store.submit([wanted])
    assert is_new
    assert job.work == wanted.work
    assert await other.job(job.id) == job
    assert await store.job("unknown") is None


async def test_submitting_a_key_again_returns_the_first_job_whatever_the_payload(
    store: Store, other: Store, make: Any
) -> None:
    first = make.job(key=b"k")
    await store.submit([first])
    ((again, is_new),) = await other.submit([make.job(key=b"k", request=b"another")])
    assert (again.id, is_new) == (first.id, False)
    assert again.work.fingerprint == first.work.fingerprint
    record = await store.look_up(make.scope(b"k"))
    assert record is not None
    assert (record.state, record.reference) == (RecordState.QUEUED, first.id)
    assert (await store.claim(make.claim(make.scope(b"k")))).decision is Decision.QUEUED


async def test_submitting_an_id_again_is_the_same_job(store: Store, make: Any) -> None:
    submission = make.job()
    ((first, is_new),) = await store.submit([submission])
    assert is_new
    assert await store.submit([submission]) == [(first, False)]


async def test_many_relays_submitting_one_key_get_one_job(store: Store, other: Store, make: Any) -> None:
    results = await asyncio.gather(
        *(relay.submit([make.job(key=b"k")]) for _ in range(25) for relay in (store, other))
    )
    jobs = [result[0] for result in results]
    assert len({job.id for job, _new in jobs}) == 1
    assert sum(is_new for _job, is_new in jobs) == 1


async def test_a_key_that_a_call_holds_refuses_the_whole_batch(store: Store, make: Any) -> None:
    await store.claim(make.claim(make.scope(b"taken")))
    with pytest.raises(KeyTakenError) as refused:
        await store.submit([make.job(job_id="innocent"), make.job(key=b"taken")])
    assert refused.value.record.state is RecordState.IN_PROGRESS
    assert await store.job("innocent") is None


async def test_a_completed_job_answers_its_key(store: Store, make: Any, take: Any) -> None:
    await store.submit([make.job(key=b"k")])
    job = await take(store)
    assert await store.complete(job.id, job.fence, make.tried("done"), b"answer", DAY_S)
    done = await store.job(job.id)
    assert done is not None
    assert (done.state, done.answer, done.attempts) == (JobState.COMPLETED, b"answer", 1)
    assert done.tries == (make.tried("done"),)
    claimed = await store.claim(make.claim(make.scope(b"k")))
    assert (claimed.decision, claimed.record.answer) == (Decision.REPLAY, b"answer")
    assert await store.complete(job.id, job.fence, make.tried("done"), b"answer", DAY_S)
    assert not await store.complete(job.id, job.fence, make.tried("done"), b"another", DAY_S)


async def test_jobs_of_an_order_key_run_one_by_one_as_submitted(store: Store, make: Any, take: Any) -> None:
    ids = [f"job-{n}" for n in range(5)]
    await store.submit([make.job(job_id=job_id, order_key="account") for job_id in ids])
    ran = []
    for _ in ids:
        job = await take(store)
        assert await lease(store) == []
        ran.append(job.id)
        await store.complete(job.id, job.fence, make.tried(), b"", DAY_S)
    assert ran == ids


async def test_a_blocked_order_key_holds_up_nobody_else(store: Store, make: Any, take: Any) -> None:
    await store.submit([make.job(job_id=f"a{n}", order_key="a", priority=100) for n in range(50)])
    await store.submit([make.job(job_id="b0", order_key="b"), make.job(job_id="free")])
    head = await take(store)
    assert head.id == "a0"
    await store.retry(head.id, head.fence, make.tried(), LONG_S)
    assert sorted(await lease(store)) == ["b0", "free"]


async def test_equal_order_keys_of_two_tenants_are_two_orders(store: Store, make: Any) -> None:
    await store.submit([make.job(tenant=tenant, order_key="same") for tenant in ("a", "b")])
    assert len(await lease(store)) == 2


@pytest.mark.parametrize("ending", ["bury", "cancel"])
async def test_an_order_key_goes_on_when_its_head_ends_otherwise(
    store: Store, make: Any, take: Any, ending: str
) -> None:
    await store.submit([make.job(job_id="head", order_key="a"), make.job(job_id="next", order_key="a")])
    if ending == "bury":
        head = await take(store)
        assert await store.bury(head.id, head.fence, None, make.burial())
    else:
        await store.cancel("head")
    assert await lease(store) == ["next"]


async def test_an_order_stays_held_while_a_cancelled_job_may_still_run(
    store: Store, make: Any, take: Any, passed: Any
) -> None:
    await store.submit([make.job(job_id="head", order_key="a"), make.job(job_id="next", order_key="a")])
    head = await take(store, lease_s=0.3)
    await store.cancel("head")
    leased = await lease(store)
    if leased:
        # The machine was busy for as long as the lease.
        assert (await store.job("next")).started_at >= head.lease_until
        return
    await passed(store, head.lease_until)
    assert await lease(store) == ["next"]


async def test_higher_priorities_go_first_and_waiting_raises_a_job(store: Store, make: Any) -> None:
    await store.submit(
        [make.job(job_id=name, priority=p) for name, p in (("low", -5), ("mid", 0), ("high", 5))]
    )
    assert await lease(store) == ["high", "mid", "low"]


async def test_an_old_job_overtakes_a_slightly_more_important_new_one(
    rig: Any, store: Store, make: Any
) -> None:
    from relay_service.stores.queue import AGE_S, rank

    now = store.now()
    assert rank(now - 2 * AGE_S, 0) < rank(now, 1) < rank(now, 0)
    await store.submit([make.job(job_id="new", priority=1), make.job(job_id="old", delay_s=-2 * AGE_S)])
    assert await lease(store) == ["old", "new"]


async def test_a_delayed_job_is_not_leased_before_its_time(store: Store, make: Any, passed: Any) -> None:
    await store.submit([make.job(job_id="later", delay_s=LONG_S, priority=100)])
    assert await lease(store) == []
    wait_s = await store.next_ready_s()
    assert wait_s is not None
    assert LONG_S - 60 < wait_s <= LONG_S
    ((job, _new),) = await store.submit([make.job(delay_s=0.05)])
    await passed(store, job.ready_at)
    assert await store.next_ready_s() == 0
    assert await lease(store) == [job.id]


async def test_when_the_next_job_is_ready_is_known(store: Store, make: Any, take: Any) -> None:
    assert await store.next_ready_s() is None
    await store.submit([make.job()])
    assert await store.next_ready_s() == 0
    await take(store, lease_s=50)
    wait_s = await store.next_ready_s()
    assert wait_s is not None
    assert 40 < wait_s <= 50


async def test_only_jobs_of_the_methods_asked_for_are_leased_in_one_order(store: Store, make: Any) -> None:
    for number, method in enumerate(("a/A", "b/B", "c/C", "a/A", "b/B")):
        await store.submit([make.job(job_id=f"{method[0]}{number}", method=method, priority=number)])
    leased = await store.lease("worker-1", methods={"a/A", "b/B"}, limit=3, lease_s=LONG_S)
    assert [job.id for job in leased] == ["b4", "a3", "b1"]
    assert await store.lease("worker-1", methods=(), limit=3, lease_s=LONG_S) == ()


async def test_paused_jobs_are_not_leased_and_resume_in_their_order(store: Store, make: Any) -> None:
    await store.submit([make.job(job_id=f"a{n}", order_key="a") for n in range(3)])
    await store.submit([make.job(job_id="b", method="b/B"), make.job(job_id="c", delay_s=LONG_S)])
    assert await store.pause(JobFilter(method="shop.Payments/Charge")) == 4
    assert await lease(store) == ["b"]
    assert await store.pause(JobFilter()) == 0
    assert await store.resume(JobFilter(order_key="a")) == 3
    assert await lease(store) == ["a0"]
    assert await store.resume(JobFilter()) == 1
    assert await lease(store) == []


async def test_more_jobs_than_one_transaction_touches_are_paused_and_resumed(store: Store, make: Any) -> None:
    await store.submit([make.job() for _ in range(1203)])
    assert await store.pause(JobFilter()) == 1203
    assert await store.resume(JobFilter(states=frozenset({JobState.PAUSED}))) == 1203


async def test_a_lost_lease_makes_the_job_ready_under_a_new_fence(
    store: Store, other: Store, make: Any, take: Any, passed: Any
) -> None:
    await store.submit([make.job()])
    first = await take(store, lease_s=0.02)
    await passed(store, first.lease_until)
    second = await take(other, "worker-2")
    assert second.id == first.id
    assert second.fence > first.fence
    assert (second.attempts, second.lost_leases) == (2, 1)
    for refused in (
        await store.complete(first.id, first.fence, make.tried(), b"", DAY_S),
        await store.retry(first.id, first.fence, make.tried(), 0),
        await store.hand_back(first.id, first.fence, 0.0),
        await store.bury(first.id, first.fence, None, make.burial()),
    ):
        assert not refused
    assert await store.job(first.id) == second


async def test_a_retry_waits_and_remembers_its_attempts(store: Store, make: Any, take: Any) -> None:
    await store.submit([make.job()])
    for number in range(30):
        job = await take(store)
        assert await store.retry(job.id, job.fence, make.tried(f"try {number}"), 0)
    job = await take(store)
    kept = [*range(3), *range(10, 30)]
    assert [tried.message for tried in job.tries] == [f"try {number}" for number in kept]
    assert job.attempts == 31


async def test_handing_back_counts_no_attempt(store: Store, make: Any, take: Any) -> None:
    await store.submit([make.job()])
    job = await take(store)
    assert await store.hand_back(job.id, job.fence, 0.0)
    again = await take(store)
    assert (again.id, again.attempts) == (job.id, 1)
    assert again.fence > job.fence


async def test_a_job_handed_back_for_a_while_waits_as_long(store: Store, make: Any, take: Any) -> None:
    await store.submit([make.job()])
    job = await take(store)
    assert await store.hand_back(job.id, job.fence, LONG_S)
    assert (await store.job(job.id)).ready_at == pytest.approx(store.now() + LONG_S, abs=LONG_S / 2)
    assert await store.lease("worker-1", methods=None, limit=1, lease_s=LONG_S) == ()


async def test_heartbeats_extend_a_lease_but_not_beyond_its_progress_limit(
    store: Store, make: Any, take: Any, passed: Any
) -> None:
    await store.submit([make.job(), make.job()])
    job, gone = await take(store), await take(store)
    assert await store.heartbeat("worker-1", [(job.id, job.fence)], 2 * LONG_S, 10 * LONG_S) == []
    assert (await store.job(job.id)).lease_until > job.lease_until + LONG_S / 2
    assert await store.heartbeat("worker-1", [(job.id, job.fence)], 2 * LONG_S, LONG_S) == []
    assert (await store.job(job.id)).lease_until == pytest.approx(job.started_at + LONG_S)
    await store.cancel(gone.id)
    assert await store.heartbeat(
        "worker-1", [(gone.id, gone.fence), (job.id, job.fence), ("none", 1)], LONG_S, LONG_S
    ) == [gone.id, "none"]
    await passed(store, job.started_at + 0.01)
    assert await store.heartbeat("worker-1", [(job.id, job.fence)], LONG_S, 0.01) == [job.id]


async def test_a_cancelled_job_frees_its_key_unless_it_was_attempted(
    store: Store, make: Any, take: Any
) -> None:
    await store.submit(
        [make.job(job_id="fresh", key=b"fresh"), make.job(job_id="tried", key=b"tried", priority=1)]
    )
    assert (await take(store)).id == "tried"
    for job_id in ("fresh", "tried"):
        cancelled = await store.cancel(job_id)
        assert cancelled is not None
        assert cancelled.state is JobState.CANCELLED
        assert await store.cancel(job_id) == cancelled
    assert await store.look_up(make.scope(b"fresh")) is None
    record = await store.look_up(make.scope(b"tried"))
    assert record is not None
    assert record.state is RecordState.AMBIGUOUS
    assert await store.cancel("unknown") is None


async def test_expired_jobs_are_leased_for_burial_and_not_for_work(
    store: Store, make: Any, take: Any, passed: Any
) -> None:
    await store.submit([make.job(job_id="old", ttl_s=0.01, key=b"k"), make.job(job_id="good")])
    await store.submit([make.job(job_id="paused", ttl_s=0.01, method="p/P")])
    await store.pause(JobFilter(method="p/P"))
    await passed(store, store.now() + 0.01)
    assert await lease(store) == ["good"]
    found = await store.expired(limit=10)
    assert sorted(job.id for job in found) == ["old", "paused"]
    assert await store.expired(limit=10) == ()
    for job in found:
        assert job.fence == 1
        assert await store.bury(job.id, job.fence, None, make.burial(f"letter-{job.id}"))
    record = await store.look_up(make.scope(b"k"))
    assert record is not None
    assert (record.state, record.reference) == (RecordState.DEAD_LETTERED, "letter-old")


async def test_eight_workers_never_hold_one_job_twice(store: Store, other: Store, make: Any) -> None:
    rng = random.Random(7)
    await store.submit([make.job(order_key=f"k{rng.randrange(20)}" if n % 2 else "") for n in range(300)])
    held: set[str] = set()
    orders: set[str] = set()
    done = 0

    async def work(number: int) -> None:
        nonlocal done
        relay = (store, other)[number % 2]
        while done < 300:
            jobs = await relay.lease(f"worker-{number}", methods=None, limit=5, lease_s=LONG_S)
            for job in jobs:
                assert job.id not in held
                held.add(job.id)
                if job.work.order_key:
                    assert job.work.order_key not in orders
                    orders.add(job.work.order_key)
            for job in jobs:
                orders.discard(job.work.order_key)
                held.discard(job.id)
                if rng.random() < 0.2:
                    assert await relay.retry(job.id, job.fence, make.tried(), 0)
                else:
                    assert await relay.complete(job.id, job.fence, make.tried(), b"", DAY_S)
                    done += 1

    await asyncio.gather(*(work(number) for number in range(8)))
    assert (await store.counts()).jobs[JobState.COMPLETED] == 300


async def test_pages_are_stable_while_jobs_come_and_end(store: Store, make: Any, take: Any) -> None:
    first = [f"job-{n:02}" for n in range(20)]
    await store.submit([make.job(job_id=job_id) for job_id in first])
    seen, token = [], ""
    while True:
        page, token = await store.jobs(JobFilter(), after=token, limit=6)
        seen += [job.id for job in page]
        if not token:
            break
        await store.submit([make.job(job_id=f"new-{len(seen)}")])
        job = await take(store)
        await store.complete(job.id, job.fence, make.tried(), b"", DAY_S)
    assert seen[:20] == first
    assert len(seen) == len(set(seen))


async def test_jobs_are_listed_by_tenant_method_state_and_order(store: Store, make: Any, take: Any) -> None:
    await store.submit([make.job(job_id="a", tenant="t"), make.job(job_id="b", method="m/M")])
    await store.submit([make.job(job_id="c", order_key="o"), make.job(job_id="d", priority=9)])
    await take(store)

    async def ids(**which: Any) -> list[str]:
        return [job.id for job in (await store.jobs(JobFilter(**which), after="", limit=10))[0]]

    assert await ids() == ["a", "b", "c", "d"]
    assert await ids(tenant="t") == ["a"]
    assert await ids(method="m/M") == ["b"]
    assert await ids(order_key="o") == ["c"]
    assert await ids(states=frozenset({JobState.RUNNING})) == ["d"]
    assert await ids(states=frozenset({JobState.RUNNING, JobState.PENDING})) == ["a", "b", "c", "d"]
    assert await ids(states=frozenset()) == []


async def test_a_watched_job_is_seen_in_every_state_until_it_ends(
    store: Store, other: Store, make: Any, take: Any
) -> None:
    ((job, _new),) = await store.submit([make.job()])
    changes = other.job_changes(job.id)
    seen = [(await anext(changes)).state]
    job = await take(store)
    seen.append((await anext(changes)).state)
    await store.complete(job.id, job.fence, make.tried(), b"", DAY_S)
    seen += [change.state async for change in changes]
    assert seen == [JobState.PENDING, JobState.RUNNING, JobState.COMPLETED]
    assert [change async for change in store.job_changes("unknown")] == []


async def test_workers_are_woken_by_new_work_through_whichever_relay(
    store: Store, other: Store, make: Any
) -> None:
    for relay in (store, other):
        arrivals = relay.work_arrived()
        waiting = asyncio.ensure_future(anext(arrivals))
        await asyncio.sleep(0)
        assert not waiting.done()
        await other.submit([make.job()])
        async with asyncio.timeout(10):
            await waiting
        await arrivals.aclose()


async def test_jobs_that_ended_long_ago_are_forgotten(
    store: Store, make: Any, take: Any, passed: Any
) -> None:
    await store.submit([make.job(priority=1, job_id="done"), make.job(job_id="open")])
    job = await take(store)
    await store.complete(job.id, job.fence, make.tried(), b"", DAY_S)
    assert await store.sweep_jobs(keep_s=DAY_S, limit=10) == 0
    await passed(store, store.now() + 0.02)
    assert await store.sweep_jobs(keep_s=0.01, limit=10) == 1
    assert await store.job("done") is None
    assert await store.job("open") is not None
