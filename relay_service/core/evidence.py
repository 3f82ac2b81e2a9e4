"""What is known about an attempt that did not simply succeed, and what may be retried because of it.

A status code alone does not say whether the upstream executed a call. What does is what happened on
the wire, so the transport reports a `Delivery` with every attempt's end, and `judge` turns it,
together with the code and the policy, into `Evidence`.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum

from relay_service.core.status import Code
from relay_service.core.value import value


class Delivery(Enum):
    """What the transport knows of an attempt, exactly."""

    NOT_SENT = "not_sent"
    """Provably never processed: not written, REFUSED_STREAM, or above the last stream id of a GOAWAY."""
    UNANSWERED = "unanswered"
    """Bytes left and no gRPC status came back: reset, dead connection, attempt timeout."""
    ANSWERED = "answered"
    """A gRPC status came over the wire."""


class Evidence(IntEnum):
    """What an attempt proves, ordered from harmless to worst; a call's evidence is its attempts' maximum."""

    NOT_SENT = 0
    REFUSED = 1
    DEFINITE = 2
    AMBIGUOUS = 3


class Safety(Enum):
    """What a second execution of a method would do."""

    NO_SIDE_EFFECTS = "NO_SIDE_EFFECTS"
    IDEMPOTENT = "IDEMPOTENT"
    KEYED = "KEYED"
    """Safe exactly when the call carries an idempotency key that the upstream honours."""
    NONE = "NONE"

    def allows_repeat(self, *, has_key: bool) -> bool:
        """Whether an attempt that may have been executed may be made again."""
        return self in (Safety.NO_SIDE_EFFECTS, Safety.IDEMPOTENT) or (self is Safety.KEYED and has_key)

    @property
    def binds_to_upstream(self) -> bool:
        """Whether what is made again after an unknown outcome is harmless at the same upstream only: another
        knows nothing of the first execution and would make the effect for itself."""
        return self in (Safety.KEYED, Safety.IDEMPOTENT)


class Repeat(Enum):
    """Whether an attempt that ended so may be followed by another. What it proves is another question."""

    ALWAYS = "always"
    """Nothing was executed."""
    IF_HARMLESS = "if_harmless"
    """It may have been executed: only where a second execution does no harm."""
    NEVER = "never"
    """Another attempt would get the same answer."""


DEFINITE_CODES = frozenset(
    {
        Code.OK,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)
"""Answers that a retry would not change."""

SETTLING_CODES = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
    }
)
"""Errors that only whoever keeps the keys gives, so that they tell what became of an earlier ambiguous
attempt. The others may come from a gateway in front of it, which knows nothing of that attempt."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one attempt's end means."""

    evidence: Evidence
    repeat: Repeat


_NOT_SENT = Judgement(Evidence.NOT_SENT, Repeat.ALWAYS)
_UNSENDABLE = Judgement(Evidence.NOT_SENT, Repeat.NEVER)
_REFUSED = Judgement(Evidence.REFUSED, Repeat.ALWAYS)
_DEFINITE = Judgement(Evidence.DEFINITE, Repeat.NEVER)
_AMBIGUOUS = Judgement(Evidence.AMBIGUOUS, Repeat.IF_HARMLESS)
_UNKNOWN_FOR_GOOD = Judgement(Evidence.AMBIGUOUS, Repeat.NEVER)


@value
class Ending:
    """What is known of one attempt's end."""

    delivery: Delivery
    code: Code
    pushback_given: bool = False
    """The answer says when to come back, or not to."""
    responded: bool = False
    """Response messages came before it."""
    streaming: bool = False
    """More than one message may go either way."""


def judge(ending: Ending, retryable: frozenset[Code]) -> Judgement:
    """Judge one attempt's end.

    ``retryable`` is the operator's word that the upstream gives these codes without having executed
    anything. It does not hold once response messages came. RESOURCE_EXHAUSTED may also mean that the
    answer was too large to send, after the fact, so it is a refusal only when it says when to come back.
    In a stream a definite error may follow messages that had their effect.
    """
    match ending:
        case Ending(delivery=Delivery.NOT_SENT, code=Code.RESOURCE_EXHAUSTED):
            return _UNSENDABLE
        case Ending(delivery=Delivery.NOT_SENT):
            return _NOT_SENT
        case Ending(delivery=Delivery.UNANSWERED):
            return _AMBIGUOUS
        case Ending(code=Code.OK):
            return _DEFINITE
        case Ending(code=Code.RESOURCE_EXHAUSTED, pushback_given=False):
            return _UNKNOWN_FOR_GOOD
    if not ending.responded and (ending.code in retryable or ending.code is Code.RESOURCE_EXHAUSTED):
        return _REFUSED
    if ending.code in DEFINITE_CODES:
        return _UNKNOWN_FOR_GOOD if ending.responded or ending.streaming else _DEFINITE
    return _AMBIGUOUS
