"""The workers: lease what is ready, carry it, write how it ended.

One loop asks the store for as many jobs as there is room for, and then waits to be told that there are
more, that one ended, or for the next job's time to come. Every run is a task of its own. Waiting for
other jobs of a batch takes the room of one run, as the batch itself does.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from relay_service import contract
from relay_service.core.evidence import Delivery, Evidence
from relay_service.core.job import Job, Work
from relay_service.core.job_policy import BatchPolicy, JobPolicy
from relay_service.core.job_step import HandBack, Run, before_run
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.fault_points import FaultPoint
from relay_service.jobs.batching import Item, MalformedBatchError, join, split
from relay_service.jobs.carrier import JOB_CLASS, goes_alone, unreadable
from relay_service.jobs.counters import JobCounters
from relay_service.jobs.gathering import Gathering, RunUnderWay
from relay_service.jobs.leases import Leases
from relay_service.jobs.settling import PolicyText, Settler
from relay_service.ports import Headers
from relay_service.stores.interface import JobStore, StoreError

WAIT_MIN_S = 0.02
WAIT_MAX_S = 1.0
"""Bounds of the wait when a ready job was announced and none was to be had (its turn is not come yet)."""

BATCH_METADATA: Headers = ((contract.CRITICALITY, JOB_CLASS),)
"""A batch has no key of its own: its items have, and who is in it may differ the next time."""

log = logging.getLogger(__name__)


class Carrier(Protocol):
    """Makes calls; `relay_service.jobs.carrier.JobCarrier` is one."""

    def is_repeatable(self, work: Work) -> bool:
        """Whether it may be executed again."""

    def carry(self, job: Job) -> Awaitable[Run]:
        """One call for one job."""

    def call(self, method: str, metadata: Headers, request: bytes, jobs: Sequence[Job]) -> Awaitable[Run]:
        """One call for several of one tenant and method."""


@dataclass(frozen=True, slots=True)
class MethodRules:
    """What the relay's policy says of methods, as far as jobs ask."""

    batch: Callable[[str], BatchPolicy | None]
    """How jobs of a method are joined."""
    retryable: Callable[[str], frozenset[Code]]
    """The codes that a method's upstream answers without having executed anything."""
    policy_text: PolicyText


