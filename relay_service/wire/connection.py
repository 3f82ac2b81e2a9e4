"""What both ends of an HTTP/2 connection have in common: bytes in, events, bytes out.

Reading: every chunk goes through the engine, and all events it gave are dispatched in one loop. Writing:
whatever the events (of this or of other connections) caused within one turn of the event loop leaves in
one write, by a flush scheduled at the first cause. While the transport's buffer is above its limit the
engine is not drained: what waits there is known not to have left, and weighs on `buffered_bytes`, which
is what holds the producers back. Nothing here is a task.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any, Protocol, cast

from relay_service.ports import TimerHandle, Timers
from relay_service.wire import h2
from relay_service.wire.guarded import guarded
from relay_service.wire.sockets import agreed_on_h2, keep_alive

logger = logging.getLogger(__name__)

CREDIT_BATCH_BYTES = 16 * 1024
"""Window is given back in portions of this size (the engine joins them further), the rest at the end."""

RESETS_BETWEEN_WINDOW_CHECKS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """Bounds of one connection, whichever end of it we are."""

    limits: h2.Limits = field(default_factory=h2.Limits)
    handshake_timeout_s: float = 1.0
    """From the transport's connection to the peer's SETTINGS."""
    write_buffer_bytes: int = 256 * 1024
    """Bytes in the transport's buffer above which no more are written to it."""
    write_stall_timeout_s: float = 30.0
    """A peer that lets the buffer stay above its limit for so long is given up."""
    events_while_blocked: int = 2_000
    """Events taken from a peer that does not read what we write; then it is not read from either."""
    close_timeout_s: float = 2.0
    """From the decision to close to the last byte written; then the rest is dropped."""
    stream_high_water_bytes: int = 64 * 1024
    """Bytes queued on a stream above which its producer is told when they have drained, ..."""
    stream_low_water_bytes: int = 16 * 1024
    """... which is when they are down to this."""


class Stream(Protocol):
    """What a connection knows of its streams."""

    id: int
    outstanding_bytes: int
    """DATA delivered and not yet given back to the peer's window."""

    def on_drained(self) -> None:
        """The stream's queue went from above the high-water mark to the low one."""


