"""Events in any order that asyncio may bring: bytes, blocked writes, timers, drains, losses, callbacks late.

Here the transport and the clock are played by hand, since no socket would bring such orders often enough.
Thousands of histories a second; each follows from ``SEED`` and its number.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import ngh2
import pytest

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.ports import Attempt, AttemptEnd, CallHead, Headers, Reply
from relay_service.wire.client import ClientConnection, ClientState
from relay_service.wire.client_stream import ClientStream
from relay_service.wire.connection import Connection, ConnectionSettings
from relay_service.wire.heads import RequestTemplate
from relay_service.wire.listener import Listener, ListenerSettings
from relay_service.wire.liveness import LivenessSettings
from relay_service.wire.pool import PoolCounters
from tests.conformance.campaign import SEED, Watch
from tests.conformance.mutation import Frame, chunks, frames_of, message, recordings, spoiled

NORMAL_S = 2.0
SOAK_S = 120.0
METHOD = "/fuzz.Fuzz/Echo"
STEPS_MAX = 60
BODIES = (b"", message(b""), message(b"r" * 40_000), message(b"r" * 200_000))
SETTINGS = ConnectionSettings(write_buffer_bytes=1_000, events_while_blocked=20)


class HandTimers:
    """Timers (and the clock) that move when told to."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.pending: set[HandTimer] = set()

    def call_at(self, when: float, callback: Callable[[Any], None], argument: Any) -> "HandTimer":
        return HandTimer(self, when, callback, argument)

    def advance(self, seconds: float) -> None:
        """Let time pass and fire what is due."""
        self.now += seconds
        for timer in sorted(self.pending, key=lambda timer: timer.when):
            if timer in self.pending and timer.when <= self.now:
                self.pending.discard(timer)
                timer.callback(timer.argument)


class HandTimer:
    """One of them."""

    def __init__(
        self, timers: HandTimers, when: float, callback: Callable[[Any], None], argument: Any
    ) -> None:
        self._timers = timers
        self.when = when
        self.callback = callback
        self.argument = argument
        timers.pending.add(self)

    def cancel(self) -> None:
        self._timers.pending.discard(self)


class HandTransport(asyncio.Transport):
    """Takes all that is written; closing it ends in `lost`, which the history brings about."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False
        self.reading = True
        self.written = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The history says when writing is blocked."""

    def write(self, data: bytes) -> None:  # type: ignore[override]  # bytes is all the connection writes
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def is_closing(self) -> bool:
        return self.closing


class History:
    """A connection between a hand-played transport and hand-played users, driven step by step."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.timers = HandTimers()
        self.transport = HandTransport()
        self.blocked = False
        self.connection: Connection
        self.moves: list[Callable[[], None]] = []

    async def play(self, pieces: Iterator[bytes]) -> None:
        """Bring about so many events, then the end."""
        rng, connection, transport = self.rng, self.connection, self.transport
        connection.connection_made(transport)
        for _ in range(rng.randrange(STEPS_MAX)):
            match rng.randrange(10):
                case 0 | 1 | 2 | 3 if transport.reading and not transport.closing:
                    piece = next(pieces, b"")
                    if piece:
                        connection.data_received(piece)
                case 4:
                    (connection.resume_writing if self.blocked else connection.pause_writing)()
                    self.blocked = not self.blocked
                case 5:
                    self.timers.advance(rng.choice((0.001, 0.3, 0.8, 6.0)))
                case 6 | 7:
                    rng.choice(self.moves)()
                case 8 if rng.random() < 0.1:
                    rng.choice((connection.close, lambda: connection.abort("the history says so")))()
                case _:
                    await asyncio.sleep(0)
            if transport.closing and rng.random() < 0.5:
                break
        connection.connection_lost(rng.choice((None, ConnectionResetError("by the history"))))
        assert not self.timers.pending, "a timer outlives its connection"
        # What was due at the end of the turn comes all the same.
        await asyncio.sleep(0)
        await asyncio.sleep(0)


# -- the callers' side -------------------------------------------------------------------------------------


class FickleCall:
    """Answers when and as it likes, also when it is too late."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.cancelled = 0
        self.ended = False
        self.got_bytes = 0

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        self.got_bytes += len(data)

    def on_cancelled(self) -> None:
        self.cancelled += 1

    def on_reply_drained(self) -> None:
        self.reply.send_data(message(b"more"))

    def move(self, rng: random.Random) -> None:
        match rng.randrange(5):
            case 0:
                self.reply.send_headers([(b"x-h", b"1")])
            case 1 | 2:
                self.reply.send_data(rng.choice(BODIES))
            case 3:
                self.ended = True
                self.reply.send_trailers(rng.choice(list(Code)), "said the history", [(b"x-t", b"2")])
            case 4:
                self.reply.consumed(rng.randrange(self.got_bytes + 1))


