"""The control plane comes up whole or not at all, and goes down without a remainder."""

import asyncio
import contextlib
import socket
import time

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from protos.relay.v1 import admin_pb2
from protos.relay.v1.admin_pb2_grpc import AdminServiceStub
from relay_service.control.binding import BindError
from relay_service.control.call_tracker import CallTracker
from relay_service.control.grpc_server import GrpcServer


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.mark.parametrize("which", ["private_address", "admin_address"])
async def test_a_busy_port_is_a_clear_error_and_leaves_nothing_running(planes, busy_port, which) -> None:
    before = asyncio.all_tasks()
    plane = planes.make(**{which: f"127.0.0.1:{busy_port}"})
    with pytest.raises(BindError, match=f"127.0.0.1:{busy_port} .*: address already in use"):
        await plane.start()
    assert asyncio.all_tasks() == before


async def test_an_address_taken_before_another_failed_is_given_back(planes, busy_port) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free_port = probe.getsockname()[1]
    plane = planes.make(private_address=f"127.0.0.1:{free_port}", admin_address=f"127.0.0.1:{busy_port}")
    with pytest.raises(BindError):
        await plane.start()
    socket.create_server(("127.0.0.1", free_port)).close()


async def test_two_relays_do_not_share_a_port(planes) -> None:
    first = await planes.start()
    with pytest.raises(BindError):
        await planes.make(admin_address=first.admin_address).start()


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("nowhere.invalid:50051", "host is unknown"),
        ("127.0.0.1", "must be host:port"),
        ("unix:/no/such/folder/relay.sock", "no such file or directory"),
    ],
)
async def test_an_address_that_cannot_be_taken_says_why(planes, address, cause) -> None:
    with pytest.raises(BindError, match=cause):
        await planes.make(private_address=address).start()


async def test_the_private_address_may_be_a_unix_socket(planes, channel_to, tmp_path) -> None:
    plane = await planes.start(private_address=f"unix:{tmp_path}/control.sock")
    answer = await HealthStub(channel_to(plane.private_address)).Check(HealthCheckRequest(), timeout=10)
    assert answer.status == HealthCheckResponse.SERVING


async def end_of(watch) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await watch.read() is not grpc.aio.EOF:
            pass
    return await watch.code()


async def test_a_stop_ends_every_stream_with_a_status_and_leaves_no_task(
    planes, channel_to, learners, upstreams
) -> None:
    before = asyncio.all_tasks()
    plane = await planes.start(learners.make((await upstreams.with_payments()).target))
    private, admin = channel_to(plane.private_address), channel_to(plane.admin_address)
    watches = [HealthStub(private).Watch(HealthCheckRequest()) for _ in range(3)]
    watches.append(AdminServiceStub(admin).WatchStats(admin_pb2.WatchStatsRequest()))
    for watch in watches:
        await watch.read()
    began = time.monotonic()
    async with asyncio.timeout(10):
        plane.drain()
        assert await end_of(watches.pop()) is grpc.StatusCode.OK, "a watch of the stats ends by itself"
        await plane.stop(grace_s=8.0)
        codes = [await end_of(watch) for watch in watches]
    assert codes == [grpc.StatusCode.UNAVAILABLE] * 3
    assert time.monotonic() - began < 5.0, "open watches used the grace up"
    assert plane.running_calls == 0
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not {name for name in left if name.startswith(("health", "descriptors"))}


async def test_a_stop_twice_is_harmless(planes) -> None:
    plane = await planes.start()
    await plane.stop(grace_s=0.0)
    await plane.stop(grace_s=0.0)


async def test_a_plane_that_was_never_started_can_be_stopped(planes) -> None:
    await planes.make().stop(grace_s=0.0)


async def test_more_calls_than_allowed_are_refused(planes, channel_to) -> None:
    plane = await planes.start(private_calls_max=2)
    stub = HealthStub(channel_to(plane.private_address))
    watches = [stub.Watch(HealthCheckRequest(), timeout=10) for _ in range(2)]
    for watch in watches:
        await watch.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(HealthCheckRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


class Handlers:
    """A server with one handler that is told when it began, and what it saw."""

    def __init__(self, behaviour) -> None:
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self._behaviour = behaviour

    async def serve(self) -> GrpcServer:
        server = GrpcServer("test", "127.0.0.1:0", calls_max=10)
        handler = grpc.unary_unary_rpc_method_handler(self._run)
        server.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("t.T", {"Call": handler}),)
        )
        await server.bind()
        await server.start()
        return server

    async def _run(self, request: bytes, context) -> bytes:
        self.began.set()
        try:
            return await self._behaviour()
        finally:
            self.ended.set()


async def test_a_handler_that_is_cancelled_from_within_still_sends_a_status(channel_to) -> None:
    async def behaviour() -> bytes:
        raise asyncio.CancelledError

    server = await Handlers(behaviour).serve()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel_to(server.address).unary_unary("/t.T/Call")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(0)


async def test_a_callers_cancel_reaches_the_handler(channel_to) -> None:
    handlers = Handlers(asyncio.Event().wait)
    server = await handlers.serve()
    call = channel_to(server.address).unary_unary("/t.T/Call")(b"", timeout=10)
    async with asyncio.timeout(10):
        await handlers.began.wait()
        call.cancel()
        await handlers.ended.wait()
    await server.stop(0)


async def test_a_stop_returns_only_when_aborted_handlers_have_ended(channel_to) -> None:
    cleaned_up = asyncio.Event()

    async def behaviour() -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(50):
                await asyncio.sleep(0)
            cleaned_up.set()
        return b""

    handlers = Handlers(behaviour)
    server = await handlers.serve()
    call = channel_to(server.address).unary_unary("/t.T/Call")(b"", timeout=10)
    async with asyncio.timeout(10):
        await handlers.began.wait()
        await server.stop(0.05)
    assert cleaned_up.is_set()
    assert server.running_calls == 0
    call.cancel()


def test_a_tracker_without_calls_has_nothing_to_end() -> None:
    tracker = CallTracker()
    tracker.end_streams()
    assert tracker.running == 0
