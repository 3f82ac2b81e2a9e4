"""Jobs over relays that die and stall: none lost, none done twice, each order kept; and mutants."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from job_store import UNFINISHED, MemoryJobs
from job_world import LEASE_S, POLICY, PROGRESS_S, MakeStore, Node, Upstream
from virtual_loop import VirtualLoop

from relay_service.core import job_step
from relay_service.core.evidence import Safety
from relay_service.core.job import Cause, Job, JobState, Try, Work
from relay_service.core.job_policy import JobPolicy
from relay_service.core.job_step import Run
from relay_service.stores.interface import Burial, Submission

SEEDS = 60
JOBS = 24
LIFE_S = 2_000.0


@dataclass
class Seen:
    """A run's end."""

    store: MemoryJobs
    upstream: Upstream
    safety: Safety
    honours_keys: bool
    trouble: bool
    took_s: float


async def a_run(seed: int, make: MakeStore) -> Seen:
    draw = Random(seed)
    loop = asyncio.get_running_loop()
    store = make(loop.time)
    safety = draw.choice([Safety.KEYED, Safety.NONE])
    honours = safety is Safety.KEYED
    upstream = Upstream(
        draw, honours_keys=honours, failures=draw.choice([0.0, 0.2]), slow=draw.choice([0.0, 0.03])
    )
    trouble = draw.random() < 0.7
    nodes = [Node(f"relay-{n}", store, upstream, safety, draw) for n in range(draw.randint(1, 3))]
    began = loop.time()
    for number in range(JOBS):
        work = Work("", "S/M", b"", key=b"%d" % number, order_key=draw.choice(["", "", "a", "b"]))
        await store.submit([Submission(f"job-{number}", work, draw.choice([0.0, 1.0]), LIFE_S)])
        await asyncio.sleep(draw.uniform(0, 0.1))
        if trouble and draw.random() < 0.2:
            index = draw.randrange(len(nodes))
            if draw.random() < 0.5:
                await nodes[index].kill()
                nodes[index] = Node(f"relay-{number}-again", store, upstream, safety, draw)
            else:
                await nodes[index].gate.stall(draw.uniform(0.5, 2 * LEASE_S))
    while any(job.state in UNFINISHED for job in store.jobs_by_id.values()):
        assert loop.time() - began < LIFE_S, "a job never ends"
        await asyncio.sleep(0.5)
    took_s = loop.time() - began
    for node in nodes:
        await node.kill()
    return Seen(store, upstream, safety, honours, trouble, took_s)


def check(seen: Seen) -> None:
    """The promises, on one run."""
    jobs = list(seen.store.jobs_by_id.values())
    assert len(jobs) == JOBS
    for job in jobs:
        effects = seen.upstream.effects[job.work.key]
        assert effects <= 1, f"{job.id} has {effects} effects"
        if job.state is JobState.COMPLETED:
            assert effects == 1
        else:
            letter = seen.store.letters_by_id.get(job.dead_letter_id)
            assert letter is not None, f"{job.id} is dead and has no letter"
            assert letter.job_id == job.id
            assert effects == 0 or letter.cause is not Cause.NON_RETRYABLE
    letters = {letter.job_id for letter in seen.store.letters_by_id.values()}
    dead = {job.id for job in jobs if job.state is JobState.DEAD}
    assert letters == dead, "letters and dead jobs are not the same"
    for key in ("a", "b"):
        own = [job for job in jobs if job.work.order_key == key]
        done = [effect for effect in seen.upstream.order if effect in {job.work.key for job in own}]
        wanted = [job.work.key for job in own if job.work.key in done]
        assert done == wanted, f"order key {key}"
    assert seen.upstream.longest_s <= PROGRESS_S + 2 * LEASE_S, "a run went on beyond its progress limit"


def explore(make: MakeStore, seeds: range) -> None:
    for seed in seeds:
        seen = VirtualLoop(forgiven=asyncio.CancelledError).run(lambda seed=seed: a_run(seed, make))
        try:
            check(seen)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("block", range(3))
def test_jobs_survive_kills_and_stalls(block: int) -> None:
    each = SEEDS // 3
    explore(MemoryJobs, range(block * each, (block + 1) * each))


class IgnoresFences(MemoryJobs):
    def held(self, job_id: str, fence: int) -> Job | None:
        return self.jobs_by_id.get(job_id)


class IgnoresOrder(MemoryJobs):
    def is_first(self, job: Job) -> bool:
        return True


