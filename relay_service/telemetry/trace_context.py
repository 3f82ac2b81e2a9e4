"""Which trace a call belongs to and whether it is recorded: decided at its head, before any span exists.

W3C Trace Context (https://www.w3.org/TR/trace-context/) is read and written here without any
OpenTelemetry object, because most calls are not sampled and then this is all that tracing costs them.
"""

import random
import re
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

from relay_service.ports import Headers

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
BAGGAGE: Final = b"baggage"
TRACE_CONTEXT_HEADERS: Final = frozenset({TRACEPARENT, TRACESTATE, BAGGAGE})
"""The metadata that `TraceHead.outgoing` replaces; whatever else forwards metadata leaves these out."""

SAMPLED: Final = 0x01
RANDOM_TRACE_ID: Final = 0x02
"""Level 2 of the recommendation: the trace id is random; has to be handed on as it came."""
_KNOWN_FLAGS = SAMPLED | RANDOM_TRACE_ID

_TRACEPARENT_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_KEY = rb"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
_VALUE = rb"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = rb"[ \t]*" + _KEY + b"=" + _VALUE + rb"[ \t]*"
_TRACESTATE_FORM = re.compile(_MEMBER + b"(?:," + _MEMBER + b"){0,31}")
_TRACESTATE_BYTES_MAX = 512
"""What the recommendation asks everyone to keep; longer ones are sent on, not recorded."""

_ZERO_TRACE_ID = b"0" * 32
_ZERO_SPAN_ID = b"0" * 16
_LOW_64_BITS = (1 << 64) - 1


class RemoteParent(NamedTuple):
    """The caller's span, as its ``traceparent`` tells it."""

    trace_id: str
    """32 hex digits."""
    span_id: bytes
    """16 hex digits, as they came: most calls never need the number."""
    flags: int

    @property
    def trace_number(self) -> int:
        """The trace id."""
        return int(self.trace_id, 16)


def parse_traceparent(value: bytes) -> RemoteParent | None:
    """Read a ``traceparent``; None when it is malformed and has to be ignored.

    A version after 00 is read by the rules of 00 and may have more fields behind, as the
    recommendation demands of those who do not know it.
    """
    match = _TRACEPARENT_FORM.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if trace_id == _ZERO_TRACE_ID or span_id == _ZERO_SPAN_ID:
        return None
    return RemoteParent(trace_id.decode("ascii"), span_id, int(flags, 16) & _KNOWN_FLAGS)


class TraceHead:
    """A call's place in its trace. ``span_id`` is that of the relay's SERVER span, recorded or not."""

    __slots__ = ("carried", "flags", "number", "parent", "span_id")

    def __init__(
        self, number: int, span_id: int, flags: int, parent: RemoteParent | None, carried: Headers
    ) -> None:
        self.number = number
        """The trace id: nobody but logs and spans needs its digits."""
        self.span_id = span_id
        self.flags = flags
        self.parent = parent
        self.carried = carried
        """The caller's ``tracestate`` and ``baggage`` fields, to be sent on as they came."""

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return f"{self.number:032x}"

    def outgoing(self, span_id: int) -> Headers:
        """The trace context to send with an attempt whose parent is the span ``span_id``."""
        traceparent = (TRACEPARENT, b"00-%032x-%016x-%02x" % (self.number, span_id, self.flags))
        return (traceparent, *self.carried) if self.carried else (traceparent,)

    def well_formed_tracestate(self) -> list[str]:
        """The caller's ``tracestate`` fields, for spans; none of them when one is malformed or too long."""
        states = [value for name, value in self.carried if name == TRACESTATE]
        for state in states:
            if len(state) > _TRACESTATE_BYTES_MAX or _TRACESTATE_FORM.fullmatch(state) is None:
                return []
        return [state.decode("ascii") for state in states]


def follow_causes(trace: TraceHead, traceparents: Iterable[bytes]) -> None:
    """Record a trace that a recorded one caused, whatever its own draw: else the link leads nowhere."""
    for traceparent in traceparents:
        cause = parse_traceparent(traceparent)
        if cause is not None:
            trace.flags |= cause.flags & SAMPLED


class HeadSampler(Protocol):
    """Gives every call its place in a trace."""

    def begin(self, metadata: Headers) -> TraceHead:
        """Read the caller's context and decide whether the call is recorded (flag `SAMPLED`)."""


class ParentBasedSampler:
    """Follows the caller's decision; a trace that begins here is recorded with probability ``ratio``.

    The decision is read off the trace id's low 64 bits, as OpenTelemetry's TraceIdRatioBased does,
    so that services with the same ratio choose the same traces.
    """

    __slots__ = ("_bits", "_bound")

    def __init__(self, ratio: float, rng: random.Random) -> None:
        self._bound = round(ratio * (_LOW_64_BITS + 1))
        self._bits = rng.getrandbits

    def begin(self, metadata: Headers) -> TraceHead:
        """See `HeadSampler.begin`."""
        parent, carried = _read(metadata)
        span_id = self._bits(64) or 1  # 0 is not a valid id
        if parent is not None:
            return TraceHead(parent.trace_number, span_id, parent.flags, parent, carried)
        trace_number = self._bits(128) or 1
        flags = SAMPLED if trace_number & _LOW_64_BITS < self._bound else 0
        return TraceHead(trace_number, span_id, flags, None, carried)


class PassThroughSampler:
    """For a relay that exports no spans: the caller's context goes through as it came.

    A span id of our own would name a parent that no one ever sees and tear the caller's trace in two.
    """

    __slots__ = ("_bits",)

    def __init__(self, rng: random.Random) -> None:
        self._bits = rng.getrandbits

    def begin(self, metadata: Headers) -> TraceHead:
        """See `HeadSampler.begin`; a trace that begins here is never sampled."""
        parent, carried = _read(metadata)
        if parent is not None:
            return TraceHead(parent.trace_number, int(parent.span_id, 16), parent.flags, parent, carried)
        return TraceHead(self._bits(128) or 1, self._bits(64) or 1, 0, None, carried)


def _read(metadata: Headers) -> tuple[RemoteParent | None, Headers]:
    fields = [field for field in metadata if field[0] in TRACE_CONTEXT_HEADERS]
    if not fields:
        return None, ()
    if len(fields) == 1 and fields[0][0] == TRACEPARENT:  # nearly always so
        return parse_traceparent(fields[0][1]), ()
    parents = [value for name, value in fields if name == TRACEPARENT]
    parent = parse_traceparent(parents[0]) if len(parents) == 1 else None
    if parent is None:
        # The trace starts anew here, and the old one's vendor state does not belong to it.
        return None, tuple(field for field in fields if field[0] == BAGGAGE)
    return parent, tuple(field for field in fields if field[0] != TRACEPARENT)
