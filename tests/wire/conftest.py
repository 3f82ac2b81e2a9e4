"""A relay without policy, real gRPC peers around it, and raw HTTP/2 peers that misbehave on order."""

import asyncio
import gc
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import ngh2
import pytest

from relay_service.ports import Attempt, AttemptEnd, CallHead, Headers, Reply
from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream, UpstreamSettings
from relay_service.wire.connection import Connection, ConnectionSettings
from relay_service.wire.listener import Listener, ListenerSettings

HIGH_WATER_BYTES = ConnectionSettings().stream_high_water_bytes
BOUND_S = 10.0
"""For waits that end at once when all is well; generous, for the machine may be busy."""


class Bridge:
    """One call handed straight to one attempt: an `IncomingCall` and an `AttemptSink` in one."""

    __slots__ = ("attempt", "held_request_bytes", "held_response_bytes", "relay", "reply")

    def __init__(self, relay: "PassThrough", reply: Reply) -> None:
        self.relay = relay
        self.reply = reply
        self.attempt: Attempt | None = None
        self.held_request_bytes = 0
        self.held_response_bytes = 0

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        attempt = self.attempt
        attempt.send_data(data, end=end)
        if attempt.buffered_bytes > HIGH_WATER_BYTES:
            self.held_request_bytes += len(data)
        else:
            self.reply.consumed(len(data))

    def on_cancelled(self) -> None:
        self.relay.cancelled += 1
        self.attempt.cancel()

    def on_reply_drained(self) -> None:
        held, self.held_response_bytes = self.held_response_bytes, 0
        self.attempt.consumed(held)

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        self.reply.send_headers(headers)

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        self.reply.send_data(data)
        buffered = self.reply.buffered_bytes
        self.relay.buffered_max = max(self.relay.buffered_max, buffered)
        if buffered > HIGH_WATER_BYTES:
            self.held_response_bytes += len(data)
        else:
            attempt.consumed(len(data))

    def on_attempt_drained(self, attempt: Attempt) -> None:
        held, self.held_request_bytes = self.held_request_bytes, 0
        self.reply.consumed(held)

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        self.relay.ends.append(end)
        self.reply.send_trailers(end.code, end.message, end.trailers)


class PassThrough:
    """A listener and an upstream joined by the ports, with no policy between."""

    def __init__(
        self,
        target: str,
        listener: ListenerSettings | None = None,
        upstream: UpstreamSettings | None = None,
        seed: int = 1,
    ) -> None:
        self.timers = TimerWheel(asyncio.get_running_loop())
        self.upstream = Upstream("test", target, self.timers, upstream, rng=random.Random(seed))
        self.listener = Listener(self._handle, self.timers, listener)
        self.address = ""
        self.cancelled = 0
        self.buffered_max = 0
        self.ends: list[AttemptEnd] = []

    def _handle(self, head: CallHead, reply: Reply) -> Bridge:
        bridge = Bridge(self, reply)
        bridge.attempt = self.upstream.start(head.method, head.metadata, head.timeout_s, bridge)
        return bridge

    async def start(self) -> "PassThrough":
        self.upstream.open()
        self.address = await self.listener.start("127.0.0.1", 0)
        return self

    async def close(self, grace_s: float = 0.0) -> None:
        await self.listener.close(grace_s)
        await self.upstream.close(grace_s)
        self.timers.close()


@dataclass
class RecordingSink:
    """An `AttemptSink` that keeps what it hears and gives every window back."""

    headers: list[Headers] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    ends: list[AttemptEnd] = field(default_factory=list)
    drained: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    headed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        self.headers.append(headers)
        self.headed.set()

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        self.data.append(data)
        attempt.consumed(len(data))

    def on_attempt_drained(self, attempt: Attempt) -> None:
        self.drained += 1

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        self.ends.append(end)
        self.ended.set()

    async def end(self) -> AttemptEnd:
        await asyncio.wait_for(self.ended.wait(), BOUND_S)
        assert len(self.ends) == 1
        return self.ends[0]


