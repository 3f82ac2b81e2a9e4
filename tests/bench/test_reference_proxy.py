"""The reference proxy changes nothing that grpc.aio lets through, on its unary and on its stream path."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.reference_proxy import ReferenceProxy

UNARY = "/t.T/Unary"
STREAM = "/t.T/Stream"
UNKNOWN = "/t.T/Unknown"
METADATA = (("k", "v"), ("k", "w"), ("data-bin", b"\x00\xff"))


class Upstream(grpc.GenericRpcHandler):
    """Echoes messages, metadata (as headers and trailers) and, when asked by metadata, fails."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.time_left_s: float | None = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        match handler_call_details.method:
            case "/t.T/Unary":
                return grpc.unary_unary_rpc_method_handler(self._unary)
            case "/t.T/Stream":
                return grpc.stream_stream_rpc_method_handler(self._stream)
        return None

    async def _unary(self, request: bytes, context: Any) -> bytes:
        await self._preamble(context)
        return request

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await self._preamble(context)
        async for request in requests:
            yield request

    async def _preamble(self, context: Any) -> None:
        self.time_left_s = context.time_remaining()
        received = tuple((k, v) for k, v in context.invocation_metadata() if k in {"k", "data-bin"})
        asked = dict(context.invocation_metadata()).get("ask")
        if asked == "fail":
            await context.abort(grpc.StatusCode.ABORTED, "schön kaputt", received)
        await context.send_initial_metadata(received)
        context.set_trailing_metadata((("t", "1"), *received))
        if asked == "hang":
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, grpc.aio.Channel]]:
    handler = Upstream()
    server = grpc.aio.server(handlers=(handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        ReferenceProxy(f"127.0.0.1:{port}", unary_methods=[UNARY, UNKNOWN]) as proxy,
        grpc.aio.insecure_channel(await proxy.start()) as channel,
    ):
        yield handler, channel
    await server.stop(0)


def invoke(channel: grpc.aio.Channel, method: str, ask: str = "", **options: Any) -> Any:
    metadata = (*METADATA, ("ask", ask)) if ask else METADATA
    if method == UNARY:
        return channel.unary_unary(method)(b"payload", metadata=metadata, **options)
    return channel.stream_stream(method)(iter([b"payload"]), metadata=metadata, **options)


async def first(call: Any, method: str) -> bytes:
    return await call if method == UNARY else await call.read()


@pytest.mark.parametrize("method", [UNARY, STREAM])
async def test_message_metadata_and_trailers_pass(upstream, method):
    _, channel = upstream
    call = invoke(channel, method, timeout=10)
    assert await first(call, method) == b"payload"
    assert tuple(await call.initial_metadata()) == METADATA
    assert tuple(await call.trailing_metadata()) == (("t", "1"), *METADATA)
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("method", [UNARY, STREAM])
async def test_a_failure_keeps_its_code_message_and_trailers(upstream, method):
    _, channel = upstream
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await first(invoke(channel, method, "fail", timeout=10), method)
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert caught.value.details() == "schön kaputt"
    assert tuple(caught.value.trailing_metadata()) == METADATA


@pytest.mark.parametrize("method", [UNARY, STREAM])
async def test_the_deadline_is_passed_on(upstream, method):
    handler, channel = upstream
    await first(invoke(channel, method, timeout=7), method)
    assert handler.time_left_s is not None
    # gRPC keeps deadlines on the wall clock, which may be slewed a little meanwhile.
    assert 5 < handler.time_left_s <= 7.2


@pytest.mark.parametrize("method", [UNARY, STREAM])
async def test_a_cancel_reaches_the_upstream(upstream, method):
    handler, channel = upstream
    call = invoke(channel, method, "hang", timeout=20)
    await asyncio.wait_for(handler.started.wait(), 5)
    call.cancel()
    await asyncio.wait_for(handler.cancelled.wait(), 5)


async def test_messages_of_a_stream_pass_one_by_one_and_in_order(upstream):
    _, channel = upstream
    call = channel.stream_stream(STREAM)(timeout=10)
    for number in range(20):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_method_the_upstream_does_not_have_is_unimplemented(upstream):
    _, channel = upstream
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(UNKNOWN)(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
