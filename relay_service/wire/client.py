"""The upstream's side of the wire: one connection, the attempts on it, and whether it still lives.

Evidence must be exact, so the engine may never hold a stream's HEADERS back by itself: callers of
`ClientConnection.open_stream` stay within the peer's MAX_CONCURRENT_STREAMS.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Protocol

from relay_service.ports import TimerHandle, Timers
from relay_service.wire import h2, heads
from relay_service.wire.client_stream import ClientStream
from relay_service.wire.connection import Connection, ConnectionSettings
from relay_service.wire.guarded import guarded
from relay_service.wire.liveness import Liveness, LivenessSettings, Step
from relay_service.wire.pool import PoolCounters

STREAMS_UNLIMITED = 2**31 - 1


class ClientState(Enum):
    """A connection's life; it only ever moves downwards, but for RESTING, which may become READY again."""

    CONNECTING = auto()
    """Until the peer's SETTINGS have come."""
    READY = auto()
    RESTING = auto()
    """Silent for so long that no more pings are allowed: it may be dead, so it gets no new streams."""
    RETIRED = auto()
    """No new streams for good; closes with its last one."""
    LOST = auto()


class ClientConnectionOwner(Protocol):
    """Who keeps connections to an upstream (`relay_service.upstream.Upstream`)."""

    counters: PoolCounters

    def on_state(self, connection: "ClientConnection") -> None:
        """`ClientConnection.state` changed, and with it what may be opened on the connection."""

    def on_slot_free(self, connection: "ClientConnection") -> None:
        """A stream ended, or the peer allows more of them."""


