"""Durable jobs and dead letters as values. Times are seconds on the store's clock (Unix time)."""

from dataclasses import dataclass, field
from enum import Enum

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.core.value import value


class JobState(Enum):
    """Where a job stands. The conservation law sums over these."""

    PENDING = "pending"
    """Waiting: for a worker, its time, its turn within its order key, or its next attempt."""
    RUNNING = "running"
    """Leased to a worker."""
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DEAD = "dead"
    """It became a dead letter."""


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt as the history keeps it."""

    at: float
    worker: str
    code: Code
    message: str
    delivery: Delivery


FIRST_TRIES_KEPT = 3
LAST_TRIES_KEPT = 20
"""Of a history: its beginning tells what went wrong, its end how it stands."""


def with_try(tries: tuple[Try, ...], tried: Try) -> tuple[Try, ...]:
    """The history with one more attempt: the first few and the last ones are kept."""
    first, later = tries[:FIRST_TRIES_KEPT], (*tries[FIRST_TRIES_KEPT:], tried)
    return (*first, *later[-LAST_TRIES_KEPT:])


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done, the same in a job and in its dead letter."""

    tenant: str
    method: str
    request: bytes
    """The request message, not framed and not compressed."""
    metadata: tuple[tuple[str, bytes], ...] = ()
    key: bytes = b""
    """The caller's idempotency key; every job without one gets its id."""
    fingerprint: bytes = b""
    order_key: str = ""
    """Jobs of one tenant and order key run one by one, as they were submitted; empty: no order."""
    priority: int = 0
    """From -100 to 100, higher first; waiting raises it, so that none starves."""
    traceparent: str = ""


@value
class Job:
    """A job as the store holds it."""

    id: str
    work: Work
    state: JobState
    submitted_at: float
    ready_at: float
    """Not before this."""
    expires_at: float
    """When it becomes a dead letter (EXPIRED) if it was not done by then."""
    attempts: int = 0
    """Leases so far that were not handed back, the present one included."""
    lost_leases: int = 0
    """Attempts whose worker was never heard of again: what a job that kills its workers leaves."""
    tries: tuple[Try, ...] = ()
    """The first 3 and the last 20."""
    fence: int = 0
    worker: str = ""
    lease_until: float = 0.0
    started_at: float = 0.0
    """When the attempt under way began; a progress limit counts from here and no heartbeat extends it."""
    finished_at: float = 0.0
    answer: bytes | None = None
    dead_letter_id: str = ""
    """The letter it became, or the one it replays."""


class Cause(Enum):
    """Why work became a dead letter."""

    RETRIES_EXHAUSTED = "retries_exhausted"
    NON_RETRYABLE = "non_retryable"
    DEADLINE = "deadline"
    AMBIGUOUS = "ambiguous"
    POISON = "poison"
    """It took its worker with it more than once."""
    EXPIRED = "expired"
    OPERATOR = "operator"


class LetterState(Enum):
    """Where a dead letter stands."""

    OPEN = "open"
    HELD = "held"
    """Kept from every replay and from expiry until released."""
    REPLAYING = "replaying"
    RESOLVED = "resolved"
    """A replay succeeded."""
    DISCARDED = "discarded"
    """Somebody said why it need not be done."""


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay of a dead letter: when, by whom, as which job, and how it ended (empty while it runs)."""

    at: float
    by: str
    job_id: str
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Work that could not be done, with all that is known of it."""

    id: str
    work: Work
    cause: Cause
    state: LetterState
    died_at: float
    expires_at: float
    """Counted from its death."""
    submitted_at: float
    attempts: int
    tries: tuple[Try, ...] = ()
    code: Code = Code.UNKNOWN
    message: str = ""
    job_id: str = ""
    """Empty when a synchronous call left it."""
    policy: str = ""
    """The policy in force, as JSON."""
    replays: tuple[Replay, ...] = ()
    note: str = ""
    """Why it was held or discarded."""
    fields: dict[str, str] = field(default_factory=dict)
