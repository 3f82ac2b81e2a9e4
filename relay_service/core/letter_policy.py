"""What the operator decided about dead letters, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from relay_service.core.job import Cause
from relay_service.core.job_policy import DAY_S, in_range


class Recovery(Enum):
    """What is done with a dead letter by itself."""

    DISCARD = "discard"
    RETRY = "retry"
    """Replay it alone, whatever its method's batch policy."""
    REQUEUE = "requeue"
    """Replay it as it was."""


@dataclass(frozen=True, slots=True)
class RecoveryRule:
    """What is done with the dead letters of one cause, when, and how often."""

    action: Recovery
    delay_s: float = 300.0
    """Counted from its death, and from the last replay."""
    limit: int = 1
    """Replays of one letter, those by hand included."""

    def __post_init__(self) -> None:
        in_range("recovery.delay_s", self.delay_s, 0, 365 * DAY_S)
        in_range("recovery.limit", self.limit, 1, 100)


@dataclass(frozen=True, slots=True)
class LetterPolicy:
    """How many dead letters are kept, how long, and which are recovered without being asked."""

    on_exhausted: bool = False
    """Keyed calls that came to no definite end become dead letters too."""
    max_entries: int = 100_000
    """When so many are unsettled no job is accepted any more; those accepted before still become letters."""
    keep_s: float = 30 * DAY_S
    """Counted from death."""
    recovery: Mapping[Cause, RecoveryRule] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        in_range("dead_letters.max_entries", self.max_entries, 1, 100_000_000)
        in_range("dead_letters.keep_s", self.keep_s, 1, 3650 * DAY_S)
        object.__setattr__(self, "recovery", MappingProxyType(dict(self.recovery)))
