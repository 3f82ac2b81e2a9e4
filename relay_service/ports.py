"""The seams between the rooms of the relay: what the use case asks of its transports, and they of it.

The use case (`relay_service.relay`) knows only these. The data plane implements `Reply` and
`Attempt` and drives `IncomingCall` and `AttemptSink`; telemetry implements `Observer`. Nothing
here does I/O. All methods are synchronous and are called on the event loop's thread; none blocks,
and none may raise into its caller for a reason that lies with the peer.

Bytes that travel are gRPC's own framing (5-byte prefix and message), passed through untouched;
``Headers`` are raw HTTP/2 fields, names in lower case.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay_service.core.evidence import Delivery, Evidence
from relay_service.core.status import Code
from relay_service.core.value import value
from relay_service.core.verdict import Verdict

Headers = Sequence[tuple[bytes, bytes]]


class RepeatedHeaders(tuple[tuple[bytes, bytes], ...]):
    """Headers that many answers have, each time the same object: what was made of them may be kept.

    Equal only to itself, so that looking it up costs nothing.
    """

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__


@dataclass(frozen=True, slots=True)
class JobRun:
    """A run of a durable job, for spans."""

    job_id: str
    number: int
    """From 1."""
    traceparent: bytes
    """Of what the job was sent in: not the run's parent, for it may be days ago."""


@value
class CallHead:
    """A call as its request headers tell it."""

    method: str
    """``package.Service/Method``, without the leading slash."""
    metadata: Headers
    """What is passed on: no pseudo-headers, no hop-by-hop fields, no ``grpc-timeout``; ``grpc-encoding``,
    ``grpc-accept-encoding`` and ``user-agent`` are kept."""
    timeout_s: float | None
    """The caller's ``grpc-timeout``, None when it set no deadline."""
    received_at: float
    """Monotonic seconds."""
    peer: str
    """``host:port`` of the caller, for logs and spans."""
    identity: str = ""
    """Who the caller is, verified by its TLS certificate; empty for one that is not known. All callers
    without an identity are one tenant."""
    unary: bool = False
    """Known to be one message each way by whoever took the call (an envelope holds nothing else)."""
    once: bool = False
    """One attempt only: whoever makes the call decides about another."""
    bound: bool = False
    """To its own upstream: whoever makes the call makes it again when its outcome is unknown, which is
    harmless nowhere else."""
    retried: bool = False
    """Its client library has tried it before (``grpc-previous-rpc-attempts``, gRFC A6)."""
    runs: tuple[JobRun, ...] = ()
    """The jobs that it is made for; nothing of a caller's."""


@dataclass(frozen=True, slots=True)
class CallersStatus:
    """The callers' side of the data plane. Counters run from the start of the process."""

    connections: int = 0
    streams: int = 0
    accepted: int = 0
    refused: int = 0
    """Closed at once: as many as allowed were open."""
    refused_of_peer: int = 0
    """Closed at once: their peer had as many as one peer may have."""
    failed: int = 0
    """Ended by us: protocol errors, floods, stalls, no handshake."""
    last_failure: str = ""
    not_grpc: int = 0
    """Requests that were answered in HTTP's terms."""
    malformed: int = 0
    """Malformed gRPC requests, answered with a status."""
    replies_given_up: int = 0
    """Replies that were reset because their caller did not take them, or others before them."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The connections to one upstream. Counters run from the start of the process; times in seconds."""

    connections: Mapping[str, int] = field(default_factory=dict)
    """By state: CONNECTING; READY; RESTING, silent and given nothing new; RETIRED, going with its last
    stream."""
    streams: int = 0
    """Attempts under way on them."""
    waiting: int = 0
    """Attempts that wait for a connection, or for the upstream to allow another stream."""
    connects: int = 0
    connect_failures: int = 0
    reconnects: int = 0
    """Connections made in place of lost ones."""
    disconnects: int = 0
    goaways: int = 0
    """Connections that the upstream said it would close."""
    pings: int = 0
    """Questions to a connection that was silent with calls under way."""
    pings_answered: int = 0
    ping_round_trip_s: float = 0.0
    """Of the last that was answered; 0 before the first."""
    ping_round_trip_max_s: float = 0.0
    zombies: int = 0
    """Connections given up because they did not answer one."""
    attempts_unsent: int = 0
    """Attempts that failed at once: the upstream was away, or too many waited."""


class Reply(Protocol):
    """The caller's end of a call. The order is headers?, data*, trailers; or one reset."""

    def send_headers(self, headers: Headers) -> None:
        """Send response headers (``:status 200`` and ``content-type`` are added). This commits the call."""

    def send_data(self, data: bytes) -> None:
        """Queue framed bytes; they leave as the caller's flow-control window allows."""

    def send_trailers(self, code: Code, message: str, trailers: Headers) -> None:
        """End the call. Without earlier headers this is one Trailers-Only block.

        ``message`` is percent-encoded here; ``trailers`` hold all else, without ``grpc-status``
        and ``grpc-message``.
        """

    def consumed(self, size_bytes: int) -> None:
        """Say that so many request bytes left the relay, so that the caller may send as many more."""

    @property
    def buffered_bytes(self) -> int:
        """Response bytes queued and not yet written to the caller's connection."""