class ServerHistory(History):
    """One caller's connection."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.calls: list[FickleCall] = []
        settings = ListenerSettings(connection=SETTINGS)
        self.listener = Listener(self._handle, self.timers, settings, clock=lambda: self.timers.now)
        self.connection = self.server = self.listener._make_connection()
        self.moves = [self._move_a_call] * 12 + [self.server.drain]

    def _handle(self, head: CallHead, reply: Reply) -> FickleCall | None:
        call = FickleCall(reply)
        if self.rng.random() < 0.1:
            reply.send_trailers(Code.RESOURCE_EXHAUSTED, "at once", ())
            return None
        self.calls.append(call)
        return call

    def _move_a_call(self) -> None:
        if self.calls:
            self.rng.choice(self.calls).move(self.rng)


async def a_callers_history(rng: random.Random, streams: list[list[Frame]]) -> None:
    history = ServerHistory(rng)
    await history.play(chunks(rng, spoiled(rng, rng.choice(streams), rng.choice(streams))))
    assert history.listener.connections == 0
    assert not history.server.streams
    assert not history.server._clogged
    assert not history.timers.pending
    assert all(call.cancelled <= 1 for call in history.calls)
    assert all(call.cancelled or call.ended for call in history.calls)


# -- the upstream's side -----------------------------------------------------------------------------------


class CountingSink:
    """Counts the ends of one attempt."""

    def __init__(self) -> None:
        self.ends: list[AttemptEnd] = []
        self.got_bytes = 0

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        assert not self.ends

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        assert not self.ends
        self.got_bytes += len(data)

    def on_attempt_drained(self, attempt: Attempt) -> None:
        attempt.send_data(b"", end=True)

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        self.ends.append(end)


class ClientHistory(History):
    """One connection to an upstream."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.attempts: list[tuple[ClientStream, CountingSink]] = []
        self.cancelled: set[int] = set()
        self.states: list[ClientState] = []
        self.counters = PoolCounters()
        loop = asyncio.get_running_loop()
        self.connection = self.client = ClientConnection(
            self,
            RequestTemplate("http", "upstream"),
            "upstream",
            settings=SETTINGS,
            liveness=LivenessSettings(),
            loop=loop,
            timers=self.timers,
            clock=lambda: self.timers.now,
        )
        self.moves = [self._open] * 4 + [self._move_an_attempt] * 8 + [self.client.retire]

    def on_state(self, connection: ClientConnection) -> None:
        self.states.append(connection.state)

    def on_slot_free(self, connection: ClientConnection) -> None:
        """Nobody waits."""

    def leave(self, stream: ClientStream) -> None:
        raise AssertionError("no attempt waits here")

    def _open(self) -> None:
        if self.client.state is not ClientState.READY or not self.client.has_room:
            return
        sink = CountingSink()
        deadline = self.rng.choice((None, self.timers.now + 1.0))
        stream = ClientStream(self, METHOD[1:], [(b"x-h", b"1")], deadline, sink)
        if self.client.open_stream(stream):
            self.attempts.append((stream, sink))

    def _move_an_attempt(self) -> None:
        if not self.attempts:
            return
        stream, sink = self.rng.choice(self.attempts)
        match self.rng.randrange(5):
            case 0 | 1:
                stream.send_data(self.rng.choice(BODIES), end=self.rng.random() < 0.3)
            case 2:
                stream.consumed(self.rng.randrange(sink.got_bytes + 1))
            case 3:
                if not sink.ends:
                    self.cancelled.add(id(sink))
                stream.cancel()


def answers(rng: random.Random) -> list[Frame]:
    """What an honest server says to streams 1 to 11, if they are opened in time."""
    caller = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
    server = ngh2.Connection(ngh2.Role.SERVER, ngh2.Configuration())
    caller.initiate_connection({})
    server.initiate_connection({ngh2.Setting.MAX_CONCURRENT_STREAMS: 10})
    said = server.data_to_send()
    for _ in range(6):
        stream_id = caller.send_request(
            [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"a")]
        )
        server.receive_data(caller.data_to_send())
        server.send_response(stream_id, [(b":status", b"200"), (b"content-type", b"application/grpc")])
        server.send_data(stream_id, message(b"a" * rng.choice((0, 10, 9_000))))
        server.send_trailers(stream_id, [(b"grpc-status", b"0")])
        said += server.data_to_send()
    return frames_of(said)


async def an_upstreams_history(rng: random.Random, honest: list[Frame]) -> None:
    history = ClientHistory(rng)
    # The handshake is mostly left whole, and streams opened before more is said.
    settings, rest = honest[:1], honest[1:]
    if rng.random() < 0.1:
        settings = []

    def pieces() -> Iterator[bytes]:
        yield b"".join(frame.encode() for frame in settings)
        for _ in range(rng.randint(1, 6)):
            history.moves[0]()
        yield from chunks(rng, spoiled(rng, rest, honest))

    await history.play(pieces())
    assert history.client.state is ClientState.LOST
    assert history.states.count(ClientState.LOST) == 1
    assert not history.client.streams
    assert not history.client._clogged
    assert not history.timers.pending
    for _, sink in history.attempts:
        assert len(sink.ends) == (id(sink) not in history.cancelled)
        assert all(end.delivery is not Delivery.ANSWERED or end.code in Code for end in sink.ends)


# -- both --------------------------------------------------------------------------------------------------


async def histories(caplog: pytest.LogCaptureFixture, duration_s: float) -> None:
    watch = Watch(caplog)
    streams = recordings(METHOD)
    honest = answers(random.Random(SEED))
    ends_at = time.monotonic() + duration_s
    number = 0
    while time.monotonic() < ends_at:
        try:
            await a_callers_history(random.Random(f"{SEED} history {number}"), streams)
            await an_upstreams_history(random.Random(f"{SEED} history {number}"), honest)
        except Exception as error:
            error.add_note(f"seed {SEED}, history {number}")
            raise
        watch.nothing_went_wrong(f"seed {SEED}, history {number}")
        number += 1
    print(f"seed {SEED}: {number} histories of each side")


async def test_no_order_of_events_breaks_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    await histories(caplog, NORMAL_S)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 60)
async def test_no_order_of_events_breaks_a_connection_in_minutes(caplog: pytest.LogCaptureFixture) -> None:
    await histories(caplog, SOAK_S)