class ClientConnection(Connection):
    """One connection to an upstream."""

    __slots__ = (
        "_asked_at",
        "_liveness",
        "_lost_reason",
        "_owner",
        "_pinged_at",
        "_submitted_id",
        "_template",
        "_uploaded_at",
        "_watch",
        "_written_id",
        "ended",
        "has_answered",
        "ready",
        "state",
        "streams",
        "streams_max",
        "upload_bytes",
    )

    def __init__(
        self,
        owner: ClientConnectionOwner,
        template: heads.RequestTemplate,
        peer: str,
        *,
        settings: ConnectionSettings,
        liveness: LivenessSettings,
        loop: asyncio.AbstractEventLoop,
        timers: Timers,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(h2.client_engine(settings.limits), settings, loop, timers, clock)
        self._owner = owner
        self._template = template
        self.peer = peer
        self.state = ClientState.CONNECTING
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done with the peer's SETTINGS; ConnectionError when the connection is lost before."""
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when the transport is gone."""
        self.has_answered = False
        """Whether the peer has answered a call over it."""
        self.streams: dict[int, ClientStream] = {}
        self.streams_max = STREAMS_UNLIMITED
        self._submitted_id = 0
        """The highest stream whose HEADERS were given to the engine, ..."""
        self._written_id = 0
        """... and the highest whose HEADERS were given to the transport."""
        self._lost_reason = ""
        self._liveness = Liveness(liveness)
        self.upload_bytes = liveness.upload_bytes
        self._uploaded_at = -math.inf
        """When a stream last was in the middle of a large upload."""
        self._watch: TimerHandle | None = None
        self._pinged_at: float | None = None
        """When the ping was sent whose answer is awaited."""
        self._asked_at = 0.0
        """When a stream was opened on the idle connection. While it is later than `heard_at`, an answer is
        owed, even when the stream was given up since: else short attempts would hide a dead connection."""

    # -- streams -----------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether the peer allows one more stream."""
        return len(self.streams) < self.streams_max

    def open_stream(self, stream: ClientStream) -> bool:
        """Send the attempt's headers; a request that cannot be sent ends its attempt, a little later.

        False when it is the connection that can open no more streams: it has no room and retires. Nothing
        is ended, nobody told and nothing raised from inside this call.
        """
        now = self.clock()
        timeout_s = None if stream.deadline is None else stream.deadline - now
        try:
            headers = self._template.headers(stream.method, stream.metadata, timeout_s)
            stream_id = self.engine.send_request(headers)
        except h2.USED_UP:
            self.streams_max = 0
            self.loop.call_soon(self.retire)
            return False
        except (h2.EngineError, ValueError) as error:  # ValueError: a method that is not ASCII
            self.loop.call_soon(stream.on_unsendable, error)
            return True
        if not self.streams and self._asked_at <= self.heard_at:
            self._asked_at = now
        self.streams[stream_id] = stream
        self._submitted_id = stream_id
        stream.bind(self, stream_id, now)
        if self._watch is None:
            self._watch = self.timers.call_at(now + self._liveness.settings.silence_s, self._on_watch, None)
        if not self.flush_due:
            self.schedule_flush()
        return True

    def wrote(self, stream: ClientStream) -> bool:
        """Whether the stream's headers were given to the transport."""
        return stream.id <= self._written_id

    # -- life --------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """Open no more streams; close with the last one."""
        if self.state in (ClientState.RETIRED, ClientState.LOST):
            return
        self._become(ClientState.RETIRED)
        self._close_when_done()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every stream what is known of it."""
        super().connection_lost(exc)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        reason = self._lost_reason or (str(exc) if exc else "closed by the peer")
        self._lost_reason = reason
        # First everybody stops counting on this connection, then the streams end: a sink may retry at once.
        streams, self.streams = self.streams, {}
        self._become(ClientState.LOST)
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
            self.ready.exception()  # it may be that nobody asks any more
        if not self.ended.done():
            self.ended.set_result(None)
        for stream in streams.values():
            stream.outstanding_bytes = 0
            guarded(stream.on_lost, f"connection to {self.peer} lost: {reason}")

    @property
    def lost_reason(self) -> str:
        """Why the connection ended."""
        return self._lost_reason

    def _become(self, state: ClientState) -> None:
        if self.state is not state:
            self.state = state
            self._owner.on_state(self)

    def _close_when_done(self) -> None:
        if self.state is ClientState.RETIRED and not self.streams and self.open:
            self._lost_reason = self._lost_reason or "retired"
            with suppress(h2.EngineError):
                self.engine.terminate_connection(h2.ErrorCode.NO_ERROR)
            # Not from inside the dispatch that ended the last stream.
            self.loop.call_soon(self.close)

    def _on_watch(self, _: None) -> None:
        self._watch = None
        if not self.open or (not self.streams and self._asked_at <= self.heard_at):
            return
        now = self.clock()
        silent_since = max(self.heard_at, self._asked_at)
        step, again_at = self._liveness.check(
            self.heard_at, silent_since, now, uploading=self._is_uploading(now)
        )
        match step:
            case Step.WAIT:
                pass
            case Step.PING:
                with suppress(h2.EngineError):  # about to close
                    self.engine.ping()
                self.flush()
                self._owner.counters.pings += 1
                self._pinged_at = now
            case Step.REST:
                if self.state is ClientState.READY:
                    self._become(ClientState.RESTING)
            case Step.DEAD:
                quiet_s = now - self.heard_at
                self._owner.counters.zombies += 1
                self.abort(f"silent for {quiet_s:.2f} s and a ping was not answered")
                return
        self._watch = self.timers.call_at(again_at, self._on_watch, None)

    def note_upload(self, stream: ClientStream) -> None:
        """The stream sent `upload_bytes` more: in a short time they are a large upload."""
        now = self.clock()
        if now - stream.marked_at <= self._liveness.settings.upload_recent_s:
            self._uploaded_at = now
        stream.marked_at = now
        stream.sent_bytes = 0

    def _is_uploading(self, now: float) -> bool:
        """Whether much of what we sent may still be on its way, or waits for the peer's window.

        To have heard from the peer since does not mean that it arrived: window updates for old data come
        while megabytes are still in the buffers of a slow way. Hence the look at the last seconds. It is
        one at single streams, for many small calls are no upload and a dead connection must not hide
        behind them.
        """
        if self.engine.queued_body_size() > 0:
            self._uploaded_at = now
        return (
            now - self._uploaded_at <= self._liveness.settings.upload_recent_s
            or self.bytes_sent - self.bytes_sent_when_heard > self.upload_bytes
        )

    def _on_work(self) -> None:
        """The peer sent HEADERS or DATA after pings had been spent: they may be spent again."""
        self._liveness.on_work()
        if self.state is ClientState.RESTING:
            self._become(ClientState.READY)

    # -- events ------------------------------------------------------------------------------------------

    def _dispatch(self, events: Iterator[Any]) -> None:
        streams = self.streams
        liveness = self._liveness
        for event in events:
            kind = type(event)
            if kind is h2.DataReceived:
                self._on_data(event.stream_id, event.data, event.end_stream)
            elif kind is h2.ResponseReceived:
                self.has_answered = True
                stream = streams.get(event.stream_id)
                if stream is not None:
                    stream.on_response(event.headers, event.end_stream)
            elif kind is h2.TrailersReceived:
                stream = streams.get(event.stream_id)
                if stream is not None:
                    stream.on_trailers(event.headers)
            elif kind is h2.StreamClosed:
                self._on_stream_closed(event.stream_id, event.error_code, event.local_error)
                continue
            elif kind is not h2.InformationalResponseReceived:
                self._on_other(event)
                continue
            if liveness.pings_spent:
                self._on_work()

    def _on_data(self, stream_id: int, data: bytes, end: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.on_data(data, end)
        elif data:
            self.acknowledge(stream_id, len(data))
        if not data and not end:
            self.count_control_frame()

    def _on_stream_closed(self, stream_id: int, error_code: int, local_error: Exception | None) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            return
        if self._clogged:
            self.forget_queue(stream_id)
        try:
            if not stream.over:
                stream.on_closed(error_code, local_error)
        finally:
            if self.state is ClientState.RETIRED:
                self._close_when_done()
            else:
                self._owner.on_slot_free(self)

    def _on_other(self, event: Any) -> None:
        kind = type(event)
        if kind is h2.StreamReset:
            stream = self.streams.get(event.stream_id)
            if stream is not None:
                stream.on_reset(event.error_code)
            return
        if kind is h2.SettingsReceived:
            self._on_settings(event.settings)
        elif kind is h2.PingAcknowledged:
            if self._pinged_at is not None:  # else it answers nothing that was asked
                self._owner.counters.ping_answered(self.clock() - self._pinged_at)
                self._pinged_at = None
        elif kind is h2.GoAwayReceived:
            self._owner.counters.goaways += 1
            self._on_goaway(event.error_code, event.debug_data)
        elif kind is h2.ConnectionClosed and not self._lost_reason:
            self._lost_reason = "the peer ended the connection"
        self._on_control(event)

    def _on_settings(self, settings: dict[int, int]) -> None:
        self.streams_max = settings.get(h2.Setting.MAX_CONCURRENT_STREAMS, self.streams_max)
        if self.state is ClientState.CONNECTING:
            self._become(ClientState.READY)
            if not self.ready.done():
                self.ready.set_result(None)
        else:
            self._owner.on_slot_free(self)

    def _on_goaway(self, error_code: int, debug: bytes) -> None:
        if error_code != h2.ErrorCode.NO_ERROR:
            text = debug[:128].decode("ascii", "replace")
            self._lost_reason = f"GOAWAY {h2.error_name(error_code)} {text}".rstrip()
        # The engine closes the streams above the last one as refused; their events come next.
        self.retire()

    # -- what differs ------------------------------------------------------------------------------------

    def _on_flushed(self) -> None:
        self._written_id = self._submitted_id

    def _on_abort(self, reason: str) -> None:
        self._lost_reason = self._lost_reason or reason

    def _on_window_leaked(self) -> None:
        self.retire()

    def _outstanding_bytes(self) -> int:
        return sum(stream.outstanding_bytes for stream in self.streams.values())

    def _fail_stream(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            guarded(stream.fail)
