"""What the operator decided about idempotency keys, as frozen values. Times are seconds."""

import math
from dataclasses import dataclass
from enum import Enum

DAY_S = 86_400.0


class InFlight(Enum):
    """What a duplicate gets while the first call under its key still runs."""

    WAIT = "wait"
    """It waits for the same answer, until its own deadline and without a slot."""
    ABORT = "abort"
    """ABORTED at once, IDEMPOTENCY_IN_PROGRESS."""


@dataclass(frozen=True, slots=True)
class IdempotencyPolicy:
    """How the keys of one method are kept. Off is its absence: keys are then only passed on.

    Which answers are kept follows the Stripe API's keys and the IETF draft "The Idempotency-Key HTTP Header
    Field" (https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/), but for what both
    leave open: an outcome nobody knows is kept as exactly that.
    """

    in_flight: InFlight = InFlight.WAIT
    keep_s: float = DAY_S
    """How long a success is replayed."""
    keep_errors_s: float = 60.0
    """How long a definite error is."""
    settle_s: float = 5.0
    """How long an attempt under way may go on when nobody waits for it any more."""
    payload_keys: bool = False
    """Calls without a key get the hash of their request as one."""

    def __post_init__(self) -> None:
        _positive("keep_s", self.keep_s)
        _positive("keep_errors_s", self.keep_errors_s)
        if not (math.isfinite(self.settle_s) and self.settle_s >= 0):
            raise ValueError(f"settle_s must be a finite number of at least 0, not {self.settle_s}")


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What holds for all keys of a relay."""

    lease_s: float = 10.0
    """How long a claim holds without a sign of life. Renewed at a third of it."""
    waiters: int = 10_000
    """Keyed calls that may wait without a slot, all together."""
    waiters_per_key: int = 1_000
    tombstone_s: float = 30 * DAY_S
    """How long it is remembered that a key had an answer after the answer is gone."""

    def __post_init__(self) -> None:
        _positive("lease_s", self.lease_s)
        _positive("tombstone_s", self.tombstone_s)
        for name in ("waiters", "waiters_per_key"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number greater than 0, not {value}")
