"""What the relay asks of a store, and what every engine promises.

Promises (the conformance suite in tests/stores holds every engine to them):

- A method that returns has committed, as durably as `Durability` says; one that raises
  `StoreUnavailableError` may or may not have. Called again with the same arguments it has the same effect;
  only a claim that did commit then finds itself (WAIT) until its lease runs out.
- Every write of an owner carries its fence. An outdated fence changes nothing and is told so.
- The store has a clock of its own, in Unix seconds, that never runs backwards and takes no step when the
  machine's wall clock does; callers give durations and get times of that clock.
- Nothing is found by scanning: each look-up has an index, each listing a page.

All methods are called on the event loop; none blocks it.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from relay_service.core.idempotency import Afterwards, Decision, Record, Scope
from relay_service.core.job import Cause, DeadLetter, Job, JobState, LetterState, Replay, Try, Work


class StoreError(Exception):
    """The store cannot do it; the text says what, where and what to do."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or cannot write now; it may be able to later."""


class StoreFullError(StoreUnavailableError):
    """There is no room: a full disk, or a bound of the policy."""


class InvalidPageTokenError(StoreError):
    """A page token that no listing gave out."""


class KeyTakenError(StoreError):
    """A submission's key is known, but not by a job that is still kept; nothing of the batch was accepted."""

    def __init__(self, submission_id: str, record: Record) -> None:
        super().__init__(f"the key of submission {submission_id} is {record.state.value} already")
        self.submission_id = submission_id
        self.record = record


@dataclass(frozen=True, slots=True)
class Durability:
    """What an acknowledgement of this engine means, for the ``relay-durability`` trailer."""

    name: str
    """Short and stable, e.g. ``sqlite-full``."""
    meaning: str
    """One sentence for people."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A request for a key."""

    scope: Scope
    fingerprint: bytes
    owner: str
    lease_s: float
    repeatable: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """What became of it. With EXECUTE the record is the claimant's own and holds its fence."""

    decision: Decision
    record: Record
    was_ambiguous: bool = False
    """With EXECUTE: an earlier owner's outcome is unknown."""


class IdempotencyStore(Protocol):
    """Keys."""

    async def look_up(self, scope: Scope) -> Record | None:
        """What is known of a key; writes nothing."""

    async def claim(self, claim: Claim) -> Claimed:
        """Decide (`core.idempotency.decide`) and, with EXECUTE, write IN_PROGRESS and a new fence; atomic."""

    async def renew(self, owner: str, claims: Collection[tuple[Scope, int]], lease_s: float) -> None:
        """Extend the leases of claims (scope, fence) that are still this owner's."""

    async def finish(
        self,
        scope: Scope,
        fence: int,
        answer: bytes,
        keep_s: float,
        then: Afterwards = Afterwards.TOMBSTONE,
    ) -> bool:
        """DONE: the answer is replayed for ``keep_s``, and ``then`` is what is left of the key.

        False when the fence is stale."""

    async def leave_ambiguous(self, scope: Scope, fence: int) -> bool:
        """AMBIGUOUS, until somebody settles it. False when the fence is stale."""

    async def release(self, scope: Scope, fence: int) -> bool:
        """Nothing was dispatched, or a retryable refusal came: forget this claim.

        If the record was ambiguous before this claim it is ambiguous again. False when the fence is stale.
        """

    async def changed(self, scope: Scope, fence: int, timeout_s: float) -> Record | None:
        """Wait until the record is no longer IN_PROGRESS under ``fence`` (by whichever relay), at most
        ``timeout_s`` and not beyond its lease; returns the record as it is then. Waiting polls nothing and
        holds no connection."""

    async def ambiguous(self, *, tenant: str | None, after: str, limit: int) -> tuple[Sequence[Record], str]:
        """A page of keys whose outcome is unknown (leases that ran out included), and the next token."""

    async def sweep_keys(self, *, tombstone_s: float, limit: int) -> int:
        """Turn expired answers into tombstones and forget old tombstones; returns how many were touched."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be accepted."""

    id: str
    work: Work
    delay_s: float
    ttl_s: float


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; None means any."""

    tenant: str | None = None
    method: str | None = None
    states: frozenset[JobState] | None = None
    order_key: str | None = None


UNSETTLED = frozenset({LetterState.OPEN, LetterState.HELD, LetterState.REPLAYING})
"""Letters that somebody still has to decide about."""

NEXT_JOBS = 100
"""How many of the ready jobs next in line are looked at for the oldest."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Unsettled dead letters of one cause."""

    count: int
    oldest_s: float
    """How long ago the first of them died."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs and letters are in each state (kept, not counted), and how old they are."""

    jobs: dict[JobState, int]
    letters: dict[LetterState, int]
    oldest_ready_s: float = 0.0
    """How long a job has been ready, the longest of the `NEXT_JOBS` next in line; 0 when none is."""
    unsettled: Mapping[Cause, Backlog] = field(default_factory=dict)
    """Causes that have unsettled letters."""