class Workers:
    """Runs jobs until it is drained.

    State: the runs under way by job, the batches in the making, the leases, the wake-up and its count
    of fruitless ones.
    """

    def __init__(
        self,
        store: JobStore,
        carrier: Carrier,
        rules: MethodRules,
        *,
        jobs: JobPolicy,
        letters: LetterPolicy,
        worker: str,
        clock: Callable[[], float],
        now: Callable[[], float],
        new_id: Callable[[], str],
        rng: Random,
        fault_point: FaultPoint,
        counters: JobCounters,
    ) -> None:
        """``clock`` is the store's, for the history; ``now`` monotonic, for the leases."""
        self._store = store
        self._carrier = carrier
        self._rules = rules
        self._policy = jobs
        self._worker = worker
        self._now = now
        self._fault_point = fault_point
        self.counters = counters
        self._runs: dict[asyncio.Task[None], RunUnderWay] = {}
        self._by_job: dict[str, RunUnderWay] = {}
        self._gatherings: dict[tuple[str, str, int], Gathering] = {}
        self._wake = asyncio.Event()
        self._wait_s = WAIT_MIN_S
        self._draining = False
        self._leases = Leases(store, worker, jobs, now=now, on_lost=self._lost)
        self.settler = Settler(
            store,
            self._leases,
            counters,
            worker=worker,
            jobs=jobs,
            letters=letters,
            policy_text=rules.policy_text,
            new_id=new_id,
            clock=clock,
            rng=rng,
            fault_point=fault_point,
        )
        self._background: list[asyncio.Task[None]] = []

    @property
    def running(self) -> int:
        """Runs under way, a batch counting as one."""
        return len(self._runs)

    def start(self) -> None:
        """Begin to work."""
        self._background = [
            asyncio.create_task(self._work(), name="jobs are leased"),
            asyncio.create_task(self._leases.keep(), name="leases are kept"),
            asyncio.create_task(self._listen(), name="jobs are announced"),
        ]

    def wake(self) -> None:
        """Something may have become ready."""
        self._wake.set()

    def give_up(self, job_id: str) -> None:
        """The job was cancelled: stop its run, if it is here, without waiting for the heartbeat."""
        self._lost(job_id)

    async def drain(self, grace_s: float) -> None:
        """Take nothing more, hand back what was not dispatched, give the rest ``grace_s``, then cut it short.

        A run that is cut short ends as one without an answer: it is retried where that is harmless, and
        is a dead letter where it is not.
        """
        self._draining = True
        self._wake.set()
        # What is being leased right now is still to be handed back.
        if self._background:
            await asyncio.wait(self._background[:1], timeout=self._policy.lease_s)
        if self._runs:
            await asyncio.wait(self._runs, timeout=grace_s)
        cut_short = dict(self._runs)
        for task in cut_short:
            task.cancel()
        await asyncio.gather(*cut_short, return_exceptions=True)
        unwritten = [job for run in cut_short.values() for job in run.jobs if self._leases.holds(job)]
        await asyncio.gather(*(self._cut_short(job) for job in unwritten))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _cut_short(self, job: Job) -> None:
        await self.settler.after(job, _cut_short(), repeatable=self._carrier.is_repeatable(job.work))

    # Leasing ------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._draining:
            self._wake.clear()
            room = self._policy.workers - len(self._runs)
            try:
                took = await self._lease(room) if room > 0 else 0
                if took and took == room:
                    continue
                wait_s = await self._wait_for(took, room)
            except StoreError as error:
                log.warning("no jobs can be leased: %s", error)
                wait_s = WAIT_MAX_S
            except Exception:  # one job that breaks this loop must not stop all others
                log.exception("jobs could not be leased")
                wait_s = WAIT_MAX_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _wait_for(self, took: int, room: int) -> float:
        """How long nothing needs to be asked. A lease's length bounds it, so that no lost wake-up, and no
        lease that runs out elsewhere, keeps a job waiting for more than twice that."""
        if room <= 0:
            return self._policy.lease_s
        ready_s = await self._store.next_ready_s()
        if took or ready_s is None or ready_s > 0:
            self._wait_s = WAIT_MIN_S
        else:
            self._wait_s = min(WAIT_MAX_S, self._wait_s * 2)
        longest_s = self._policy.lease_s / 2
        return longest_s if ready_s is None else min(longest_s, max(self._wait_s, ready_s))

    async def _lease(self, room: int) -> int:
        asked_at = self._now()
        jobs = await self._store.lease(self._worker, methods=None, limit=room, lease_s=self._policy.lease_s)
        for job in jobs:
            self._leases.took(job, asked_at)
            self.counters.leased += 1
        if jobs:
            self._fault_point("job-leased")
        for job in jobs:
            self._dispatch(job)
        return len(jobs)

    async def _listen(self) -> None:
        """Be told of new work; should the telling itself fail, `_wait_for` bounds what is missed."""
        while True:
            try:
                async for _ in self._store.work_arrived():
                    self._wake.set()
            except StoreError as error:
                log.warning("nobody announces new jobs: %s", error)
            await asyncio.sleep(WAIT_MAX_S)

    # Running ------------------------------------------------------------------------------------

    def _dispatch(self, job: Job) -> None:
        if self._draining:
            self._spawn(RunUnderWay([job]), self.settler.write(job, HandBack(0.0), None))
            return
        last_word = before_run(job, self._policy, repeatable=self._carrier.is_repeatable(job.work))
        if last_word is not None:
            self._spawn(RunUnderWay([job]), self.settler.write(job, last_word, None))
            return
        batch = self._rules.batch(job.work.method)
        size_max = 1 if batch is None or goes_alone(job.work) else batch.share(job.attempts - 1)
        if batch is None or size_max == 1:
            self._spawn(RunUnderWay([job]), self._run_alone(job))
        else:
            self._gather(job, batch, size_max)

    def _gather(self, job: Job, batch: BatchPolicy, size_max: int) -> None:
        """Jobs of one tenant that failed equally often go together."""
        which = (job.work.tenant, job.work.method, size_max)
        gathering = self._gatherings.get(which)
        if gathering is None:
            gathering = self._gatherings[which] = Gathering(batch, size_max)
            self._spawn(gathering.run, self._run_gathering(which, gathering))
        gathering.add(job)
        self._by_job[job.id] = gathering.run
        if gathering.is_full:
            del self._gatherings[which]

    def _spawn(self, run: RunUnderWay, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="a job runs")
        run.task = task
        self._runs[task] = run
        for job in run.jobs:
            self._by_job[job.id] = run
        task.add_done_callback(self._run_over)

    def _run_over(self, task: asyncio.Task[None]) -> None:
        run = self._runs.pop(task)
        for job in run.jobs:
            # A job that was lost may be here again, in a run of its own.
            if self._by_job.get(job.id) is run:
                del self._by_job[job.id]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease of its jobs runs out, and their next worker counts this one as lost.
            log.error("a job's run broke", exc_info=error)

    def _lost(self, job_id: str) -> None:
        """The job is not ours to go on with. In a batch the others are not its concern."""
        run = self._by_job.get(job_id)
        if run is None or run.task is None:
            return
        self.counters.leases_lost += 1
        if len(run.jobs) == 1:
            run.task.cancel()

    async def _run_alone(self, job: Job) -> None:
        if not self._still_ours(job):
            return
        run = await self._carrier.carry(job)
        await self.settler.after(job, run, repeatable=self._carrier.is_repeatable(job.work))

    def _still_ours(self, job: Job) -> bool:
        """Whether its lease outlived the way here. One that did not is let go of, or the heartbeat would keep
        it, in a store that was only slow, for a run that never comes."""
        holds = self._leases.holds(job)
        if not holds:
            self._leases.let_go(job)
        return holds

    async def _run_gathering(self, which: tuple[str, str, int], gathering: Gathering) -> None:
        await gathering.closed()
        if self._gatherings.get(which) is gathering:
            del self._gatherings[which]
        jobs = [job for job in gathering.run.jobs if self._still_ours(job)]
        if self._draining:
            await asyncio.gather(*(self.settler.write(job, HandBack(0.0), None) for job in jobs))
        elif jobs:
            await self._run_batch(jobs, gathering.policy)

    async def _run_batch(self, jobs: Sequence[Job], batch: BatchPolicy) -> None:
        """One call for all; when it is refused for what is in it, its halves are tried."""
        if len(jobs) == 1:
            await self._run_alone(jobs[0])
            return
        self.counters.batches += 1
        self.counters.batched += len(jobs)
        request = join([_item(job) for job in jobs], batch.items)
        run = await self._carrier.call(batch.method, BATCH_METADATA, request, jobs)
        if run.verdict.evidence is Evidence.DEFINITE and run.verdict.code is not Code.OK:
            self.counters.batches_split += 1
            middle = len(jobs) // 2
            await self._run_batch(jobs[:middle], batch)
            await self._run_batch(jobs[middle:], batch)
            return
        ends = zip(jobs, self._ends(run, jobs, batch), strict=True)
        await asyncio.gather(
            *(
                self.settler.after(job, end, repeatable=self._carrier.is_repeatable(job.work))
                for job, end in ends
            )
        )

    def _ends(self, run: Run, jobs: Sequence[Job], batch: BatchPolicy) -> Sequence[Run]:
        if run.verdict.code is not Code.OK:
            return [run] * len(jobs)
        try:
            retryable = self._rules.retryable(jobs[0].work.method)
            return split(run.answer, len(jobs), batch.results, retryable)
        except MalformedBatchError as error:
            return [Run(unreadable(f"the batch's answer: {error}"), run.delivery)] * len(jobs)


def _item(job: Job) -> Item:
    work = job.work
    return Item(work.request, contract.derived_key(work.tenant, work.method, work.key))


def _cut_short() -> Run:
    message = "the relay was shut down before an answer came"
    verdict = Verdict(
        Code.UNAVAILABLE, message, Origin.RELAY, Fate.ERROR, evidence=Evidence.AMBIGUOUS, attempts=1
    )
    return Run(verdict, Delivery.UNANSWERED)