class Connection(asyncio.Protocol):
    """The shell around one engine. Subclasses dispatch the events that are about streams."""

    __slots__ = (
        "_clogged",
        "_close_timer",
        "_closing",
        "_control_frames_left",
        "_control_refilled_at",
        "_control_refilled_bytes",
        "_events_while_blocked",
        "_handshake_timer",
        "_resets",
        "_stall_timer",
        "_transport",
        "_write_blocked",
        "bytes_received",
        "bytes_sent",
        "bytes_sent_when_heard",
        "clock",
        "engine",
        "flush_due",
        "heard_at",
        "loop",
        "peer",
        "settings",
        "timers",
    )

    def __init__(
        self,
        engine: h2.Engine,
        settings: ConnectionSettings,
        loop: asyncio.AbstractEventLoop,
        timers: Timers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.loop = loop
        self.timers = timers
        self.clock = clock
        self.peer = ""
        self.heard_at = clock()
        """When the last bytes came (monotonic seconds)."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self.bytes_sent_when_heard = 0
        self.flush_due = False
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._write_blocked = False
        self._events_while_blocked = 0
        self._clogged: dict[int, Stream] = {}
        """Streams above the high-water mark, by id."""
        self._handshake_timer: TimerHandle | None = None
        self._stall_timer: TimerHandle | None = None
        self._close_timer: TimerHandle | None = None
        self._control_frames_left = settings.limits.control_frames_per_s
        self._control_refilled_at = self.heard_at
        self._control_refilled_bytes = 0
        self._resets = 0

    # -- asyncio's side ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send our SETTINGS and give the peer its time to send its own."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self.settings.write_buffer_bytes)
        self.heard_at = self.clock()
        keep_alive(transport.get_extra_info("socket"))
        if not agreed_on_h2(transport):
            self.abort("the peer did not agree on HTTP/2 (TLS ALPN h2)")
            return
        self._handshake_timer = self.timers.call_at(
            self.heard_at + self.settings.handshake_timeout_s, self._on_handshake_timeout, None
        )
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Feed the engine and act on all it has to say."""
        self.heard_at = self.clock()
        self.bytes_sent_when_heard = self.bytes_sent
        self.bytes_received += len(data)
        engine = self.engine
        try:
            engine.receive_data(data)
        except h2.EngineError as error:
            self._dispatch_all(engine.events())
            self._on_violation(error)
            return
        self._dispatch_all(engine.events())
        if not self.flush_due and not self._closing and engine.want_write:
            self.schedule_flush()

    def pause_writing(self) -> None:
        """The transport's buffer is over its limit: leave the rest in the engine."""
        self._write_blocked = True
        self._events_while_blocked = 0
        self._stall_timer = self.timers.call_at(
            self.clock() + self.settings.write_stall_timeout_s, self._on_write_stalled, None
        )

    def resume_writing(self) -> None:
        """The peer has read on."""
        self._write_blocked = False
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._transport is not None and not self._closing:
            self._transport.resume_reading()
            self.schedule_flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The transport is gone; subclasses end what was on it."""
        self._transport = None
        self._closing = True
        self._clogged.clear()
        for timer in (self._handshake_timer, self._stall_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._handshake_timer = self._stall_timer = self._close_timer = None

    # -- writing -----------------------------------------------------------------------------------------

    def schedule_flush(self) -> None:
        """Write what the engine holds at the end of this turn of the loop."""
        if not self.flush_due:
            self.flush_due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what the engine holds, if the transport takes it."""
        self.flush_due = False
        transport = self._transport
        if transport is None or self._write_blocked or self._closing:
            return
        engine = self.engine
        try:
            output = engine.data_to_send()
        except h2.EngineError as error:
            self._on_violation(error)
            return
        if output:
            self.bytes_sent += len(output)
            transport.write(output)
        self._on_flushed()
        events = engine.events()
        if events:
            self._dispatch_all(events)
        if self._clogged:
            self._unclog()

    def note_queued(self, stream: Stream) -> None:
        """Called after a stream queued data: remember it when it is over its high-water mark."""
        if self.engine.queued_body_size(stream.id) > self.settings.stream_high_water_bytes:
            self._clogged[stream.id] = stream

    def reset_stream(self, stream: Stream, error_code: int) -> None:
        """Queue RST_STREAM; the engine will report the stream as closed."""
        try:
            self.engine.reset_stream(stream.id, error_code)
        except h2.EngineError:  # the connection is ending, and the stream with it
            return
        self.schedule_flush()
        self._resets += 1
        if self._resets % RESETS_BETWEEN_WINDOW_CHECKS == 0:
            self._check_window()

    def release(self, stream: Stream) -> None:
        """Give back all of a stream's window that was not given back yet."""
        size = stream.outstanding_bytes
        if size:
            stream.outstanding_bytes = 0
            self.acknowledge(stream.id, size)

    def acknowledge(self, stream_id: int, size_bytes: int) -> None:
        """Let the peer send so many bytes more."""
        try:
            self.engine.acknowledge_received_data(size_bytes, stream_id)
        except h2.EngineError:  # the connection is ending: nobody will use the window
            return
        if not self.flush_due and self.engine.want_write:
            self.schedule_flush()

    # -- ending ------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether the transport is there and nobody has decided to close it."""
        return self._transport is not None and not self._closing

    def close(self) -> None:
        """Write what is queued, then close the transport; after a bound, drop it."""
        if self._closing:
            return
        if not self._write_blocked:
            self.flush()
        self._close_transport()

    def _close_transport(self) -> None:
        self._closing = True
        if self._transport is not None and self._close_timer is None:
            self._transport.close()
            self._close_timer = self.timers.call_at(
                self.clock() + self.settings.close_timeout_s, self._on_close_timeout, None
            )

    def abort(self, reason: str) -> None:
        """Drop the transport with whatever is in its buffer. ``reason`` is what streams will be told."""
        self._on_abort(reason)
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _on_close_timeout(self, _: None) -> None:
        self._close_timer = None
        if self._transport is not None:
            self._transport.abort()

    def _on_handshake_timeout(self, _: None) -> None:
        self._handshake_timer = None
        self.abort(f"no HTTP/2 SETTINGS came within {self.settings.handshake_timeout_s:g} s")

    def _on_write_stalled(self, _: None) -> None:
        self._stall_timer = None
        self.abort(f"the peer read nothing for {self.settings.write_stall_timeout_s:g} s")

    def _on_violation(self, error: h2.EngineError) -> None:
        """The engine gave up, and with it the connection; say why to whoever still listens."""
        if self._closing:
            return
        flooded = isinstance(error, h2.DenialOfServiceError)
        code = h2.ErrorCode.ENHANCE_YOUR_CALM if flooded else h2.ErrorCode.PROTOCOL_ERROR
        self._on_abort(f"HTTP/2 {code.name} by the peer: {error}")
        if self._transport is not None:
            self._transport.write(h2.goaway_frame(self._last_peer_stream_id(), code, str(error).encode()))
        self._close_transport()

    # -- events ------------------------------------------------------------------------------------------

    def _dispatch_all(self, events: list[h2.Event]) -> None:
        """Dispatch; an error in the code that handles one stream costs that stream, not the connection."""
        remaining = iter(events)
        while True:
            try:
                self._dispatch(remaining)
                break
            except Exception:
                failed = events[len(events) - length_hint(remaining) - 1]
                logger.exception("handling %s from %s failed", type(failed).__name__, self.peer)
                self._fail_stream(getattr(failed, "stream_id", 0))
        if self._write_blocked:
            self._count_while_blocked(len(events))

    def _dispatch(self, events: Iterator[Any]) -> None:
        """Act on the events in order. Resumed with the rest of them after it raised.

        Events are told apart by their exact type, the cheapest test there is and one that mypy does not
        follow, hence Any.
        """
        raise NotImplementedError

    def _on_control(self, event: h2.Event) -> None:
        """What concerns the connection alone, for both sides."""
        kind = type(event)
        if kind is h2.ConnectionClosed:
            self.close()
            return
        if kind is h2.SettingsReceived and self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        self.count_control_frame()

    def count_control_frame(self) -> None:
        """Spend one of the frames that cost work and carry nothing; a flood of them ends the connection."""
        self._control_frames_left -= 1
        if self._control_frames_left < 0:
            self._refill_control_frames()

    def _refill_control_frames(self) -> None:
        limit = self.settings.limits.control_frames_per_s
        now = self.clock()
        earned = int(limit * (now - self._control_refilled_at))
        earned += (self.bytes_sent - self._control_refilled_bytes) // 128
        if earned <= 0:
            self._end_with(h2.ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")
            return
        self._control_frames_left = min(limit, earned)
        self._control_refilled_at = now
        self._control_refilled_bytes = self.bytes_sent

    def _end_with(self, code: h2.ErrorCode, reason: str) -> None:
        """Close the connection for what its peer did, with a GOAWAY that says so."""
        if self._closing:
            return
        self._on_abort(reason)
        with suppress(h2.EngineError):
            self.engine.terminate_connection(code)
        self.close()

    def _count_while_blocked(self, events: int) -> None:
        self._events_while_blocked += events
        if self._events_while_blocked > self.settings.events_while_blocked and self.open:
            cast("asyncio.Transport", self._transport).pause_reading()

    def _unclog(self) -> None:
        engine = self.engine
        low = self.settings.stream_low_water_bytes
        drained = [
            stream for stream_id, stream in self._clogged.items() if engine.queued_body_size(stream_id) <= low
        ]
        for stream in drained:
            # A callback of another one may have ended this stream meanwhile.
            if self._clogged.pop(stream.id, None) is not None and not guarded(stream.on_drained):
                self._fail_stream(stream.id)

    def forget_queue(self, stream_id: int) -> None:
        """The stream is closed: nobody waits for its queue any more."""
        self._clogged.pop(stream_id, None)

    def _check_window(self) -> None:
        """Retire a connection whose receive window has leaked away.

        When we reset a stream amid one of its DATA frames, the engine forgets the part already received
        without giving it back to the connection's window. At most one frame is lost each time, so it
        takes thousands of such resets; a new connection starts with the window whole.
        """
        window = self.settings.limits.connection_window_bytes
        try:
            left = self.engine.local_window_size
        except h2.EngineError:
            return
        if left + self._outstanding_bytes() < window // 4:
            self._on_window_leaked()

    # -- what differs between the sides ------------------------------------------------------------------

    def _on_flushed(self) -> None:
        """The engine's output was handed to the transport."""

    def _on_abort(self, reason: str) -> None:
        """The connection will be lost for ``reason``."""

    def _on_window_leaked(self) -> None:
        """The connection should be replaced when that suits."""

    def _last_peer_stream_id(self) -> int:
        return 0

    def _outstanding_bytes(self) -> int:
        raise NotImplementedError

    def _fail_stream(self, stream_id: int) -> None:
        raise NotImplementedError
