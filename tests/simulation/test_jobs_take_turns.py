"""Whose turn it is: priorities that starve nobody, order keys that hold up only their own, drains that leave
nothing behind. Each with mutants that the checks must catch."""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from unittest.mock import patch

import pytest
from job_store import AGE_S, UNFINISHED, MemoryJobs
from job_world import LEASE_S, POLICY, Gate, MakeStore, Node, Upstream
from virtual_loop import VirtualLoop

from relay_service.core.evidence import Delivery, Evidence, Safety
from relay_service.core.job import Job, JobState, Work
from relay_service.core.job_step import Run
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.jobs.workers import Workers
from relay_service.stores.interface import Submission

SEEDS = 20
TTL_S = 2_000.0


class Office(Upstream):
    """Takes its time, and refuses whoever is in ``refused``."""

    def __init__(self, draw: Random, *, least_s: float, most_s: float) -> None:
        super().__init__(draw, honours_keys=True, failures=0.0, slow=0.0)
        self._least_s, self._most_s = least_s, most_s
        self.refused: set[bytes] = set()
        self.began: list[bytes] = []

    async def _call(self, key: bytes, gate: Gate) -> Run:
        self.began.append(key)
        await asyncio.sleep(self._draw.uniform(self._least_s, self._most_s))
        code = Code.UNAVAILABLE if key in self.refused else Code.OK
        if code is Code.OK:
            self.effects.setdefault(key, 0)
            self.effects[key] = 1
        fate, evidence = (Fate.OK, Evidence.DEFINITE) if code is Code.OK else (Fate.ERROR, Evidence.REFUSED)
        verdict = Verdict(code, "", Origin.UPSTREAM, fate, evidence=evidence, attempts=1)
        return Run(verdict, Delivery.ANSWERED, b"answer")


def submission(name: str, *, priority: int = 0, order_key: str = "") -> Submission:
    work = Work("", "S/M", b"", key=name.encode(), priority=priority, order_key=order_key)
    return Submission(name, work, 0.0, TTL_S)


async def until_all_ended(store: MemoryJobs, within_s: float, ids: Sequence[str] = ()) -> None:
    ends_at = asyncio.get_running_loop().time() + within_s
    while any(store.jobs_by_id[name].state in UNFINISHED for name in ids or store.jobs_by_id):
        assert asyncio.get_running_loop().time() < ends_at, "some job never ends"
        await asyncio.sleep(0.1)


def explore(world: Callable[[int, MakeStore], object], make: MakeStore, seeds: int = SEEDS) -> None:
    for seed in range(seeds):
        try:
            VirtualLoop(forgiven=asyncio.CancelledError).run(lambda seed=seed: world(seed, make))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


# Priorities -------------------------------------------------------------------------------------


async def higher_ones_keep_coming(seed: int, make: MakeStore) -> None:
    """More urgent jobs than can be done, for longer than their priority is worth."""
    draw = Random(seed)
    store = make(asyncio.get_running_loop().time)
    upstream = Office(draw, least_s=0.2, most_s=0.6)
    node = Node("relay", store, upstream, Safety.KEYED, draw)
    points = draw.choice([1, 2])
    for number in range(10):
        await store.submit([submission(f"before-{number}", priority=points)])
    await store.submit([submission("low")])
    low_at = store.jobs_by_id["low"].ready_at
    for number in range(round(points * AGE_S * 15 * 1.5)):
        await store.submit([submission(f"high-{number}", priority=points)])
        await asyncio.sleep(draw.uniform(0, 2 / 15))
    await until_all_ended(store, 300)
    at = upstream.began.index(b"low")
    waited_s = {
        name: store.jobs_by_id[name.decode()].submitted_at - low_at
        for name in upstream.began
        if name != b"low"
    }
    too_soon = [name for name in upstream.began[at + 1 :] if waited_s[name] < points * AGE_S]
    assert len(too_soon) <= POLICY.workers, f"{len(too_soon)} urgent jobs came after a low one"
    too_late = [name for name in upstream.began[:at] if waited_s[name] > points * AGE_S]
    assert len(too_late) <= POLICY.workers, f"a low job was starved by {len(too_late)} that came long after"
    await node.kill()


def test_a_higher_priority_goes_first_and_starves_nobody() -> None:
    explore(higher_ones_keep_coming, MemoryJobs)


class PriorityIsAll(MemoryJobs):
    def rank(self, job: Job) -> float:
        return job.ready_at - 1e6 * job.work.priority


class PriorityIsNothing(MemoryJobs):
    def rank(self, job: Job) -> float:
        return job.ready_at


