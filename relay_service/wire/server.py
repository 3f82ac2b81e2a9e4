"""The callers' side: HTTP/2 streams become calls for a handler, and its replies become frames.

One object per call and no task. A request is judged and answered, or handed over, when its headers
arrive; what the handler then sends is queued in the engine and leaves with the connection's next flush.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

from relay_service.ports import CallHandler, CallHead, Headers, TimerHandle, Timers
from relay_service.wire import h2, heads
from relay_service.wire.connection import Connection, ConnectionSettings
from relay_service.wire.departures import Departures, DepartureSettings
from relay_service.wire.frames import WINDOW_BYTES_MAX, CutOff, Found, FrameWatch, Offence, Widening
from relay_service.wire.guarded import guarded
from relay_service.wire.server_stream import ServerStream
from relay_service.wire.sockets import address_text, identity_of

_DRAIN_PING = b"draining"
DRAIN_NOTICE_S_MAX = 1.0
"""Between the two GOAWAYs of a drain, when the peer does not answer the ping that should tell."""

DEPARTURE_LOOKS_PER_LINGER = 4
"""How often replies that have not left are looked at, in the time they may stand still."""


@dataclass(slots=True)
class ServerCounters:
    """What the callers' side has seen, since the start."""

    connections_accepted: int = 0
    connections_refused: int = 0
    """Closed at once, because as many as allowed were open."""
    connections_refused_of_peer: int = 0
    """Closed at once, because their peer had as many as one peer may have."""
    connections_failed: int = 0
    """Ended by us: protocol errors, floods, stalls, no handshake."""
    streams: int = 0
    http_rejections: int = 0
    """Requests that are not gRPC (HTTP status 405 or 415)."""
    call_rejections: int = 0
    """Malformed gRPC requests, answered with a status."""
    replies_given_up: int = 0
    """Replies reset because the caller did not take them, or others before them."""
    handler_failures: int = 0
    last_failure: str = ""


class ServerConnectionOwner(Protocol):
    """Who accepts connections (`relay_service.wire.listener.Listener`)."""

    counters: ServerCounters

    def on_connection_made(self, connection: "ServerConnection") -> bool:
        """Whether it may stay."""

    def on_connection_lost(self, connection: "ServerConnection") -> None:
        """It is gone."""