BURIAL_LEASE_S = 30.0
"""How long whoever asked for expired jobs has for burying them, before the next may."""


class JobStore(Protocol):
    """Jobs."""

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Job, bool]]:
        """Accept jobs; for each the job and whether it is new. A key (of tenant and method) submitted before
        returns its first job (same fingerprint), or raises nothing and returns that job with ``False``:
        the caller compares fingerprints. The key's idempotency record becomes QUEUED in the same commit.
        A submission without a key gets its id as its key, and no record: nobody else can know it.
        Raises `KeyTakenError` when the key belongs to something other than a job that is kept."""

    async def job(self, job_id: str) -> Job | None:
        """One job."""

    async def jobs(self, which: JobFilter, *, after: str, limit: int) -> tuple[Sequence[Job], str]:
        """A page of jobs, oldest first, and the token of the next (empty at the end)."""

    async def lease(
        self, worker: str, *, methods: Collection[str] | None, limit: int, lease_s: float
    ) -> Sequence[Job]:
        """Take up to ``limit`` ready jobs: highest priority first with ageing, at most one per order key and
        only its oldest unfinished one (a paused one holds up its key); jobs whose lease ran out are ready
        again under a new fence."""

    async def heartbeat(
        self, worker: str, leases: Collection[tuple[str, int]], lease_s: float, progress_s: float
    ) -> Collection[str]:
        """Extend leases (id, fence), none beyond ``progress_s`` after its start; returns the ids that are
        lost or to be given up (cancelled meanwhile)."""

    async def complete(self, job_id: str, fence: int, tried: Try, answer: bytes, keep_s: float) -> bool:
        """COMPLETED, and the key's record DONE with the same answer. False when the fence is stale.

        If the job replays a dead letter, that letter is RESOLVED in the same commit."""

    async def retry(self, job_id: str, fence: int, tried: Try, delay_s: float) -> bool:
        """PENDING again, ready after ``delay_s``. False when the fence is stale."""

    async def hand_back(self, job_id: str, fence: int, delay_s: float) -> bool:
        """PENDING again, ready after ``delay_s``, the attempt uncounted: it was never dispatched. False when
        stale."""

    async def bury(self, job_id: str, fence: int, tried: Try | None, letter: "Burial") -> bool:
        """DEAD and its dead letter in one commit. False when the fence is stale.

        The letter names the job (`DeadLetter.job_id`) and has its id in `Job.dead_letter_id`; the key's
        record becomes DEAD_LETTERED. With the id of the letter that this job replays, that letter is OPEN
        again with a longer history and this end as the outcome of its last replay; there is no second one."""

    async def cancel(self, job_id: str) -> Job | None:
        """CANCELLED unless it has ended; one that runs is given up at its worker's next heartbeat, and until
        its lease is over its order key stays held. The letter that it replays is OPEN again in the same
        commit.

        Its key is forgotten when it was never attempted, else AMBIGUOUS."""

    async def pause(self, which: JobFilter) -> int:
        """PENDING jobs become PAUSED; returns how many."""

    async def resume(self, which: JobFilter) -> int:
        """PAUSED jobs become PENDING; returns how many."""

    async def expired(self, *, limit: int) -> Sequence[Job]:
        """Waiting or paused jobs past their time to live, leased for burial (fence raised) for
        `BURIAL_LEASE_S`."""

    async def next_ready_s(self) -> float | None:
        """Seconds until a job may be ready, 0 when one is, None when there is none."""

    def work_arrived(self) -> AsyncIterator[None]:
        """Yields whenever jobs may have become ready (also through another relay); never in a busy loop."""

    def job_changes(self, job_id: str) -> AsyncIterator[Job]:
        """The job now, and again at each change of state, until it has ended."""

    async def sweep_jobs(self, *, keep_s: float, limit: int) -> int:
        """Forget jobs that ended longer than ``keep_s`` ago; returns how many."""


