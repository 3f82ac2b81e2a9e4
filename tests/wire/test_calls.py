"""Real gRPC peers, sync and aio, through the wire's two sides: all kinds of calls, unchanged."""

import asyncio
import gc
import hashlib
import random
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import ngh2
import pytest

from relay_service.wire.client_stream import ClientStream
from relay_service.wire.server_stream import ServerStream

SEED = 20_261


async def test_a_unary_call_is_echoed(channel):
    call = channel.unary_unary("/test.Echo/Unary")
    assert await call(b"hello") == b"hello"


async def test_an_empty_message_passes(channel):
    assert await channel.unary_unary("/test.Echo/Unary")(b"") == b""


async def test_a_client_stream_is_collected(channel):
    call = channel.stream_unary("/test.Echo/Collect")
    assert await call(iter([b"abc"] * 100)) == b"300"


async def test_a_server_stream_arrives_whole_and_in_order(channel):
    received = [message async for message in channel.unary_stream("/test.Echo/Expand")(b"500")]
    assert received == [b"x" * 10] * 500


async def test_a_bidirectional_stream_answers_message_by_message(channel):
    call = channel.stream_stream("/test.Echo/Chat")()
    for number in range(50):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


def _sync_calls(address: str) -> list[object]:
    with grpc.insecure_channel(address) as channel:
        unary = channel.unary_unary("/test.Echo/Unary")(b"sync", timeout=5)
        collected = channel.stream_unary("/test.Echo/Collect")(iter([b"12345"] * 20), timeout=5)
        expanded = list(channel.unary_stream("/test.Echo/Expand")(b"20", timeout=5))
        chatted = list(channel.stream_stream("/test.Echo/Chat")(iter([b"a", b"b"]), timeout=5))
    return [unary, collected, len(expanded), chatted]


async def test_sync_clients_are_served_in_all_kinds(relay):
    assert await asyncio.to_thread(_sync_calls, relay.address) == [b"sync", b"100", 20, [b"a", b"b"]]


def _sync_echo_server() -> tuple[grpc.Server, int]:
    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method == "/test.Echo/Unary":
                return grpc.unary_unary_rpc_method_handler(lambda request, _: request)
            return grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)

    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


async def test_sync_servers_are_called(pass_through):
    server, port = await asyncio.to_thread(_sync_echo_server)
    relay = await pass_through(f"127.0.0.1:{port}")
    async with grpc.aio.insecure_channel(relay.address) as channel:
        assert await channel.unary_unary("/test.Echo/Unary")(b"1") == b"1"
        call = channel.stream_stream("/test.Echo/Chat")(iter([b"2", b"3"]))
        assert [message async for message in call] == [b"2", b"3"]
    await asyncio.to_thread(server.stop(0).wait)


async def test_metadata_headers_and_trailers_pass_both_ways(channel, echo):
    call = channel.unary_unary("/test.Echo/Unary")(
        b"m",
        metadata=(
            ("x-plain", "v"),
            ("x-raw-bin", bytes(range(256))),
            ("send-header", "h"),
            ("send-trailer", "t"),
        ),
    )
    assert await call == b"m"
    sent = dict(echo.handler.metadata[0])
    assert sent["x-plain"] == "v"
    assert sent["x-raw-bin"] == bytes(range(256))
    assert sent["user-agent"].startswith("grpc-python-asyncio/")
    headers = dict(await call.initial_metadata())
    assert headers["x-header"] == "h"
    assert headers["x-header-bin"] == b"\x00\xff"
    trailers = dict(await call.trailing_metadata())
    assert trailers["x-trailer"] == "t"
    assert trailers["x-trailer-bin"] == b"\xff\x00"


async def test_repeated_metadata_keeps_its_order(channel, echo):
    await channel.unary_unary("/test.Echo/Unary")(b"", metadata=(("k", "1"), ("k", "2"), ("k", "3")))
    assert [value for key, value in echo.handler.metadata[0] if key == "k"] == ["1", "2", "3"]


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_every_status_passes_with_its_message(channel, code):
    text = "100 % naïve — ünïcode ☃\n\ttabs"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Echo/Unary")(
            b"", metadata=(("fail", code.name), ("text-bin", text.encode()), ("send-trailer", "t"))
        )
    assert caught.value.code() is code
    assert caught.value.details() == text
    assert dict(caught.value.trailing_metadata())["x-trailer"] == "t"


