"""Everything the interface promises, said with transactions; an engine only has to run them."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from enum import Enum, auto
from functools import partial
from typing import TypeAlias, TypeVar

from relay_service.core.idempotency import Afterwards, Record, RecordState, Scope
from relay_service.core.job import DeadLetter, Job, JobState, LetterState, Replay, Try
from relay_service.stores import jobs, keys, leasing, letters, listing, replays
from relay_service.stores.counting import counts
from relay_service.stores.interface import (
    Burial,
    Claim,
    Claimed,
    Counts,
    Durability,
    JobFilter,
    LetterFilter,
    LetterGroup,
    StoreUnavailableError,
    Submission,
)
from relay_service.stores.queue import job_topic, work_topic
from relay_service.stores.statements import Operation, Transaction
from relay_service.stores.waiters import Waiters, woken

T = TypeVar("T")

PAGE_LIMIT = 1000
"""The most rows a page holds, whatever is asked for, so that memory stays bounded."""


class Kind(Enum):
    """Writes of which many come at a time and each touches little: an engine may commit them together."""

    CLAIMS = auto()
    """One key each."""
    FINISHES = auto()
    """One key each."""
    ENDS = auto()
    """The end of one run of one job, with its key."""
    SUBMISSIONS = auto()
    """One new job each, with its key."""


Touches: TypeAlias = tuple[tuple[str | bytes, ...], ...]
"""What a write may lock, by names. Two that touch the same are not committed together; those that are
are in the order of these names, in every relay."""

_Chunk: TypeAlias = Callable[[float, JobFilter, int], Transaction[tuple[int, int]]]
_ENDED = (JobState.COMPLETED, JobState.CANCELLED, JobState.DEAD)


class TransactionalStore(ABC):
    """A `Store` whose engine runs the shared transactions.

    ``safety_poll_s`` is how long a waiter trusts that every wake reaches it: None where wakes cannot be
    lost. State: who waits (`_waiters`) and whether it is closed.
    """

    durability: Durability

    def __init__(self, *, safety_poll_s: float | None) -> None:
        self._waiters = Waiters()
        self._safety_poll_s = safety_poll_s
        self._closed = False

    @abstractmethod
    async def open(self) -> None:
        """Connect, migrate, check. Raises `StoreError` that says what, where and what to do."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was accepted and let go."""

    @abstractmethod
    def now(self) -> float:
        """The store's clock as this process sees it."""

    @abstractmethod
    async def healthy(self) -> str:
        """Empty when it works, else what is wrong."""

    @abstractmethod
    async def _write(self, operation: Operation[T]) -> T:
        """Run and commit a transaction."""

    @abstractmethod
    async def _join(self, kind: Kind, touches: Touches, operation: Operation[T]) -> T:
        """Run and commit a transaction that may be committed together with others of its kind."""

    @abstractmethod
    async def _read(self, operation: Operation[T]) -> T:
        """Run a transaction that changes nothing."""

    # Keys

    async def look_up(self, scope: Scope) -> Record | None:
        """See `IdempotencyStore`."""
        return await self._read(partial(keys.look_up, scope=scope))

    async def claim(self, claim: Claim) -> Claimed:
        """See `IdempotencyStore`."""
        return await self._join(Kind.CLAIMS, (_name(claim.scope),), partial(keys.claim, wanted=claim))

    async def renew(self, owner: str, claims: Collection[tuple[Scope, int]], lease_s: float) -> None:
        """See `IdempotencyStore`."""
        await self._write(partial(keys.renew, owner=owner, claims=claims, lease_s=lease_s))

    async def finish(
        self,
        scope: Scope,
        fence: int,
        answer: bytes,
        keep_s: float,
        then: Afterwards = Afterwards.TOMBSTONE,
    ) -> bool:
        """See `IdempotencyStore`."""
        return await self._join(
            Kind.FINISHES,
            (_name(scope),),
            partial(keys.finish, scope=scope, fence=fence, answer=answer, keep_s=keep_s, then=then),
        )

    async def leave_ambiguous(self, scope: Scope, fence: int) -> bool:
        """See `IdempotencyStore`."""
        return await self._write(partial(keys.leave_ambiguous, scope=scope, fence=fence))

    async def release(self, scope: Scope, fence: int) -> bool:
        """See `IdempotencyStore`."""
        return await self._write(partial(keys.release, scope=scope, fence=fence))

    async def changed(self, scope: Scope, fence: int, timeout_s: float) -> Record | None:
        """See `IdempotencyStore`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        with self._waiters.listening(keys.topic_of(scope)) as event:
            record = await self.look_up(scope)
            while record is not None and self._runs_under(record, fence):
                left_s = deadline - asyncio.get_running_loop().time()
                if left_s <= 0:
                    break
                await woken(event, self._patience(min(left_s, record.lease_until - self.now())))
                record = await self._unless_away(self.look_up(scope), record)
            return record

    def _runs_under(self, record: Record, fence: int) -> bool:
        return (
            record.state is RecordState.IN_PROGRESS
            and record.fence == fence
            and self.now() < record.lease_until
        )

    async def ambiguous(self, *, tenant: str | None, after: str, limit: int) -> tuple[Sequence[Record], str]:
        """See `IdempotencyStore`."""
        return await self._read(partial(keys.ambiguous, tenant=tenant, after=after, limit=_page(limit)))

    async def sweep_keys(self, *, tombstone_s: float, limit: int) -> int:
        """See `IdempotencyStore`."""
        return await self._write(partial(keys.sweep, tombstone_s=tombstone_s, limit=_page(limit)))

    # Jobs

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Job, bool]]:
        """See `JobStore`."""
        operation = partial(jobs.submit, submissions=submissions)
        if len(submissions) != 1:
            return await self._write(operation)
        return await self._join(Kind.SUBMISSIONS, _touched(submissions[0]), operation)

    async def job(self, job_id: str) -> Job | None:
        """See `JobStore`."""
        return await self._read(partial(jobs.find, job_id=job_id))

    async def jobs(self, which: JobFilter, *, after: str, limit: int) -> tuple[Sequence[Job], str]:
        """See `JobStore`."""
        return await self._read(partial(listing.page, which=which, after=after, limit=_page(limit)))

    async def lease(
        self, worker: str, *, methods: Collection[str] | None, limit: int, lease_s: float
    ) -> Sequence[Job]:
        """See `JobStore`."""
        return await self._write(
            partial(leasing.lease, worker=worker, methods=methods, limit=_page(limit), lease_s=lease_s)
        )

    async def heartbeat(
        self, worker: str, leases: Collection[tuple[str, int]], lease_s: float, progress_s: float
    ) -> Collection[str]:
        """See `JobStore`."""
        return await self._write(
            partial(leasing.heartbeat, worker=worker, leases=leases, lease_s=lease_s, progress_s=progress_s)
        )

    async def complete(self, job_id: str, fence: int, tried: Try, answer: bytes, keep_s: float) -> bool:
        """See `JobStore`."""
        return await self._join(
            Kind.ENDS,
            ((job_id,),),
            partial(jobs.complete, job_id=job_id, fence=fence, tried=tried, answer=answer, keep_s=keep_s),
        )

    async def retry(self, job_id: str, fence: int, tried: Try, delay_s: float) -> bool:
        """See `JobStore`."""
        return await self._join(
            Kind.ENDS,
            ((job_id,),),
            partial(jobs.retry, job_id=job_id, fence=fence, tried=tried, delay_s=delay_s),
        )

    async def hand_back(self, job_id: str, fence: int, delay_s: float) -> bool:
        """See `JobStore`."""
        return await self._join(
            Kind.ENDS, ((job_id,),), partial(jobs.hand_back, job_id=job_id, fence=fence, delay_s=delay_s)
        )

    async def bury(self, job_id: str, fence: int, tried: Try | None, letter: Burial) -> bool:
        """See `JobStore`."""
        return await self._write(partial(jobs.bury, job_id=job_id, fence=fence, tried=tried, burial=letter))

    async def cancel(self, job_id: str) -> Job | None:
        """See `JobStore`."""
        return await self._write(partial(jobs.cancel, job_id=job_id))

    async def pause(self, which: JobFilter) -> int:
        """See `JobStore`."""
        return await self._in_chunks(listing.pause_some, which)

    async def resume(self, which: JobFilter) -> int:
        """See `JobStore`."""
        return await self._in_chunks(listing.resume_some, which)

    async def _in_chunks(self, some: _Chunk, which: JobFilter) -> int:
        total = after = 0
        while True:
            touched, after = await self._write(_chunk_of(some, which, after))
            total += touched
            if not after:
                return total

    async def expired(self, *, limit: int) -> Sequence[Job]:
        """See `JobStore`."""
        return await self._write(partial(leasing.expired, limit=_page(limit)))

    async def next_ready_s(self) -> float | None:
        """See `JobStore`."""
        return await self._read(jobs.next_ready_s)

    async def work_arrived(self) -> AsyncIterator[None]:
        """See `JobStore`."""
        with self._waiters.listening(work_topic()) as event:
            while not self._closed:
                await woken(event, self._safety_poll_s)
                if not self._closed:
                    yield

    async def job_changes(self, job_id: str) -> AsyncIterator[Job]:
        """See `JobStore`."""
        seen: Job | None = None
        with self._waiters.listening(job_topic(job_id)) as event:
            job = await self.job(job_id)
            while job is not None:
                if seen is None or (job.state, job.fence) != (seen.state, seen.fence):
                    seen = job
                    yield job
                if job.state in _ENDED:
                    return
                await woken(event, self._safety_poll_s)
                job = await self._unless_away(self.job(job_id), job)

    async def sweep_jobs(self, *, keep_s: float, limit: int) -> int:
        """See `JobStore`."""
        return await self._write(partial(listing.sweep, keep_s=keep_s, limit=_page(limit)))

    # Dead letters

    async def put_letter(self, letter: DeadLetter, scope: Scope | None, fence: int, keep_s: float) -> bool:
        """See `DeadLetterStore`."""
        return await self._write(partial(letters.put, letter=letter, scope=scope, fence=fence, keep_s=keep_s))

    async def letter(self, letter_id: str) -> DeadLetter | None:
        """See `DeadLetterStore`."""
        return await self._read(partial(letters.find, letter_id=letter_id))

    async def letters(
        self, which: LetterFilter, *, after: str, limit: int
    ) -> tuple[Sequence[DeadLetter], str]:
        """See `DeadLetterStore`."""
        return await self._read(partial(letters.page, which=which, after=after, limit=_page(limit)))

    async def groups(self, which: LetterFilter) -> Sequence[LetterGroup]:
        """See `DeadLetterStore`."""
        return await self._read(partial(letters.groups, which=which))

    async def replay(self, letter_id: str, replay: Replay, job: Submission) -> bool:
        """See `DeadLetterStore`."""
        return await self._write(partial(replays.replay, letter_id=letter_id, begun=replay, job=job))

    async def set_state(self, letter_id: str, state: LetterState, note: str) -> bool:
        """See `DeadLetterStore`."""
        return await self._write(partial(letters.set_state, letter_id=letter_id, state=state, note=note))

    async def sweep_letters(self, *, limit: int) -> Sequence[DeadLetter]:
        """See `DeadLetterStore`."""
        return await self._write(partial(letters.sweep, limit=_page(limit)))

    async def counts(self) -> Counts:
        """See `Store`."""
        return await self._read(counts)

    def _patience(self, wanted_s: float) -> float:
        return wanted_s if self._safety_poll_s is None else min(wanted_s, self._safety_poll_s)

    async def _unless_away(self, look: Awaitable[T], last: T) -> T:
        """Who waits does not give up because the store is away for a while: what was known last holds until
        it is back, or until the waiter's time is up. A closed store does not come back."""
        try:
            return await look
        except StoreUnavailableError:
            if self._closed:
                raise
            return last


def _chunk_of(some: _Chunk, which: JobFilter, after: int) -> Operation[tuple[int, int]]:
    return lambda now: some(now, which, after)


def _name(scope: Scope) -> tuple[str | bytes, ...]:
    return scope.tenant, scope.method, scope.key


def _touched(submission: Submission) -> Touches:
    """The order first: it is locked first."""
    work = submission.work
    order = ((work.tenant, work.order_key),) if work.order_key else ()
    key = (_name(Scope(work.tenant, work.method, work.key)),) if work.key else ()
    return (*order, *key, (submission.id,))


def _page(limit: int) -> int:
    return max(1, min(limit, PAGE_LIMIT))
