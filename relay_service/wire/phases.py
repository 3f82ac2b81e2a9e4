"""What becomes of a stream, as two tables: the caller's end of a call, and an attempt at the upstream.

A step of a reply that its table has no entry for means nothing in that phase. docs/draw_streams.py draws
both.
"""

from collections.abc import Mapping
from enum import IntEnum, auto

from relay_service.core.evidence import Delivery


class ReplyPhase(IntEnum):
    """How far our answer to a caller is. (Integers: they are hashed on every call.)"""

    SILENT = auto()
    COMMITTED = auto()
    """Headers were sent."""
    ANSWERED = auto()
    """The end was sent, or queued behind data."""
    GONE = auto()
    """Nobody is there to answer."""


class ReplyStep(IntEnum):
    """What changes that."""

    HEADERS = auto()
    END = auto()
    """Trailers, or a Trailers-Only block."""
    GIVE_UP = auto()
    """We reset the stream."""
    CLOSED = auto()
    """The caller reset it, or the connection is gone."""


REPLIES: Mapping[tuple[ReplyPhase, ReplyStep], ReplyPhase] = {
    (ReplyPhase.SILENT, ReplyStep.HEADERS): ReplyPhase.COMMITTED,
    (ReplyPhase.SILENT, ReplyStep.END): ReplyPhase.ANSWERED,
    (ReplyPhase.SILENT, ReplyStep.GIVE_UP): ReplyPhase.GONE,
    (ReplyPhase.SILENT, ReplyStep.CLOSED): ReplyPhase.GONE,
    (ReplyPhase.COMMITTED, ReplyStep.END): ReplyPhase.ANSWERED,
    (ReplyPhase.COMMITTED, ReplyStep.CLOSED): ReplyPhase.GONE,
}


class AttemptPhase(IntEnum):
    """How far an attempt is."""

    WAITING = auto()
    """It has no connection yet."""
    SUBMITTED = auto()
    """Its HEADERS are with the engine; whether they left is known by the connection."""
    RESPONDING = auto()
    """Response headers came."""
    OVER = auto()


class AttemptStep(IntEnum):
    """What happens to an attempt. From ANSWER on, each ends it, whatever its phase."""

    BIND = auto()
    """A connection takes it."""
    RESPOND = auto()
    """Response headers came, and more will."""
    ANSWER = auto()
    """A ``grpc-status`` came."""
    MALFORM = auto()
    """An end without a status, or a response that is not gRPC."""
    REFUSE = auto()
    """RST_STREAM REFUSED_STREAM, or a GOAWAY below the stream."""
    RESET = auto()
    """RST_STREAM with any other code."""
    LOSE = auto()
    """The connection is gone, or none is to be had, or we gave the attempt up."""
    LOSE_UNWRITTEN = auto()
    """The same, and its HEADERS never reached the transport."""
    REJECT = auto()
    """The engine cannot send such a request, or no stream any more."""


ATTEMPTS: Mapping[tuple[AttemptPhase, AttemptStep], tuple[AttemptPhase, Delivery | None]] = {
    (AttemptPhase.WAITING, AttemptStep.BIND): (AttemptPhase.SUBMITTED, None),
    (AttemptPhase.WAITING, AttemptStep.LOSE): (AttemptPhase.OVER, Delivery.NOT_SENT),
    (AttemptPhase.WAITING, AttemptStep.LOSE_UNWRITTEN): (AttemptPhase.OVER, Delivery.NOT_SENT),
    (AttemptPhase.WAITING, AttemptStep.REJECT): (AttemptPhase.OVER, Delivery.NOT_SENT),
    (AttemptPhase.SUBMITTED, AttemptStep.RESPOND): (AttemptPhase.RESPONDING, None),
    (AttemptPhase.SUBMITTED, AttemptStep.ANSWER): (AttemptPhase.OVER, Delivery.ANSWERED),
    (AttemptPhase.SUBMITTED, AttemptStep.MALFORM): (AttemptPhase.OVER, Delivery.UNANSWERED),
    (AttemptPhase.SUBMITTED, AttemptStep.REFUSE): (AttemptPhase.OVER, Delivery.NOT_SENT),
    (AttemptPhase.SUBMITTED, AttemptStep.RESET): (AttemptPhase.OVER, Delivery.UNANSWERED),
    (AttemptPhase.SUBMITTED, AttemptStep.LOSE): (AttemptPhase.OVER, Delivery.UNANSWERED),
    (AttemptPhase.SUBMITTED, AttemptStep.LOSE_UNWRITTEN): (AttemptPhase.OVER, Delivery.NOT_SENT),
    (AttemptPhase.SUBMITTED, AttemptStep.REJECT): (AttemptPhase.OVER, Delivery.NOT_SENT),
    (AttemptPhase.RESPONDING, AttemptStep.ANSWER): (AttemptPhase.OVER, Delivery.ANSWERED),
    (AttemptPhase.RESPONDING, AttemptStep.MALFORM): (AttemptPhase.OVER, Delivery.UNANSWERED),
    # A peer that answered has seen the request, whatever it says afterwards.
    (AttemptPhase.RESPONDING, AttemptStep.REFUSE): (AttemptPhase.OVER, Delivery.UNANSWERED),
    (AttemptPhase.RESPONDING, AttemptStep.RESET): (AttemptPhase.OVER, Delivery.UNANSWERED),
    (AttemptPhase.RESPONDING, AttemptStep.LOSE): (AttemptPhase.OVER, Delivery.UNANSWERED),
    (AttemptPhase.RESPONDING, AttemptStep.LOSE_UNWRITTEN): (AttemptPhase.OVER, Delivery.UNANSWERED),
    (AttemptPhase.RESPONDING, AttemptStep.REJECT): (AttemptPhase.OVER, Delivery.UNANSWERED),
}
"""Where an attempt goes, and with its end what is therefore known of the request (its evidence)."""