class IncomingCall(Protocol):
    """The use case's end of a call, driven by the data plane's server side."""

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        """Framed request bytes; ``end`` is the half-close (data may then be empty)."""

    def on_cancelled(self) -> None:
        """The caller reset the stream or its connection was lost. Nothing may be sent any more."""

    def on_reply_drained(self) -> None:
        """`Reply.buffered_bytes` fell below the low-water mark after having been above the high one."""


CallHandler = Callable[[CallHead, Reply], IncomingCall | None]
"""What the server side calls for each request; None when the call was answered at its headers, in which
case further request data is dropped (and its window given back)."""


@value
class AttemptEnd:
    """How an attempt ended."""

    delivery: Delivery
    code: Code
    """The upstream's status when ANSWERED, else the code that the transport's failure maps to."""
    message: str
    trailers: Headers = ()
    """The upstream's trailers when ANSWERED (without ``grpc-status`` and ``grpc-message``)."""
    given_up: bool = False
    """The relay ended it, as its time was over or nobody wanted it any more."""


class AttemptSink(Protocol):
    """Who hears what becomes of an attempt. After `on_end` nothing more is said about it."""

    def on_response_headers(self, attempt: "Attempt", headers: Headers) -> None:
        """Response metadata (pseudo-headers and ``content-type`` removed). Not called for Trailers-Only."""

    def on_response_data(self, attempt: "Attempt", data: bytes) -> None:
        """Framed response bytes; answer with `Attempt.consumed` when they have left the relay."""

    def on_attempt_drained(self, attempt: "Attempt") -> None:
        """`Attempt.buffered_bytes` fell below the low-water mark after having been above the high one."""

    def on_end(self, attempt: "Attempt", end: AttemptEnd) -> None:
        """The attempt is over; called exactly once, never from inside `UpstreamPort.start` or `cancel`."""


class Attempt(Protocol):
    """One try at the upstream."""

    def send_data(self, data: bytes, *, end: bool) -> None:
        """Queue framed request bytes; ``end`` half-closes."""

    def cancel(self) -> Delivery:
        """Give the attempt up (RST_STREAM CANCEL when it was sent) and say what is known of it.

        No `AttemptSink.on_end` follows.
        """

    def consumed(self, size_bytes: int) -> None:
        """Say that so many response bytes left the relay, so that the upstream may send as many more."""

    @property
    def buffered_bytes(self) -> int:
        """Request bytes queued and not yet written to the upstream's connection."""

    @property
    def peer(self) -> str:
        """``host:port`` the attempt went to; empty while it waits for a connection."""


class UpstreamPort(Protocol):
    """A service the relay forwards to."""

    name: str

    def start(self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> Attempt:
        """Begin an attempt: its headers leave at once when a connection is ready, else as soon as one is.

        ``timeout_s`` becomes ``grpc-timeout``; enforcing it is the caller's own business. A connection that
        cannot be had ends the attempt with NOT_SENT and UNAVAILABLE.
        """


class TimerHandle(Protocol):
    """A timer that may still be called off."""

    def cancel(self) -> None:
        """Harmless when it has fired or was cancelled before."""


class Timers(Protocol):
    """Coarse timers; they never fire early and at most one tick late on an idle loop."""

    def call_at(self, when: float, callback: Callable[[Any], None], argument: Any) -> TimerHandle:
        """Call ``callback(argument)`` at the monotonic time ``when``, in seconds."""


class CallObserver(Protocol):
    """Hears the life of one call, for spans, metrics and logs. Times are monotonic seconds."""

    @property
    def trace_id(self) -> str:
        """32 hex digits; every call has one, sampled or not."""

    def queued(self, now: float) -> None:
        """The call (or a retry of it) waits for a worker."""

    def dequeued(self, now: float) -> None:
        """A worker took it."""

    def attempt_started(self, number: int, upstream: str, now: float) -> Headers:
        """Attempt ``number`` (from 1) begins; the result is the trace context to send with it."""

    def hedge_started(self, number: int, upstream: str, now: float) -> Headers:
        """Attempt ``number`` begins beside others of the call; the result is as in `attempt_started`."""

    def attempt_ended(self, number: int, peer: str, end: AttemptEnd, evidence: Evidence, now: float) -> None:
        """Attempt ``number`` is over."""

    def finished(self, verdict: Verdict, now: float) -> None:
        """The caller has its answer (or is gone). Called exactly once, last."""


class Observer(Protocol):
    """Makes a `CallObserver` for every call."""

    def call_started(self, head: CallHead, now: float) -> CallObserver:
        """A call was taken at its headers."""

    def call_refused(self, head: CallHead, verdict: Verdict, now: float) -> None:
        """A call was refused at its headers; that is all there is to hear of it."""