class HeartbeatsForEver(MemoryJobs):
    async def heartbeat(self, worker, leases, lease_s, progress_s):  # type: ignore[no-untyped-def]
        return await super().heartbeat(worker, leases, lease_s, float("inf"))


class BuriesInTwoCommits(MemoryJobs):
    async def bury(self, job_id: str, fence: int, tried: Try | None, letter: Burial) -> bool:
        job = self.held(job_id, fence)
        if job is None:
            return False
        self._put(job, state=JobState.DEAD, dead_letter_id=letter.id)
        await asyncio.sleep(1.0)
        self._put(self.jobs_by_id[job_id], state=JobState.RUNNING)
        return await super().bury(job_id, fence, tried, letter)


@pytest.mark.parametrize(
    ("mutant", "complaint"),
    [
        (IgnoresFences, "effects|never ends|order key|letter"),
        (IgnoresOrder, "order key"),
        (HeartbeatsForEver, "progress limit|never ends"),
        (BuriesInTwoCommits, "no letter|letter"),
    ],
)
def test_each_mutant_of_the_store_is_caught(mutant: MakeStore, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint) as caught:
        explore(mutant, range(5 * SEEDS))
    print(caught.value)


def runs_again_whatever_was_lost(job: Job, policy: JobPolicy, *, repeatable: bool) -> None:
    return None


def repeats_whatever_is_unknown(
    run: Run, job: Job, policy: JobPolicy, rng: Random, *, repeatable: bool
) -> Any:
    return job_step.after_run(run, job, policy, rng, repeatable=True)


@pytest.mark.parametrize(
    ("place", "mutant"),
    [
        ("relay_service.jobs.workers.before_run", runs_again_whatever_was_lost),
        ("relay_service.jobs.settling.after_run", repeats_whatever_is_unknown),
    ],
)
def test_each_mutant_of_the_tables_is_caught(place: str, mutant: Callable[..., Any]) -> None:
    with patch(place, mutant), pytest.raises(AssertionError, match=r"has [2-9] effects") as caught:
        explore(MemoryJobs, range(SEEDS))
    print(caught.value)


def test_a_stuck_workers_job_is_with_another_in_less_than_two_leases() -> None:
    async def world() -> float:
        loop = asyncio.get_running_loop()
        draw = Random(1)
        store = MemoryJobs(loop.time)
        upstream = Upstream(draw, honours_keys=True, failures=0.0, slow=0.0)
        first = Node("relay-1", store, upstream, Safety.KEYED, draw)
        await store.submit([Submission("job", Work("", "S/M", b"", key=b"k"), 0.0, LIFE_S)])
        while store.jobs_by_id["job"].state is not JobState.RUNNING:  # noqa: ASYNC110 (virtual time)
            await asyncio.sleep(0.001)
        await first.kill()
        killed_at = loop.time()
        second = Node("relay-2", store, upstream, Safety.KEYED, draw)
        while store.jobs_by_id["job"].worker != "relay-2":  # noqa: ASYNC110 (virtual time)
            await asyncio.sleep(0.01)
        took_s = loop.time() - killed_at
        await second.kill()
        return took_s

    assert VirtualLoop(forgiven=asyncio.CancelledError).run(world) < 2 * POLICY.lease_s


class SlowOnce(MemoryJobs):
    """Grants its first lease only when that is over by the clock of who asked for it."""

    _slow = True

    async def lease(self, worker, *, methods, limit, lease_s):
        if self._slow and self.jobs_by_id:
            self._slow = False
            await asyncio.sleep(1.2 * lease_s)
        return await super().lease(worker, methods=methods, limit=limit, lease_s=lease_s)


def test_a_lease_that_came_too_late_is_not_kept_alive_for_a_run_that_never_comes() -> None:
    """It happened on a slow PostgreSQL: jobs stayed RUNNING, their heartbeat steady, and nobody ran them."""

    async def world() -> float:
        loop = asyncio.get_running_loop()
        draw = Random(1)
        store = SlowOnce(loop.time)
        upstream = Upstream(draw, honours_keys=True, failures=0.0, slow=0.0)
        await store.submit([Submission("job", Work("", "S/M", b"", key=b"k"), 0.0, LIFE_S)])
        began = loop.time()
        node = Node("relay-1", store, upstream, Safety.KEYED, draw)
        while store.jobs_by_id["job"].state is not JobState.COMPLETED:
            assert loop.time() - began < 20 * POLICY.lease_s, store.jobs_by_id["job"].state
            await asyncio.sleep(0.01)
        await node.kill()
        return loop.time() - began

    assert VirtualLoop(forgiven=asyncio.CancelledError).run(world) < 3 * POLICY.lease_s
