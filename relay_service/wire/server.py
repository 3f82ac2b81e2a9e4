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
from relay_service.wire.server_stream import ServerStream
from relay_service.wire.sockets import address_text

_DRAIN_PING = b"draining"
DRAIN_NOTICE_S_MAX = 1.0
"""Between the two GOAWAYs of a drain, when the peer does not answer the ping that should tell."""


@dataclass(slots=True)
class ServerCounters:
    """What the callers' side has seen, since the start."""

    connections_accepted: int = 0
    connections_refused: int = 0
    """Closed at once, because as many as allowed were open."""
    connections_failed: int = 0
    """Ended by us: protocol errors, floods, stalls, no handshake."""
    streams: int = 0
    http_rejections: int = 0
    """Requests that are not gRPC (HTTP status 405 or 415)."""
    call_rejections: int = 0
    """Malformed gRPC requests, answered with a status."""
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
        "_counters",
        "_drain_timer",
        "_draining",
        "_early",
        "_handler",
        "_last_stream_id",
        "_owner",
        "streams",
    )

    def __init__(
        self,
        owner: ServerConnectionOwner,
        handler: CallHandler,
        *,
        settings: ConnectionSettings,
        loop: asyncio.AbstractEventLoop,
        timers: Timers,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(h2.server_engine(settings.limits), settings, loop, timers, clock)
        self._owner = owner
        self._counters = owner.counters
        self._handler = handler
        self.streams: dict[int, ServerStream] = {}
        self._early: list[ServerStream] = []
        """Streams answered while their request was still coming."""
        self._last_stream_id = 0
        self._draining = False
        self._drain_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the owner's connections, if there is room."""
        self.peer = address_text(transport.get_extra_info("peername"))
        if self._owner.on_connection_made(self):
            super().connection_made(transport)
        else:
            self._transport = None
            self._closing = True
            cast("asyncio.Transport", transport).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """All calls on the connection lose their caller."""
        super().connection_lost(exc)
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        streams, self.streams = self.streams, {}
        self._early.clear()
        for stream in streams.values():
            stream.on_closed()
        self._owner.on_connection_lost(self)

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

    # -- events ------------------------------------------------------------------------------------------

    def note_early_answer(self, stream: ServerStream) -> None:
        """The reply is complete before the request: stop the request once the reply has left."""
        self._early.append(stream)

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
            elif kind is h2.PingAcknowledged:
                if event.opaque_data == _DRAIN_PING and self._drain_timer is not None:
                    self._on_notice_heard(None)
            else:
                self._on_control(event)

    def _on_request(self, stream_id: int, headers: Headers, end: bool) -> None:
        counters = self._counters
        counters.streams += 1
        self._last_stream_id = stream_id
        stream = self.streams[stream_id] = ServerStream(self, stream_id, request_open=not end)
        try:
            method, metadata, timeout_s = heads.parse_request(headers)
        except heads.NotGrpcError as rejection:
            counters.http_rejections += 1
            stream.reject(heads.http_error(rejection.http_status))
            return
        except heads.MalformedCallError as rejection:
            counters.call_rejections += 1
            stream.reject(heads.trailers_only(rejection.code, rejection.message, ()))
            return
        stream.begin(self._handler, CallHead(method, metadata, timeout_s, self.heard_at, self.peer))

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
        stream.on_closed()

    def _on_flushed(self) -> None:
        if self._early:
            waiting, self._early = self._early, []
            self._early += [stream for stream in waiting if not self._stop_request(stream)]

    def _stop_request(self, stream: ServerStream) -> bool:
        """Reset an answered stream whose request goes on (RFC 9113 section 8.1), once its reply has left.

        The engine would drop what it still holds of the reply. Trailers wait there without any data queued
        when a window is closed, hence the look at the windows.
        """
        if not stream.request_open or stream.id not in self.streams:
            return True
        engine = self.engine
        try:
            if (
                stream.buffered_bytes
                or min(engine.remote_window_size, engine.stream_remote_window_size(stream.id)) <= 0
            ):
                return False
        except h2.EngineError:
            return True
        self.reset_stream(stream, h2.ErrorCode.NO_ERROR)
        return True

    # -- what differs ------------------------------------------------------------------------------------

    def _on_abort(self, reason: str) -> None:
        self._counters.connections_failed += 1
        self._counters.last_failure = reason

    def _on_window_leaked(self) -> None:
        self.drain()

    def _last_peer_stream_id(self) -> int:
        return self._last_stream_id

    def _outstanding_bytes(self) -> int:
        return sum(stream.outstanding_bytes for stream in self.streams.values())

    def _fail_stream(self, stream_id: int) -> None:
        self._counters.handler_failures += 1
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.reset_stream(stream, h2.ErrorCode.INTERNAL_ERROR)