class RawPeer:
    """One connection whose HTTP/2 engine the test plays by hand; ``script`` is called with each event."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        engine: ngh2.Connection,
        script: Callable[["RawPeer", Any], None],
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.engine = engine
        self.script = script
        self.events: list[Any] = []
        self.forgets: tuple[type, ...] = ()
        """Kinds of events that are told to the script only."""
        self.changed = asyncio.Event()
        self.eof = False
        self.mute = False
        """Reads on and says nothing more, like what is behind a network that lost the way back."""

    def flush(self) -> None:
        output = self.engine.data_to_send()
        if output and not self.mute and not self.writer.is_closing():
            self.writer.write(output)
        self._hear(self.engine.events())

    async def run(self) -> None:
        try:
            while data := await self.reader.read(65_536):
                try:
                    self.engine.receive_data(data)
                    self._hear(self.engine.events())
                    self.flush()
                except ngh2.NGH2Error:
                    break
        except OSError:
            pass
        self.eof = True
        self.changed.set()
        self.writer.close()

    def _hear(self, events: list[Any]) -> None:
        for event in events:
            if not isinstance(event, self.forgets):
                self.events.append(event)
            self.script(self, event)
        self.changed.set()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(BOUND_S):
            while not (result := condition()):
                self.changed.clear()
                if not condition():
                    await self.changed.wait()
            return result


def _silent(peer: RawPeer, event: Any) -> None:
    """A script that does nothing."""


class RawServer:
    """An HTTP/2 server played by a script."""

    def __init__(
        self, script: Callable[[RawPeer, Any], None], settings: dict[int, int], config: ngh2.Configuration
    ) -> None:
        self._script = script
        self._settings = settings
        self._config = config
        self.peers: list[RawPeer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.target = ""

    async def start(self) -> "RawServer":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.target = f"{host}:{port}"
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine = ngh2.Connection(ngh2.Role.SERVER, self._config)
        engine.initiate_connection(self._settings)
        peer = RawPeer(reader, writer, engine, self._script)
        self.peers.append(peer)
        self._tasks.add(asyncio.current_task())
        peer.flush()
        await peer.run()

    async def close(self) -> None:
        self._server.close()
        for peer in self.peers:
            peer.writer.transport.abort()
        await asyncio.gather(*self._tasks)


class Proxy:
    """A TCP proxy that can swallow bytes (a blackhole) or cut the connection after so many of them."""

    def __init__(self, target: str) -> None:
        self.redirect(target)
        self.blackholed = False
        self.cut_after_bytes: int | None = None
        """Of what the client sends, counted on each connection."""
        self.accepted = 0
        self.target = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.target = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._tasks.add(asyncio.current_task())
        try:
            onward_reader, onward = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        both = asyncio.gather(self._pump(reader, onward, counted=True), self._pump(onward_reader, writer))
        await both
        for each in (writer, onward):
            each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False
    ) -> None:
        passed = 0
        try:
            while data := await reader.read(65_536):
                if self.blackholed:
                    continue
                limit = self.cut_after_bytes
                if counted and limit is not None and passed + len(data) >= limit:
                    writer.write(data[: limit - passed])
                    await writer.drain()
                    self.cut()
                    return
                passed += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        if not self.blackholed:
            writer.close()

    def redirect(self, target: str) -> None:
        """Where new connections lead."""
        host, _, port = target.rpartition(":")
        self._to = (host, int(port))

    def cut(self) -> None:
        """Drop all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks)


# -- a real gRPC service ---------------------------------------------------------------------------------


class EchoHandler(grpc.GenericRpcHandler):
    """``/test.Echo/{Unary,Collect,Expand,Chat}``: bytes in, bytes out; request metadata says what to do."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.remaining_s: list[float | None] = []
        self.metadata: list[tuple[tuple[str, Any], ...]] = []
        self.received = 0
        self.release = asyncio.Event()

    def service(self, details: Any) -> Any:
        kinds = {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/test.Echo/Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "/test.Echo/Expand": grpc.unary_stream_rpc_method_handler(self.expand),
            "/test.Echo/Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        return kinds.get(details.method)

    async def _prepare(self, context: Any) -> dict[str, Any]:
        metadata = context.invocation_metadata()
        self.metadata.append(tuple(metadata))
        asked = dict(metadata)
        self.remaining_s.append(context.time_remaining())
        self.started.set()
        if "send-header" in asked:
            await context.send_initial_metadata(
                (("x-header", asked["send-header"]), ("x-header-bin", b"\x00\xff"))
            )
        if "send-trailer" in asked:
            context.set_trailing_metadata(
                (("x-trailer", asked["send-trailer"]), ("x-trailer-bin", b"\xff\x00"))
            )
        if "compress" in asked:
            context.set_compression(grpc.Compression.Gzip)
        if "hang" in asked:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if "fail" in asked:
            await context.abort(grpc.StatusCode[asked["fail"]], asked.get("text-bin", b"no").decode())
        return asked

    async def unary(self, request: bytes, context: Any) -> bytes:
        await self._prepare(context)
        return request

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        asked = await self._prepare(context)
        if "wait" in asked:
            await self.release.wait()
        size = 0
        async for request in requests:
            size += len(request)
            self.received += 1
        return str(size).encode()

    async def expand(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        asked = await self._prepare(context)
        message = b"x" * int(asked.get("size", "10"))
        for _ in range(int(request)):
            yield message

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await self._prepare(context)
        async for request in requests:
            yield request


@dataclass
class Echo:
    """A grpc.aio server with `EchoHandler`."""

    server: grpc.aio.Server
    handler: EchoHandler
    target: str


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    handler = EchoHandler()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Echo(server, handler, f"127.0.0.1:{port}")
    await server.stop(0)


@pytest.fixture
async def cleanup() -> AsyncIterator[Callable[[Callable[[], Awaitable[None]]], None]]:
    """Register what must be closed at the test's end, in reverse order."""
    actions: list[Callable[[], Awaitable[None]]] = []
    yield actions.append
    for action in reversed(actions):
        await action()


