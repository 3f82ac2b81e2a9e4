"""How a call ended, in one value that reply, span, log and counters all speak from."""

from enum import Enum

from relay_service.core.evidence import Evidence
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.value import value


class Origin(Enum):
    """Who made the status that the caller gets."""

    UPSTREAM = "upstream"
    RELAY = "relay"


class Fate(Enum):
    """The term of the conservation law that a call counts under: received = the sum of these + in flight."""

    OK = "ok"
    ERROR = "error"
    REFUSED = "refused"
    """Ended by the relay before any attempt was made."""
    CANCELLED = "cancelled"
    """The caller went away."""


class KeyStatus(Enum):
    """What the caller's idempotency key came to: the ``idempotency-status`` trailer."""

    EXECUTED = "executed"
    """This call was the one that was executed; its answer is kept."""
    REPLAYED = "replayed"
    """The answer is that of an earlier call."""
    COALESCED = "coalesced"
    """The answer is that of a call that was under way."""
    IN_PROGRESS = "in-progress"
    """A call under this key is still under way."""
    UNKNOWN = "unknown"
    """What a repetition would get is not known: the outcome is open, or its answer could not be kept."""


_SHARED = {KeyStatus.REPLAYED: "REPLAYED", KeyStatus.COALESCED: "COALESCED"}


@value
class Verdict:
    """The end of a call.

    ``evidence`` is the worst of the attempts', None when none was made. ``attempts`` counts those
    that were started. ``pushback_s`` says when to return; negative means not at all.
    """

    code: Code
    message: str
    origin: Origin
    fate: Fate
    reason: Reason | None = None
    evidence: Evidence | None = None
    attempts: int = 0
    pushback_s: float | None = None
    hedges: int = 0
    """How many of the attempts were hedges."""
    hedge_won: bool = False
    """Whether the status is a hedge's answer."""
    fell_back: bool = False
    """Whether it went to an upstream that is not its method's own."""
    subject: str = "relay"
    """Whose limit was reached, when one was: the relay's, ``client:NAME``'s or ``bulkhead:NAME``'s."""
    key_status: KeyStatus | None = None
    """None without a key, and where the key is free again or somebody else's."""

    @property
    def outcome(self) -> str:
        """What the caller may believe of the effect: ``executed``, ``not-executed`` or ``unknown``."""
        match self.evidence:
            case None | Evidence.NOT_SENT | Evidence.REFUSED:
                return "not-executed"
            case Evidence.AMBIGUOUS:
                return "unknown"
            case Evidence.DEFINITE:
                return "executed" if self.code is Code.OK else "not-executed"

    @property
    def decision(self) -> str:
        """What the relay did: its reason, else ``REPLAYED``, ``COALESCED``, ``FALLBACK`` (another upstream
        answered), ``HEDGED`` (a hedge won), ``RETRIED`` or ``FORWARDED``."""
        if self.reason is not None:
            return self.reason.name
        if self.key_status in _SHARED:
            return _SHARED[self.key_status]
        if self.fell_back:
            return "FALLBACK"
        if self.hedge_won:
            return "HEDGED"
        return "RETRIED" if self.retries else "FORWARDED"

    @property
    def retries(self) -> int:
        """Attempts made because earlier ones failed."""
        return max(0, self.attempts - 1 - self.hedges)
