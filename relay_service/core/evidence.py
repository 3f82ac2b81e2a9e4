"""What is known about an attempt that did not simply succeed, and what may be retried because of it.

A status code alone does not say whether the upstream executed a call. What does is what happened on
the wire, so the transport reports a `Delivery` with every attempt's end, and `classify` turns it,
together with the code and the policy, into `Evidence`.
"""

from enum import Enum, IntEnum

from relay_service.core.status import Code


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


def classify(delivery: Delivery, code: Code, *, pushback_given: bool, retryable: frozenset[Code]) -> Evidence:
    """Judge one attempt's end.

    ``retryable`` is the operator's word that the upstream gives these codes without having executed
    anything. RESOURCE_EXHAUSTED may also mean an oversized message, so it counts as a refusal only
    when the answer says when to come back (``pushback_given``).
    """
    if delivery is Delivery.NOT_SENT:
        return Evidence.NOT_SENT
    if delivery is Delivery.UNANSWERED:
        return Evidence.AMBIGUOUS
    if code is Code.RESOURCE_EXHAUSTED:
        return Evidence.REFUSED if pushback_given else Evidence.DEFINITE
    if code in retryable:
        return Evidence.REFUSED
    return Evidence.DEFINITE if code in DEFINITE_CODES else Evidence.AMBIGUOUS