@pytest.mark.parametrize(
    ("mutant", "complaint"), [(PriorityIsAll, "was starved"), (PriorityIsNothing, "came after a low one")]
)
def test_each_mutant_of_the_rank_is_caught(mutant: MakeStore, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        explore(higher_ones_keep_coming, mutant, 3)


# Order keys -------------------------------------------------------------------------------------


async def one_key_is_blocked(seed: int, make: MakeStore) -> None:
    """The first job of a key fails and fails: its successors wait, everybody else goes on."""
    draw = Random(seed)
    store = make(asyncio.get_running_loop().time)
    upstream = Office(draw, least_s=0.01, most_s=0.1)
    upstream.refused.add(b"stuck-0")
    nodes = [Node(f"relay-{n}", store, upstream, Safety.KEYED, draw) for n in range(draw.randint(1, 2))]
    others = []
    for number in range(30):
        await store.submit([submission(f"stuck-{number}", order_key="stuck")])
        key = draw.choice(["", "a", "b"])
        others.append(f"other-{number}")
        await store.submit([submission(others[-1], order_key=key)])
    # Done in order of arrival by however few workers, the others need far less than the blocked one's waits.
    await until_all_ended(store, 10.0, others)
    assert {name for name in upstream.began if name.startswith(b"stuck")} == {b"stuck-0"}
    assert store.jobs_by_id["stuck-0"].state in UNFINISHED, "the blocked one is not blocked any more"
    upstream.refused.clear()
    await until_all_ended(store, 100.0)
    stuck = [name for name in upstream.began if name.startswith(b"stuck") and name != b"stuck-0"]
    assert stuck == [f"stuck-{number}".encode() for number in range(1, 30)], "the order was not kept"
    for node in nodes:
        await node.kill()


def test_a_blocked_order_key_holds_up_its_own_jobs_only() -> None:
    explore(one_key_is_blocked, MemoryJobs)


class OneBlocksAll(MemoryJobs):
    def is_first(self, job: Job) -> bool:
        first = next(one for one in self.jobs_by_id.values() if one.state in UNFINISHED)
        return first.work.order_key in ("", job.work.order_key) and super().is_first(job)


class NobodyWaits(MemoryJobs):
    def is_first(self, job: Job) -> bool:
        return True


@pytest.mark.parametrize(
    ("mutant", "complaint"), [(OneBlocksAll, "never ends"), (NobodyWaits, "stuck-0|order was not kept")]
)
def test_each_mutant_of_the_order_is_caught(mutant: MakeStore, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        explore(one_key_is_blocked, mutant, 3)


# Drains -----------------------------------------------------------------------------------------


async def a_relay_is_drained(seed: int, make: MakeStore) -> None:
    """At any moment; a second relay must have all that is left at once and not after a lease."""
    draw = Random(seed)
    loop = asyncio.get_running_loop()
    store = make(loop.time)
    upstream = Office(draw, least_s=0.05, most_s=draw.choice([0.2, 3.0]))
    first = Node("first", store, upstream, Safety.KEYED, draw)
    for number in range(20):
        await store.submit([submission(f"job-{number}")])
    await asyncio.sleep(draw.uniform(0, 1.5))
    began = loop.time()
    grace_s = draw.choice([0.0, 0.5])
    await first.workers.drain(grace_s)
    took_s = loop.time() - began
    assert took_s < grace_s + LEASE_S, f"the drain took {took_s:.1f} s"
    running = [job.id for job in store.jobs_by_id.values() if job.state is JobState.RUNNING]
    assert not running, f"{len(running)} leases were not handed back"
    second = Node("second", store, upstream, Safety.KEYED, draw)
    await until_all_ended(store, 100.0)
    await second.kill()
    assert sum(job.lost_leases for job in store.jobs_by_id.values()) == 0, "a lease had to run out"
    assert all(job.state is JobState.COMPLETED for job in store.jobs_by_id.values())


def test_a_drain_hands_back_what_it_holds_whenever_it_comes() -> None:
    explore(a_relay_is_drained, MemoryJobs, 3 * SEEDS)


async def leaves_at_once(workers: Workers, _grace_s: float) -> None:
    """The mutant: tasks are ended, leases kept."""
    for task in (*workers._background, *workers._runs):
        task.cancel()
    await asyncio.gather(*workers._background, *workers._runs, return_exceptions=True)


async def writes_nothing(_workers: Workers, _job: Job) -> None:
    """The mutant: runs are cut short and their end is not written."""


@pytest.mark.parametrize(("method", "mutant"), [("drain", leaves_at_once), ("_cut_short", writes_nothing)])
def test_each_mutant_of_the_drain_is_caught(method: str, mutant: Callable[..., object]) -> None:
    with (
        patch.object(Workers, method, mutant),
        pytest.raises(AssertionError, match="not handed back") as caught,
    ):
        explore(a_relay_is_drained, MemoryJobs, 3 * SEEDS)
    print(caught.value)
