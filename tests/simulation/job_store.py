"""Jobs in memory, for the simulator only; what a mutant breaks is a method of its own."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace

from relay_service.core.job import DeadLetter, Job, JobState, LetterState, Try
from relay_service.stores.interface import Burial, JobFilter, Submission

AGE_S = 6.0
WAITING = (JobState.PENDING, JobState.PAUSED)
UNFINISHED = (*WAITING, JobState.RUNNING)


class MemoryJobs:
    """State: the jobs in the order of their submission, the letters, and who waits for news.

    Every operation is atomic because nothing in it awaits; ``pause`` is awaited before and after each, so
    that whoever drives it can stop or kill a relay between what it asked and what it hears.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.jobs_by_id: dict[str, Job] = {}
        self.letters_by_id: dict[str, DeadLetter] = {}
        self._news: list[asyncio.Event] = []

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Job, bool]]:
        accepted = []
        for one in submissions:
            first = next((job for job in self.jobs_by_id.values() if job.work.key == one.work.key), None)
            if first is not None:
                accepted.append((first, False))
                continue
            now = self.now()
            job = Job(one.id, one.work, JobState.PENDING, now, now + one.delay_s, now + one.ttl_s)
            self.jobs_by_id[job.id] = job
            accepted.append((job, True))
        self._tell()
        return accepted

    async def job(self, job_id: str) -> Job | None:
        return self.jobs_by_id.get(job_id)

    async def lease(
        self, worker: str, *, methods: Collection[str] | None, limit: int, lease_s: float
    ) -> Sequence[Job]:
        now = self.now()
        self._take_back(now)
        ready = [job for job in self.jobs_by_id.values() if self._is_ready(job, now)]
        ready.sort(key=self.rank)
        # One by one: who is taken may hold up the next of its order key.
        return [self._take(job, worker, now, lease_s) for job in ready[:limit] if self._is_ready(job, now)]

    def rank(self, job: Job) -> float:
        """Lower is earlier: a point of priority is worth six seconds of waiting."""
        return job.ready_at - AGE_S * job.work.priority

    def _take(self, job: Job, worker: str, now: float, lease_s: float) -> Job:
        return self._put(
            job,
            state=JobState.RUNNING,
            worker=worker,
            fence=job.fence + 1,
            attempts=job.attempts + 1,
            lease_until=now + lease_s,
            started_at=now,
        )

    def _is_ready(self, job: Job, now: float) -> bool:
        if (
            self.jobs_by_id[job.id].state is not JobState.PENDING
            or job.ready_at > now
            or job.expires_at <= now
        ):
            return False
        return not job.work.order_key or self.is_first(job)

    def is_first(self, job: Job) -> bool:
        """Whether no older job of its order key is unfinished."""
        first = next(
            one
            for one in self.jobs_by_id.values()
            if one.work.order_key == job.work.order_key and one.state in UNFINISHED
        )
        return first.id == job.id

    def _take_back(self, now: float) -> None:
        for job in list(self.jobs_by_id.values()):
            if job.state is JobState.RUNNING and job.lease_until <= now:
                self._put(job, state=JobState.PENDING, lost_leases=job.lost_leases + 1, ready_at=now)

    async def heartbeat(
        self, worker: str, leases: Collection[tuple[str, int]], lease_s: float, progress_s: float
    ) -> Collection[str]:
        lost, now = [], self.now()
        for job_id, fence in leases:
            job = self.held(job_id, fence)
            if job is None or job.lease_until <= now or now >= job.started_at + progress_s:
                lost.append(job_id)
            else:
                self._put(job, lease_until=self.lease_end(job, now + lease_s, progress_s))
        return lost

    def lease_end(self, job: Job, wanted: float, progress_s: float) -> float:
        """No heartbeat extends a lease beyond its progress limit."""
        return min(wanted, job.started_at + progress_s)

    async def complete(self, job_id: str, fence: int, tried: Try, answer: bytes, keep_s: float) -> bool:
        job = self.held(job_id, fence)
        if job is None:
            return False
        self._put(
            job, state=JobState.COMPLETED, answer=answer, tries=(*job.tries, tried), finished_at=self.now()
        )
        return True

    async def retry(self, job_id: str, fence: int, tried: Try, delay_s: float) -> bool:
        job = self.held(job_id, fence)
        if job is None:
            return False
        self._put(job, state=JobState.PENDING, ready_at=self.now() + delay_s, tries=(*job.tries, tried))
        return True

    async def hand_back(self, job_id: str, fence: int, delay_s: float) -> bool:
        job = self.held(job_id, fence)
        if job is None:
            return False
        self._put(job, state=JobState.PENDING, ready_at=self.now() + delay_s, attempts=job.attempts - 1)
        return True

    async def bury(self, job_id: str, fence: int, tried: Try | None, letter: Burial) -> bool:
        job = self.held(job_id, fence)
        if job is None:
            return False
        self._put(
            job,
            state=JobState.DEAD,
            dead_letter_id=letter.id,
            tries=(*job.tries, tried) if tried else job.tries,
            finished_at=self.now(),
        )
        self.letters_by_id[letter.id] = DeadLetter(
            letter.id,
            job.work,
            letter.cause,
            LetterState.OPEN,
            self.now(),
            math.inf,
            job.submitted_at,
            job.attempts,
            job_id=job.id,
        )
        return True

    async def cancel(self, job_id: str) -> Job | None:
        job = self.jobs_by_id.get(job_id)
        if job is not None and job.state in UNFINISHED:
            return self._put(job, state=JobState.CANCELLED, finished_at=self.now())
        return job

    async def pause(self, which: JobFilter) -> int:
        return self._swap(which, JobState.PENDING, JobState.PAUSED)

    async def resume(self, which: JobFilter) -> int:
        return self._swap(which, JobState.PAUSED, JobState.PENDING)

    def _swap(self, which: JobFilter, before: JobState, after: JobState) -> int:
        found = [
            job
            for job in self.jobs_by_id.values()
            if job.state is before and which.method in (None, job.work.method)
        ]
        for job in found:
            self._put(job, state=after)
        return len(found)

    async def next_ready_s(self) -> float | None:
        now = self.now()
        times = [
            job.lease_until if job.state is JobState.RUNNING else job.ready_at
            for job in self.jobs_by_id.values()
            if job.state in (JobState.RUNNING, JobState.PENDING)
        ]
        return max(0.0, min(times) - now) if times else None

    async def work_arrived(self) -> AsyncIterator[None]:
        news = asyncio.Event()
        self._news.append(news)
        try:
            while True:
                await news.wait()
                news.clear()
                yield
        finally:
            self._news.remove(news)

    def held(self, job_id: str, fence: int) -> Job | None:
        """The job when it runs under this fence."""
        job = self.jobs_by_id.get(job_id)
        return job if job is not None and job.state is JobState.RUNNING and job.fence == fence else None

    def _put(self, job: Job, **changes: object) -> Job:
        changed = self.jobs_by_id[job.id] = replace(job, **changes)  # type: ignore[arg-type]
        self._tell()
        return changed

    def _tell(self) -> None:
        for news in self._news:
            news.set()