class ServerConnection(Connection):
    """One caller's connection."""

    __slots__ = (
        "_departures_look_s",
        "_departures_timer",
        "_drain_timer",
        "_draining",
        "_frames",
        "_handler",
        "_held_back",
        "_identity",
        "_last_stream_id",
        "_owner",
        "_streams_max",
        "answered",
        "counters",
        "departures",
        "streams",
        "whose",
    )

    def __init__(
        self,
        owner: ServerConnectionOwner,
        handler: CallHandler,
        *,
        settings: ConnectionSettings,
        departures: DepartureSettings,
        loop: asyncio.AbstractEventLoop,
        timers: Timers,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(h2.server_engine(settings.limits), settings, loop, timers, clock)
        self._owner = owner
        self.counters = owner.counters
        self._handler = handler
        self.streams: dict[int, ServerStream] = {}
        self.answered: list[ServerStream] = []
        """Streams whose reply became complete, or whose window opened after that, since the last flush."""
        self.departures = Departures(departures, self.engine.queued_body_size)
        """Streams whose reply is complete and had not left by the last flush."""
        self._departures_timer: TimerHandle | None = None
        self._departures_look_s = departures.linger_s / DEPARTURE_LOOKS_PER_LINGER
        self._frames = FrameWatch()
        self._held_back = b""
        """The start of a frame of which more has to come before it may go to the engine."""
        self._last_stream_id = 0
        self._streams_max = settings.limits.streams_max
        self._identity = ""
        self.whose = ""
        """Who is counted for this connection: the verified identity, else the address without its port."""
        self._draining = False
        self._drain_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the owner's connections, if there is room."""
        self.peer = address_text(transport.get_extra_info("peername"))
        self._identity = identity_of(transport)
        self.whose = self._identity or self.peer.rpartition(":")[0]
        if self._owner.on_connection_made(self):
            super().connection_made(transport)
        else:
            self._transport = None
            self._closing = True
            cast("asyncio.Transport", transport).abort()

    def data_received(self, data: bytes) -> None:
        """Feed the engine what it may see, and deal with the rest before it does."""
        if self._held_back:
            data, self._held_back = self._held_back + data, b""
        found = self._frames.look(data, self.streams)
        if found is None:
            super().data_received(data)
        else:
            self._deal_with(found, memoryview(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """All calls on the connection lose their caller."""
        super().connection_lost(exc)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if self._departures_timer is not None:
            self._departures_timer.cancel()
            self._departures_timer = None
        streams, self.streams = self.streams, {}
        self.answered.clear()
        self.departures.clear()
        for stream in streams.values():
            guarded(stream.on_closed)
        self._owner.on_connection_lost(self)

    def allow_streams(self, streams_max: int) -> None:
        """Let the caller open so many streams at once, unless it may open more already."""
        if self.open and streams_max > self._streams_max:
            self._streams_max = streams_max
            h2.allow_streams(self.engine, streams_max)
            self.schedule_flush()

    # -- drain -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let the caller go elsewhere without losing a call.

        First a GOAWAY that excludes no stream, so that the caller stops opening any; when the ping behind
        it is answered (or after a second) no stream can be on its way any more, and the second GOAWAY
        names the last one. The connection closes when its streams have ended.
        """
        if self._draining or not self.open:
            return
        self._draining = True
        try:
            self.engine.send_shutdown_notice()
            self.engine.ping(_DRAIN_PING)
        except h2.EngineError:
            self.close()
            return
        self.schedule_flush()
        self._drain_timer = self.timers.call_at(
            self.clock() + DRAIN_NOTICE_S_MAX, self._on_notice_heard, None
        )

    def _on_notice_heard(self, _: None) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if not self.open:
            return
        try:
            self.engine.send_goaway(h2.ErrorCode.NO_ERROR)
        except h2.EngineError:
            self.close()
            return
        self.schedule_flush()

    # -- frames that the engine is not to judge -------------------------------------------------------------

    def _deal_with(self, found: Found | None, data: memoryview) -> None:
        """Feed the engine what came before each frame found, then deal with that one."""
        while found is not None:
            if found.at:
                super().data_received(bytes(data[: found.at]))
            if not self.open:
                return
            match found:
                case Offence():
                    self._end_with(found.code, f"HTTP/2 {found.code.name} by the peer: {found.text}")
                    return
                case CutOff():
                    self._held_back = bytes(data[found.at :])
                    return
                case Widening():
                    if self._overflows(found):
                        self.count_control_frame()
                    else:
                        super().data_received(bytes(data[found.at : found.end]))
                    data = data[found.end :]
            found = self._frames.look(data, self.streams)
        if data and self.open:
            super().data_received(bytes(data))

    def _overflows(self, widening: Widening) -> bool:
        """Whether the stream's window would overflow. Then the stream is reset, and no other pays for it."""
        stream = self.streams.get(widening.stream_id)
        if stream is None:
            return False
        window_bytes = self.engine.stream_remote_window_size(stream.id)
        if window_bytes + widening.increment_bytes <= WINDOW_BYTES_MAX:
            return False
        self.reset_stream(stream, h2.ErrorCode.FLOW_CONTROL_ERROR)
        return True

    # -- events ------------------------------------------------------------------------------------------

    def _dispatch(self, events: Iterator[Any]) -> None:
        streams = self.streams
        for event in events:
            kind = type(event)
            if kind is h2.RequestReceived:
                self._on_request(event.stream_id, event.headers, event.end_stream)
            elif kind is h2.DataReceived:
                self._on_data(event.stream_id, event.data, event.end_stream)
            elif kind is h2.StreamClosed:
                stream = streams.pop(event.stream_id, None)
                if stream is not None:
                    self._on_stream_closed(stream)
            elif kind is h2.TrailersReceived:
                # gRPC knows no request trailers; they end the request like an empty last frame.
                stream = streams.get(event.stream_id)
                if stream is not None:
                    stream.on_data(b"", end=True)
            else:
                self._on_other(event)

    def _on_other(self, event: Any) -> None:
        kind = type(event)
        if kind is h2.PingAcknowledged:
            if event.opaque_data == _DRAIN_PING and self._drain_timer is not None:
                self._on_notice_heard(None)
            return
        if kind is h2.WindowUpdated and event.stream_id in self.departures:
            self.answered.append(self.streams[event.stream_id])
        self._on_control(event)

    def _on_request(self, stream_id: int, headers: Headers, end: bool) -> None:
        counters = self.counters
        counters.streams += 1
        self._last_stream_id = stream_id
        stream = self.streams[stream_id] = ServerStream(self, stream_id, request_open=not end)
        try:
            method, metadata, timeout_s, retried = heads.parse_request(headers)
        except heads.NotGrpcError as rejection:
            counters.http_rejections += 1
            stream.reject(heads.http_error(rejection.http_status))
            return
        except heads.MalformedCallError as rejection:
            counters.call_rejections += 1
            stream.reject(heads.trailers_only(rejection.code, rejection.message, ()))
            return
        head = CallHead(
            method, metadata, timeout_s, self.heard_at, self.peer, self._identity, retried=retried
        )
        stream.begin(self._handler, head)

    def _on_data(self, stream_id: int, data: bytes, end: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.on_data(data, end)
        elif data:
            self.acknowledge(stream_id, len(data))
        if not data and not end:
            self.count_control_frame()

    def _on_stream_closed(self, stream: ServerStream) -> None:
        stream.request_open = False
        if stream.outstanding_bytes:
            self.release(stream)
        if self._clogged:
            self.forget_queue(stream.id)
        if self.departures:
            self.departures.remove(stream.id)
        stream.on_closed()

    # -- replies on their way out ------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what the engine holds, and see which replies left with it."""
        super().flush()
        if self.answered:
            answered, self.answered = self.answered, []
            for stream in answered:
                if stream.id in self.streams:
                    self._see_off(stream)

    def _see_off(self, stream: ServerStream) -> None:
        """Stop a request that outlasts its reply, or watch over a reply that has not left."""
        if stream.request_open and self._has_left(stream):
            self.reset_stream(stream, h2.ErrorCode.NO_ERROR)  # RFC 9113 section 8.1
            return
        self.departures.add(stream.id, self.clock())
        if self._departures_timer is None:
            self._look_at_departures_later()

    def _has_left(self, stream: ServerStream) -> bool:
        """Whether nothing of an answered stream's reply is in the engine, which a reset would drop.

        Trailers wait there without any data queued when a window is closed, hence the look at the windows.
        """
        if self._write_blocked or stream.buffered_bytes:
            return False
        engine = self.engine
        try:
            return min(engine.remote_window_size, engine.stream_remote_window_size(stream.id)) > 0
        except h2.EngineError:  # the connection is ending
            return False

    def _look_at_departures_later(self) -> None:
        self._departures_timer = self.timers.call_at(
            self.clock() + self._departures_look_s, self._look_at_departures, None
        )

    def _look_at_departures(self, _: None) -> None:
        self._departures_timer = None
        if not self.departures:
            return
        overdue = self.departures.overdue(self.clock())
        for stream_id in overdue:
            self.counters.replies_given_up += 1
            self.departures.remove(stream_id)
            self.reset_stream(self.streams[stream_id], h2.ErrorCode.CANCEL)
        for stream_id in self.departures:
            stream = self.streams[stream_id]
            if stream.request_open and self._has_left(stream):
                self.reset_stream(stream, h2.ErrorCode.NO_ERROR)
        self._look_at_departures_later()

    # -- what differs ------------------------------------------------------------------------------------

    def _on_abort(self, reason: str) -> None:
        self.counters.connections_failed += 1
        self.counters.last_failure = reason

    def _on_window_leaked(self) -> None:
        self.drain()

    def _last_peer_stream_id(self) -> int:
        return self._last_stream_id

    def _outstanding_bytes(self) -> int:
        return sum(stream.outstanding_bytes for stream in self.streams.values())

    def _fail_stream(self, stream_id: int) -> None:
        self.counters.handler_failures += 1
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.reset_stream(stream, h2.ErrorCode.INTERNAL_ERROR)