async def test_a_status_after_messages_passes(channel):
    call = channel.unary_stream("/test.Echo/Expand")(b"not a number", metadata=(("send-header", "h"),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.UNKNOWN


async def test_an_unknown_method_is_the_upstreams_to_refuse(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Echo/Missing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_compressed_messages_pass_untouched_both_ways(channel):
    payload = b"compress me " * 5_000
    call = channel.unary_unary("/test.Echo/Unary")(
        payload, compression=grpc.Compression.Gzip, metadata=(("compress", "1"),)
    )
    assert await call == payload


async def test_messages_of_random_sizes_arrive_unharmed(channel):
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    call = channel.unary_unary("/test.Echo/Unary")
    sizes = [0, 1, 16_379, 16_380, 65_535, 900_000, *(rng.randrange(200_000) for _ in range(30))]
    payloads = [rng.randbytes(size) for size in sizes]
    answers = await asyncio.gather(*(call(payload) for payload in payloads))
    for payload, answer in zip(payloads, answers, strict=True):
        assert hashlib.sha256(answer).digest() == hashlib.sha256(payload).digest()


async def test_many_calls_at_once_share_the_connections(relay, channel, eventually):
    call = channel.unary_unary("/test.Echo/Unary")
    answers = await asyncio.gather(*(call(b"%d" % number) for number in range(1_000)))
    assert answers == [b"%d" % number for number in range(1_000)]
    assert relay.upstream.counters.connects == 2
    await eventually(lambda: relay.listener.streams == 0)
    for connection in relay.upstream._live:
        await eventually(lambda connection=connection: not connection.streams)
        assert not connection._clogged


async def test_a_finished_call_is_freed_without_the_cycle_collector(relay, channel, eventually):
    call = channel.unary_unary("/test.Echo/Unary")
    await call(b"warm")
    gc.collect()
    gc.disable()
    try:
        await asyncio.gather(*(call(b"x") for _ in range(50)))
        await eventually(lambda: relay.listener.streams == 0)
        kinds = (ServerStream, ClientStream)
        assert not [thing for thing in gc.get_objects() if isinstance(thing, kinds)]
    finally:
        gc.enable()


async def test_the_callers_deadline_reaches_the_upstream(channel, echo):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Echo/Unary")(b"", timeout=1.0, metadata=(("hang", "1"),))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # From 1 s on grpcio's clients tell a timeout in hundredths, rounded up.
    assert 0 < echo.handler.remaining_s[0] <= 1.01
    await asyncio.wait_for(echo.handler.cancelled.wait(), 5)


async def test_without_a_deadline_none_is_invented(channel, echo):
    await channel.unary_unary("/test.Echo/Unary")(b"")
    assert echo.handler.remaining_s[0] is None


@pytest.mark.parametrize("kind", ["Unary", "Chat"])
async def test_the_callers_cancel_reaches_the_upstream(relay, channel, echo, kind, eventually):
    make = channel.unary_unary if kind == "Unary" else channel.stream_stream
    call = make(f"/test.Echo/{kind}")(*([b""] if kind == "Unary" else []), metadata=(("hang", "1"),))
    if kind == "Chat":
        await call.write(b"open")
    else:
        task = asyncio.ensure_future(call)
    await asyncio.wait_for(echo.handler.started.wait(), 5)
    call.cancel()
    began = time.monotonic()
    await asyncio.wait_for(echo.handler.cancelled.wait(), 5)
    assert time.monotonic() - began < 1
    assert await call.code() is grpc.StatusCode.CANCELLED
    await eventually(lambda: relay.cancelled == 1)
    if kind == "Unary":
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_caller_that_vanishes_cancels_its_calls(relay, echo, eventually):
    _, writer = await asyncio.open_connection(*relay.address.split(":"))
    engine = ngh2.Connection(ngh2.Role.CLIENT)
    engine.initiate_connection()
    engine.send_request(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/test.Echo/Unary"),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"hang", b"1"),
        ]
    )
    writer.write(engine.data_to_send())
    await eventually(lambda: relay.listener.streams == 1)
    writer.transport.abort()
    await eventually(lambda: relay.cancelled == 1)
    assert relay.listener.streams == 0
