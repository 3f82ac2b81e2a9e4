"""The lab's own gRPC client: one call in, one `CallRecord` out, whatever becomes of it.

It never retries (the relay's retries are what is measured) and serializes nothing itself, because a
request whose serializer fails would be sent empty.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2, status_pb2

from chaos.history import CallRecord, HistoryWriter, Outcome
from chaos.plan import PlannedCall, Style
from chaos.tracing import CallTrace, ClientTracing

CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
"""No retries; a connection of its own for each channel; back within half a second after an outage."""
CONNECT_TIMEOUT_S = 10.0
MESSAGE_CHARS_MAX = 200

NEVER_EXECUTED_CODES = frozenset(
    {"INVALID_ARGUMENT", "UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"}
)
"""What a peer that is no relay cannot mean otherwise; any other failure may have been executed."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a driver asks of the client: a planned call, and when and as what it is made."""

    planned: PlannedCall
    phase: str
    intended_s: float
    """On the history's clock."""
    timeout_s: float
    client_try: int = 1
    says_tried: bool = False
    """Whether a later try says so, as a client library's own retry does (``grpc-previous-rpc-attempts``)."""


Trailers = Mapping[str, str | bytes]


@dataclass(frozen=True, slots=True)
class Ending:
    """A call's status and trailers."""

    code: str
    message: str
    trailers: Trailers = field(default_factory=dict)
    messages: int | None = None
    """How many a stream delivered; None for a unary call."""


GIVEN_UP = Ending("CANCELLED", "given up by the generator")
KEPT_BACK = Ending("CANCELLED", "kept back by the generator's limit of calls in flight")


class Client:
    """A pool of channels to one address, recording every call. Use it in ``async with``."""

    def __init__(
        self, address: str, history: HistoryWriter, tracing: ClientTracing, *, channels: int = 2
    ) -> None:
        self.address = address
        self.history = history
        self._tracing = tracing
        self._channels = [
            grpc.aio.insecure_channel(address, options=(*CHANNEL_OPTIONS, ("chaos.channel", number)))
            for number in range(channels)
        ]
        self._turn = itertools.cycle(self._channels)
        self._methods: dict[tuple[int, str], Callable[..., Any]] = {}

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()

    def unsent(self, errand: Errand) -> CallRecord:
        """Record a call that the generator's own limit kept back."""
        record = self._record(errand, KEPT_BACK, sent_s=None, trace=None)
        self.history.add(record)
        return record

    async def call(self, errand: Errand) -> CallRecord:
        """Make one call and record it. Raises nothing but the caller's own cancellation."""
        planned = errand.planned
        trace = self._tracing.begin(planned.method, self.address, recorded=planned.traced)
        sent_s = self.history.now()
        start = self._method(planned)
        options = {"timeout": errand.timeout_s, "metadata": _metadata(errand, trace)}
        ending = GIVEN_UP
        try:
            match planned.style:
                case Style.UNARY:
                    ending = await _unary_ending(start(planned.request, **options))
                case Style.SERVER_STREAM:
                    ending = await _stream_ending(start(planned.request, **options))
                case Style.BIDI:
                    requests = itertools.repeat(planned.request, planned.messages)
                    ending = await _stream_ending(start(requests, **options))
        finally:
            record = self._record(errand, ending, sent_s=sent_s, trace=trace)
            trace.end(ending.code)
            self.history.add(record)
        return record

    def _method(self, planned: PlannedCall) -> Callable[..., Any]:
        """What starts a call of this method; grpc.aio's makers, one a style, have no common type."""
        channel = next(self._turn)
        cached = self._methods.get((id(channel), planned.method))
        if cached is None:
            makers: dict[Style, Callable[[str], Any]] = {
                Style.UNARY: channel.unary_unary,
                Style.SERVER_STREAM: channel.unary_stream,
                Style.BIDI: channel.stream_stream,
            }
            cached = self._methods[id(channel), planned.method] = makers[planned.style](f"/{planned.method}")
        return cached

    def _record(
        self, errand: Errand, ending: Ending, *, sent_s: float | None, trace: CallTrace | None
    ) -> CallRecord:
        planned, trailers = errand.planned, ending.trailers
        return CallRecord(
            id=self.history.next_call_id(),
            phase=errand.phase,
            operation=planned.operation,
            method=planned.method,
            intended_s=errand.intended_s,
            done_s=self.history.now(),
            code=ending.code,
            outcome=Outcome.UNSENT if sent_s is None else outcome_of(ending.code, trailers),
            trace_id=trace.trace_id if trace else "",
            sent_s=sent_s,
            timeout_s=errand.timeout_s,
            key=planned.key,
            client_try=errand.client_try,
            message=ending.message[:MESSAGE_CHARS_MAX] or None,
            reason=reason_of(trailers),
            attempts=_number(trailers.get("relay-attempts")),
            origin=_text(trailers.get("relay-origin")),
            decision=_text(trailers.get("relay-decision")),
            pushback_ms=_number(trailers.get("grpc-retry-pushback-ms")),
            idempotency=_text(trailers.get("idempotency-status")),
            traced=trace.recorded if trace else False,
            criticality=planned.criticality,
            client=planned.client,
            messages=ending.messages,
            messages_due=None if planned.style is Style.UNARY else planned.messages,
        )


