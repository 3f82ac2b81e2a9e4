"""What is known of an idempotency key, and what to do when it comes again: values and one decision table.

A record belongs to a scope (tenant, method, key). Whoever claims it gets a fence, a number that rises with
every claim of the scope; every later write carries it, so that an owner that was thought dead, and wakes
up after somebody else took over, changes nothing.
"""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose key for what: two tenants' equal keys, or one key for two methods, have nothing in common."""

    tenant: str
    """The verified identity; empty for all callers without one."""
    method: str
    """``package.Service/Method``."""
    key: bytes


class RecordState(Enum):
    """What is known of a key."""

    IN_PROGRESS = "in_progress"
    """Claimed under a lease. A lease that ran out means an unknown outcome, not a free key."""
    DONE = "done"
    """A definite answer is stored and is replayed until the record expires."""
    AMBIGUOUS = "ambiguous"
    """An attempt may have been executed and its answer never came."""
    DEAD_LETTERED = "dead_lettered"
    """It belongs to an open dead letter."""
    QUEUED = "queued"
    """It belongs to an unfinished job."""
    EXPIRED = "expired"
    """A tombstone: the answer is gone, the memory that there was one is not."""


class Afterwards(Enum):
    """What is left of a key when its answer expires."""

    TOMBSTONE = "tombstone"
    """It is remembered without its answer, so that it cannot take effect again."""
    FORGOTTEN = "forgotten"
    """Nothing: the answer said that there was no effect."""


@dataclass(frozen=True, slots=True)
class Record:
    """One key as the store holds it. Times are seconds on the store's clock (Unix time)."""

    scope: Scope
    fingerprint: bytes
    """SHA-256 of the decompressed request."""
    state: RecordState
    fence: int
    owner: str
    """Who claimed it last: a relay's instance id."""
    first_seen: float
    changed_at: float
    lease_until: float
    """Of an IN_PROGRESS record."""
    expires_at: float
    """When a DONE record becomes a tombstone, and a tombstone is forgotten; infinite while it is owned."""
    answer: bytes | None = None
    """Of a DONE record: the answer as `relay_service.idempotency` encodes it."""
    reference: str = ""
    """The dead letter's or job's id when one owns the key."""
    attempts: int = 0
    """Claims of this scope so far, this one included."""
    then: Afterwards = Afterwards.TOMBSTONE
    """Of a DONE record: what is left when it expires."""


class Decision(Enum):
    """What becomes of a claim."""

    EXECUTE = "execute"
    """The key is the claimant's: a new record, or one whose unknown outcome may be tried again."""
    REPLAY = "replay"
    """Give the stored answer."""
    WAIT = "wait"
    """Somebody is executing it now: wait for the answer or abort, as the policy says."""
    UNKNOWN = "unknown"
    """The outcome is unknown and another attempt might be a second effect."""
    KEY_REUSED = "key_reused"
    """The same key with another payload."""
    KEY_EXPIRED = "key_expired"
    """The key is known but its answer is gone."""
    DEAD_LETTERED = "dead_lettered"
    """The key belongs to an open dead letter."""
    QUEUED = "queued"
    """The key belongs to an unfinished job."""


def decide(record: Record | None, fingerprint: bytes, now: float, *, repeatable: bool) -> Decision:
    """The decision table, evaluated inside the store's transaction.

    ``repeatable`` says that the upstream honours the derived key (or minds no second execution), so that
    an unknown outcome may be tried again. ``now`` is the store's clock.
    """
    if record is None or _is_forgotten(record, now):
        return Decision.EXECUTE
    if record.fingerprint != fingerprint:
        return Decision.KEY_REUSED
    match record.state:
        case RecordState.DONE if now < record.expires_at:
            return Decision.REPLAY
        case RecordState.DONE:
            return Decision.KEY_EXPIRED
        case RecordState.IN_PROGRESS if now < record.lease_until:
            return Decision.WAIT
        case RecordState.IN_PROGRESS | RecordState.AMBIGUOUS:
            return Decision.EXECUTE if repeatable else Decision.UNKNOWN
        case RecordState.DEAD_LETTERED:
            return Decision.DEAD_LETTERED
        case RecordState.QUEUED:
            return Decision.QUEUED
        case RecordState.EXPIRED:
            return Decision.KEY_EXPIRED


def _is_forgotten(record: Record, now: float) -> bool:
    """Its answer said that nothing happened, and has expired: as if the key had never come."""
    return (
        record.state is RecordState.DONE and record.then is Afterwards.FORGOTTEN and now >= record.expires_at
    )
