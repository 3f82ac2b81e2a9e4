"""Writing the end of a run: one fenced commit, tried again while the job is still this relay's."""

import asyncio
import logging
from collections.abc import Callable
from random import Random

from relay_service.core.job import Job, Try
from relay_service.core.job_policy import JobPolicy
from relay_service.core.job_step import Bury, Complete, HandBack, RetryLater, Run, Step, after_run
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.status import Code
from relay_service.fault_points import FaultPoint
from relay_service.jobs.counters import JobCounters
from relay_service.jobs.leases import Leases
from relay_service.stores.interface import Burial, JobStore, StoreUnavailableError

MESSAGE_CHARS_MAX = 1_000
"""Of an upstream's message in a job's history."""
WRITE_AGAIN_S = 0.2

log = logging.getLogger(__name__)

PolicyText = Callable[[str], str]
"""The policy in force for a method, as JSON, for its dead letters."""


class Settler:
    """Decides by `core.job_step` and writes it."""

    def __init__(
        self,
        store: JobStore,
        leases: Leases,
        counters: JobCounters,
        *,
        worker: str,
        jobs: JobPolicy,
        letters: LetterPolicy,
        policy_text: PolicyText,
        new_id: Callable[[], str],
        clock: Callable[[], float],
        rng: Random,
        fault_point: FaultPoint,
    ) -> None:
        self._store = store
        self._leases = leases
        self._counters = counters
        self._worker = worker
        self._jobs = jobs
        self._letters = letters
        self._policy_text = policy_text
        self._new_id = new_id
        self._clock = clock
        self._rng = rng
        self._fault_point = fault_point

    async def after(self, job: Job, run: Run, *, repeatable: bool) -> None:
        """Write what becomes of the job after the run."""
        step = after_run(run, job, self._jobs, self._rng, repeatable=repeatable)
        tried = Try(
            self._clock(),
            self._worker,
            run.verdict.code,
            (run.key_status or run.verdict.message)[:MESSAGE_CHARS_MAX],
            run.delivery,
        )
        await self.write(job, step, tried)

    async def write(self, job: Job, step: Step, tried: Try | None) -> None:
        """Write ``step``. While the store is away it is tried again, until the lease runs out: then the
        job is run again under the same key, by whoever gets it."""
        self._fault_point("job-settling")
        while True:
            try:
                written = await self._write_once(job, step, tried)
                break
            except StoreUnavailableError as error:
                log.warning("job %s: its end cannot be written: %s", job.id, error)
                if not self._leases.holds(job):
                    written = False
                    break
                await asyncio.sleep(WRITE_AGAIN_S)
        self._leases.let_go(job)
        self._count(job, step if written else None)
        self._fault_point("job-settled")
        if written and isinstance(step, Bury):
            log.warning("job %s is a dead letter: %s", job.id, step.cause.name)

    async def _write_once(self, job: Job, step: Step, tried: Try | None) -> bool:
        match step:
            case Complete(answer) if tried is not None:
                return await self._store.complete(job.id, job.fence, tried, answer, self._jobs.keep_s)
            case RetryLater(delay_s) if tried is not None:
                return await self._store.retry(job.id, job.fence, tried, delay_s)
            case HandBack(delay_s):
                return await self._store.hand_back(job.id, job.fence, delay_s)
            case Bury(cause):
                last = tried or (job.tries[-1] if job.tries else None)
                burial = Burial(
                    id=job.dead_letter_id or self._new_id(),
                    cause=cause,
                    keep_s=self._letters.keep_s,
                    policy=self._policy_text(job.work.method),
                    message=last.message if last else "",
                    code=last.code if last else Code.UNKNOWN,
                )
                return await self._store.bury(job.id, job.fence, tried, burial)
            case _:
                raise AssertionError("only a run completes a job or has it retried")

    def _count(self, job: Job, step: Step | None) -> None:
        counters = self._counters
        if job.dead_letter_id:
            counters.resolved += isinstance(step, Complete)
            counters.reopened += isinstance(step, Bury)
        match step:
            case None:
                counters.stale_writes += 1
            case Complete():
                counters.completed += 1
            case RetryLater():
                counters.retried += 1
            case HandBack():
                counters.handed_back += 1
            case Bury(cause):
                counters.buried[cause] += 1