def _metadata(errand: Errand, trace: CallTrace) -> tuple[tuple[str, str], ...]:
    planned, tried = errand.planned, errand.client_try - 1
    named = (
        ("traceparent", trace.traceparent),
        ("idempotency-key", planned.key),
        ("relay-criticality", planned.criticality),
        ("relay-client-id", planned.client),
        ("grpc-previous-rpc-attempts", str(tried) if tried and errand.says_tried else None),
    )
    return tuple((name, value) for name, value in named if value is not None)


async def _unary_ending(rpc: "grpc.aio.UnaryUnaryCall[bytes, bytes]") -> Ending:
    """How a call that is under way ends."""
    try:
        await rpc
        return Ending("OK", "", _as_dict(await rpc.trailing_metadata()))
    except grpc.aio.AioRpcError as error:
        return _failure(error)


async def _stream_ending(rpc: Any) -> Ending:
    """How a stream ends, and how much it delivered before."""
    messages = 0
    try:
        async for _ in rpc:
            messages += 1
        # A stream that was cut may end its iteration; only its status tells.
        code, trailers = await rpc.code(), _as_dict(await rpc.trailing_metadata())
        return Ending(code.name, await rpc.details() or "", trailers, messages)
    except grpc.aio.AioRpcError as error:
        return replace(_failure(error), messages=messages)


def _failure(error: grpc.aio.AioRpcError) -> Ending:
    return Ending(error.code().name, error.details() or "", _as_dict(error.trailing_metadata()))


def outcome_of(code: str, trailers: Trailers) -> Outcome:
    """What may be believed: OK means done, else the relay's word, else only what the code cannot hide."""
    if code == "OK":
        return Outcome.EXECUTED
    match trailers.get("relay-outcome"):
        case "not-executed":
            return Outcome.NOT_EXECUTED
        case "executed":
            return Outcome.EXECUTED
        case "unknown":
            return Outcome.UNKNOWN
    return Outcome.NOT_EXECUTED if code in NEVER_EXECUTED_CODES else Outcome.UNKNOWN


def reason_of(trailers: Trailers) -> str | None:
    """The reason in the ErrorInfo of ``grpc-status-details-bin``; None without one."""
    packed = trailers.get("grpc-status-details-bin")
    if not isinstance(packed, bytes):
        return None
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(packed).details:
        if detail.Unpack(info):
            return str(info.reason)
    return None


def _as_dict(metadata: grpc.aio.Metadata | None) -> Trailers:
    return dict(metadata) if metadata is not None else {}


def _number(value: str | bytes | None) -> int | None:
    text = _text(value)
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
