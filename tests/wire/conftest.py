"""Real gRPC peers, raw HTTP/2 peers, and a relay without policy between; each test leaves nothing behind."""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import ngh2
import pytest

from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream, UpstreamSettings
from relay_service.wire.connection import Connection, ConnectionSettings
from relay_service.wire.listener import Listener, ListenerSettings
from tests.wire.echo import Echo, EchoHandler
from tests.wire.peers import BOUND_S, Proxy, RawPeer, RawServer, silent
from tests.wire.service import Service
from tests.wire.through import PassThrough, RecordingSink


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
        script: Callable[[RawPeer, Any], None] = silent,
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
        peer = RawPeer(reader, writer, engine, silent)
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
def service() -> Service:
    return Service()


@pytest.fixture
async def listen(service: Service, cleanup: Any) -> Any:
    """Start a `Listener` before the service."""

    async def start(connections_max: int = 100, per_peer: int = 100, **settings: Any) -> Listener:
        timers = TimerWheel(asyncio.get_running_loop())
        connection = ConnectionSettings(**settings)
        bounds = ListenerSettings(
            connection=connection, connections_max=connections_max, connections_per_peer_max=per_peer
        )
        listener = Listener(service, timers, bounds)
        await listener.start("127.0.0.1", 0)

        async def close() -> None:
            await listener.close(0.0)
            timers.close()
            assert listener.connections == 0

        cleanup(close)
        return listener

    return start


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


@pytest.fixture(scope="session", autouse=True)
def what_was_there_before() -> Iterator[None]:
    """Set aside, so that looking for what a test left behind does not look at every module each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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