@pytest.fixture
async def pass_through(cleanup: Any) -> Any:
    """Start a `PassThrough` to a target."""

    async def start(target: str, **settings: Any) -> PassThrough:
        relay = await PassThrough(target, **settings).start()
        cleanup(relay.close)
        return relay

    return start


@pytest.fixture
async def relay(echo: Echo, pass_through: Any) -> PassThrough:
    """A pass-through before the echo service."""
    started = await pass_through(echo.target)
    assert await started.upstream.wait_ready(BOUND_S)
    return started


@pytest.fixture
async def channel(relay: PassThrough) -> AsyncIterator[grpc.aio.Channel]:
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
    ]
    async with grpc.aio.insecure_channel(relay.address, options=options) as opened:
        yield opened


@pytest.fixture
async def raw_server(cleanup: Any) -> Any:
    """Start a `RawServer` that plays a script."""

    async def start(
        script: Callable[[RawPeer, Any], None] = _silent,
        settings: dict[int, int] | None = None,
        **config: Any,
    ) -> RawServer:
        server = await RawServer(script, settings or {}, ngh2.Configuration(**config)).start()
        cleanup(server.close)
        return server

    return start


@pytest.fixture
async def raw_client(cleanup: Any) -> Any:
    """Connect a raw HTTP/2 client to ``host:port``."""

    async def connect(address: str, settings: dict[int, int] | None = None, **config: Any) -> RawPeer:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        engine = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(**config))
        engine.initiate_connection(settings or {})
        peer = RawPeer(reader, writer, engine, _silent)
        peer.flush()
        task = asyncio.create_task(peer.run())

        async def close() -> None:
            writer.transport.abort()
            await task

        cleanup(close)
        await peer.until(lambda: peer.of(ngh2.SettingsReceived))
        return peer

    return connect


@pytest.fixture
async def proxy(cleanup: Any) -> Any:
    """Start a TCP `Proxy` to a target."""

    async def start(target: str) -> Proxy:
        started = await Proxy(target).start()
        cleanup(started.close)
        return started

    return start


@pytest.fixture
async def upstream(cleanup: Any) -> Any:
    """Make an opened `Upstream` of a target."""
    timers = TimerWheel(asyncio.get_running_loop())

    def make(target: str, *, seed: int = 1, **settings: Any) -> Upstream:
        made = Upstream("test", target, timers, UpstreamSettings(**settings), rng=random.Random(seed))
        made.open()
        cleanup(lambda: made.close(0.0))
        return made

    yield make
    timers.close()


@pytest.fixture
def new_sink() -> type[RecordingSink]:
    return RecordingSink


@pytest.fixture
def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def eventually() -> Any:
    """Wait, bounded, for a condition that no event tells of."""

    async def wait(condition: Callable[[], Any], bound_s: float = BOUND_S) -> Any:
        give_up_at = time.monotonic() + bound_s
        while not (result := condition()):
            assert time.monotonic() < give_up_at, "the condition did not come about"
            await asyncio.sleep(0.005)
        return result

    return wait


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """After each test no task, no connection and no stream on one is left."""
    before = asyncio.all_tasks()
    yield
    # Fixtures set up later are torn down by now.
    for _ in range(50):
        ours = asyncio.all_tasks() - before - {asyncio.current_task()}
        left = [task for task in ours if not task.done() and "grpc" not in repr(task)]
        if not left:
            break
        await asyncio.sleep(0.01)
    assert not left, left
    connections = [thing for thing in gc.get_objects() if isinstance(thing, Connection)]
    held = [one for one in connections if one._transport is not None or one.streams or one._clogged]
    assert not held, held
