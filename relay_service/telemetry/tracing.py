"""The spans of a call: SERVER → ``relay.forward`` → a ``relay.queue`` per wait, a CLIENT span per attempt.

Spans are built when they end, as the SDK's read-only spans, and handed to the exporters' queues. The
SDK's recording spans (locks, bounded attributes, events, context lookups) cost ten times as much, and
nothing here ever needs to change a span that runs: a call's hooks come in order, on one thread.
"""

from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from relay_service.core.evidence import Delivery, Evidence
from relay_service.core.status import Code
from relay_service.core.verdict import Verdict
from relay_service.ports import AttemptEnd, CallHead
from relay_service.telemetry import attributes as key
from relay_service.telemetry.messaging import links_of, process_attributes
from relay_service.telemetry.trace_context import SAMPLED, TraceHead

TEXT_CHARS_MAX = 256
"""Longest name or message on a span: names and messages come from strangers."""

SERVER_ERRORS = frozenset(
    {
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.UNIMPLEMENTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DATA_LOSS,
    }
)
"""The codes that make a SERVER span an error; the others are the caller's own doing."""

_UNSET = Status(StatusCode.UNSET)
_CODE_NAMES = tuple(code.name for code in Code)

AttributeValue = str | int | float | bool
Attributes = dict[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class SpanTarget:
    """Where finished spans go, and what all of them share."""

    offer: Callable[[ReadableSpan], None]
    """Takes a span or drops it; never waits."""
    new_span_id: Callable[[], int]
    resource: Resource
    scope: InstrumentationScope
    listen: Attributes
    """``server.address`` and ``server.port`` of the relay itself."""


@dataclass(slots=True)
class _OpenAttempt:
    upstream: str
    context: SpanContext
    started_at: float
    marks: Attributes
    """What it is, beyond an attempt."""


class CallSpans:
    """The spans of one call, told by the same hooks as `CallObserver`.

    ``wall_offset_ns`` is what to add to the call's monotonic times to get wall time. It is read once, at
    the call's head: a step of the wall clock moves whole calls, never one span of a call against another.

    State: the contexts of the call's two lasting spans, the start of the current wait, the sum of
    the waits, and the attempts under way by number.
    """

    __slots__ = (
        "_attempts",
        "_forward",
        "_forward_started_at",
        "_head",
        "_method",
        "_queued_at",
        "_server",
        "_target",
        "_trace",
        "_waited_s",
        "_wall_offset_ns",
    )

    def __init__(self, target: SpanTarget, trace: TraceHead, head: CallHead, wall_offset_ns: int) -> None:
        self._target = target
        self._trace = trace
        self._head = head
        self._wall_offset_ns = wall_offset_ns
        self._method = as_text(head.method)
        self._server = _server_context(trace)
        self._forward: SpanContext | None = None
        self._forward_started_at = 0.0
        self._queued_at: float | None = None
        self._waited_s = 0.0
        self._attempts: dict[int, _OpenAttempt] = {}

    def queued(self, now: float) -> None:
        """A wait begins."""
        self._open_forward(now)
        self._queued_at = now

    def dequeued(self, now: float) -> None:
        """The wait is over."""
        if self._queued_at is None:
            return
        waited_s = now - self._queued_at
        self._waited_s += waited_s
        self._emit(
            "relay.queue",
            self._child(),
            self._forward,
            SpanKind.INTERNAL,
            attributes={key.QUEUE_WAIT_MS: waited_s * 1000},
            started_at=self._queued_at,
            ended_at=now,
        )
        self._queued_at = None

    def attempt_started(self, number: int, upstream: str, now: float) -> int:
        """An attempt begins; returns its span's id, the parent of whatever the upstream records."""
        return self._open_attempt(number, upstream, {}, now)

    def hedge_started(self, number: int, upstream: str, now: float) -> int:
        """The same, of an attempt that is made beside others."""
        return self._open_attempt(number, upstream, {key.HEDGE: True}, now)

    def _open_attempt(self, number: int, upstream: str, marks: Attributes, now: float) -> int:
        self._open_forward(now)
        context = self._child()
        self._attempts[number] = _OpenAttempt(upstream, context, now, marks)
        return context.span_id

    def attempt_ended(self, number: int, peer: str, end: AttemptEnd, evidence: Evidence, now: float) -> None:
        """An attempt is over; any status but OK makes its span an error.

        Except when the relay itself gave the attempt up (the caller left, a hedge won): that is
        CANCELLED without an answer, and no one's failure.
        """
        attempt = self._attempts.pop(number, None)
        if attempt is None:
            return
        attributes: Attributes = {
            key.RPC_SYSTEM: "grpc",
            key.RPC_METHOD: self._method,
            key.RPC_STATUS_CODE: _CODE_NAMES[end.code],
            key.UPSTREAM: attempt.upstream,
            key.ATTEMPT: number,
            key.DELIVERY: end.delivery.value,
            key.EVIDENCE: evidence.name.lower(),
            **attempt.marks,
            **address_attributes(peer, key.SERVER_ADDRESS, key.SERVER_PORT),
        }
        given_up = end.code is Code.CANCELLED and end.delivery is not Delivery.ANSWERED
        status = _UNSET
        if end.code is not Code.OK and not given_up:
            attributes[key.ERROR_TYPE] = _CODE_NAMES[end.code]
            status = Status(StatusCode.ERROR, as_text(end.message))
        self._emit(
            self._method,
            attempt.context,
            self._forward,
            SpanKind.CLIENT,
            attributes=attributes,
            started_at=attempt.started_at,
            ended_at=now,
            status=status,
        )

    def finished(self, verdict: Verdict, now: float) -> None:
        """The call is over: its lasting spans end, and a wait that it never came out of."""
        self.dequeued(now)
        self._end_forward(verdict, now)
        waited: Attributes = {key.QUEUE_WAIT_MS: self._waited_s * 1000} if self._waited_s else {}
        self._end_server(verdict, waited, now)

    def recorded_afterwards(self, verdict: Verdict, now: float) -> None:
        """The call is over and was not sampled: its SERVER span is recorded all the same, alone."""
        self._end_server(verdict, {key.SAMPLED_AFTERWARDS: True}, now)

    def _open_forward(self, now: float) -> None:
        """A call that is refused at its headers has no forward span: it was never about to be sent on."""
        if self._forward is None:
            self._forward = self._child()
            self._forward_started_at = now

    def _end_forward(self, verdict: Verdict, now: float) -> None:
        if self._forward is None:
            return
        attributes: Attributes = {key.ATTEMPTS: verdict.attempts}
        if verdict.code in SERVER_ERRORS:
            attributes[key.ERROR_TYPE] = _CODE_NAMES[verdict.code]
        self._emit(
            "relay.forward",
            self._forward,
            self._server,
            SpanKind.INTERNAL,
            attributes=attributes,
            started_at=self._forward_started_at,
            ended_at=now,
            status=_status_of(verdict),
        )

    def _end_server(self, verdict: Verdict, extra: Attributes, now: float) -> None:
        caller = self._trace.parent
        runs = self._head.runs
        self._emit(
            f"process {self._method}" if runs else self._method,
            self._server,
            None
            if caller is None
            else SpanContext(self._server.trace_id, int(caller.span_id, 16), is_remote=True),
            SpanKind.CONSUMER if runs else SpanKind.SERVER,
            attributes={
                key.RPC_SYSTEM: "grpc",
                key.RPC_METHOD: self._method,
                **_verdict_attributes(verdict),
                **address_attributes(self._head.peer, key.CLIENT_ADDRESS, key.CLIENT_PORT),
                **self._target.listen,
                **(process_attributes(runs, self._method) if runs else {}),
                **extra,
            },
            started_at=self._head.received_at,
            ended_at=now,
            status=_status_of(verdict),
            links=links_of(runs),
        )

    def _child(self) -> SpanContext:
        server = self._server
        return SpanContext(
            server.trace_id,
            self._target.new_span_id(),
            is_remote=False,
            trace_flags=server.trace_flags,
            trace_state=server.trace_state,
        )

    def _emit(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        *,
        attributes: Attributes,
        started_at: float,
        ended_at: float,
        status: Status = _UNSET,
        links: tuple[Link, ...] = (),
    ) -> None:
        self._target.offer(
            ReadableSpan(
                name=name,
                context=context,
                parent=parent,
                resource=self._target.resource,
                attributes=attributes,
                kind=kind,
                status=status,
                links=links,
                start_time=self._wall_offset_ns + int(started_at * 1e9),
                end_time=self._wall_offset_ns + int(ended_at * 1e9),
                instrumentation_scope=self._target.scope,
            )
        )


def _server_context(trace: TraceHead) -> SpanContext:
    """The identity of a call's SERVER span.

    Always flagged as sampled: whoever asks for it has decided that the span is exported, also when
    that was decided after the call went wrong.
    """
    states = trace.well_formed_tracestate()
    return SpanContext(
        trace.number,
        trace.span_id,
        is_remote=False,
        trace_flags=TraceFlags(trace.flags | SAMPLED),
        trace_state=TraceState.from_header(states) if states else None,
    )


def _status_of(verdict: Verdict) -> Status:
    """ERROR for the server's failures only; failed attempts that a retry repaired do not count."""
    if verdict.code in SERVER_ERRORS:
        return Status(StatusCode.ERROR, as_text(verdict.message))
    return _UNSET


def as_text(text: str) -> str:
    """``text`` cut to a bounded length and fit for UTF-8: one bad character would cost its whole batch."""
    text = text[:TEXT_CHARS_MAX]
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def address_attributes(address: str, host_key: str, port_key: str) -> Attributes:
    """``host:port`` (or ``[ipv6]:port``, or ``unix:path``) under the given keys; nothing when it is empty."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return {host_key: as_text(address)} if address else {}
    return {host_key: as_text(host.removeprefix("[").removesuffix("]")), port_key: int(port)}


def _verdict_attributes(verdict: Verdict) -> Attributes:
    code = _CODE_NAMES[verdict.code]
    attributes: Attributes = {
        key.RPC_STATUS_CODE: code,
        key.ATTEMPTS: verdict.attempts,
        key.DECISION: verdict.decision,
        key.ORIGIN: verdict.origin.value,
        key.OUTCOME: verdict.outcome,
    }
    if verdict.reason is not None:
        attributes[key.REASON] = verdict.reason.name
    if verdict.evidence is not None:
        attributes[key.EVIDENCE] = verdict.evidence.name.lower()
    if verdict.code in SERVER_ERRORS:
        attributes[key.ERROR_TYPE] = code
    return attributes