@dataclass(frozen=True, slots=True)
class Burial:
    """What a job's dead letter says besides the job."""

    id: str
    cause: Cause
    keep_s: float
    policy: str
    message: str
    code: int


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters; None means any."""

    ids: frozenset[str] | None = None
    tenant: str | None = None
    method: str | None = None
    causes: frozenset[Cause] | None = None
    states: frozenset[LetterState] | None = None
    code: int | None = None
    died_after: float | None = None
    died_before: float | None = None


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Dead letters of one method, cause and code."""

    method: str
    cause: Cause
    code: int
    state: LetterState
    count: int
    oldest: float
    newest: float
    sample_id: str
    sample_message: str


class DeadLetterStore(Protocol):
    """Dead letters."""

    async def put_letter(self, letter: DeadLetter, scope: Scope | None, fence: int, keep_s: float) -> bool:
        """A letter of a synchronous call or of an import, kept until ``keep_s`` after its death; with
        ``scope`` its record becomes DEAD_LETTERED in the same commit, fenced. False when the fence is stale.
        A letter whose id is known already is left as it is (True)."""

    async def letter(self, letter_id: str) -> DeadLetter | None:
        """One letter."""

    async def letters(
        self, which: LetterFilter, *, after: str, limit: int
    ) -> tuple[Sequence[DeadLetter], str]:
        """A page of letters, newest first, and the token of the next (empty at the end)."""

    async def groups(self, which: LetterFilter) -> Sequence[LetterGroup]:
        """Counts by method, cause, code and state; kept, not counted: 100,000 letters are grouped at once."""

    async def replay(self, letter_id: str, replay: Replay, job: Submission) -> bool:
        """REPLAYING, with its new job (whose `Job.dead_letter_id` is the letter's from the start), in one
        commit; False unless it was OPEN.

        The job has the letter's key, or a new one when the request was edited: then the letter's own key
        becomes a tombstone. Raises `KeyTakenError` when the job's key is in use by something else than this
        letter."""

    async def set_state(self, letter_id: str, state: LetterState, note: str) -> bool:
        """HELD, OPEN (released) or DISCARDED; False when its state does not allow that.

        DISCARDED makes the key's record a tombstone."""

    async def sweep_letters(self, *, limit: int) -> Sequence[DeadLetter]:
        """Letters past their time, removed, for the log: nothing is dropped silently."""


class Store(IdempotencyStore, JobStore, DeadLetterStore, Protocol):
    """An engine."""

    durability: Durability

    async def open(self) -> None:
        """Connect, migrate, check. Raises `StoreError` that says what, where and what to do."""

    async def close(self) -> None:
        """Finish what was accepted and let go."""

    def now(self) -> float:
        """The store's clock as this process sees it."""

    async def counts(self) -> Counts:
        """How many of each."""

    async def healthy(self) -> str:
        """Empty when it works, else what is wrong."""
