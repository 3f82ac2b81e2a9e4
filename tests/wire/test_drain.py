"""Where the listener begins and ends: sockets, drains, and what is on its way meanwhile."""

import asyncio
import socket

import grpc
import ngh2
import pytest

from relay_service.core.status import Code
from relay_service.timers import TimerWheel
from relay_service.wire.listener import Listener
from tests.wire.service import fields_of, request


async def test_a_drain_says_goaway_twice_and_lets_calls_end(listen, service, raw_client, eventually):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    stream_id = peer.engine.send_request(request())
    peer.flush()
    await eventually(lambda: service.calls)
    closing = asyncio.create_task(listener.close(5.0))
    await peer.until(lambda: len(peer.of(ngh2.GoAwayReceived)) == 2)
    first, second = peer.of(ngh2.GoAwayReceived)
    assert (first.last_stream_id, first.error_code) == (2**31 - 1, 0)
    assert (second.last_stream_id, second.error_code) == (stream_id, 0)
    assert not closing.done()
    service.calls[0].reply.send_trailers(Code.OK, "", ())
    peer.engine.end_stream(stream_id)
    peer.flush()
    await asyncio.wait_for(closing, 5)
    assert fields_of(peer, stream_id)[b"grpc-status"] == b"0"
    assert service.calls[0].cancelled == 0


async def test_a_drain_serves_the_stream_that_was_on_its_way(listen, service, raw_client, eventually):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    peer.engine.send_request(request())
    peer.flush()
    await eventually(lambda: service.calls)
    late = peer.engine.send_request(request())
    closing = asyncio.create_task(listener.close(5.0))
    peer.flush()  # meets the first GOAWAY
    await eventually(lambda: len(service.calls) == 2)
    for call in service.calls:
        call.reply.send_trailers(Code.OK, "", ())
    await asyncio.wait_for(closing, 5)
    await peer.until(lambda: fields_of(peer, late))


async def test_a_drain_is_bounded(listen, service, raw_client, eventually):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    peer.engine.send_request(request())
    peer.flush()
    await eventually(lambda: service.calls)
    await asyncio.wait_for(listener.close(0.05), 5)
    assert service.calls[0].cancelled == 1


async def test_an_idle_connection_drains_at_once(listen, raw_client):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    await asyncio.wait_for(listener.close(30.0), 5)
    await peer.until(lambda: peer.eof)


async def test_unix_sockets_are_served(listen, service, tmp_path):
    service.refuse = Code.ABORTED
    listener = await listen()
    address = await listener.start_unix(str(tmp_path / "relay.sock"))
    assert address == f"unix:{tmp_path}/relay.sock"
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/a.B/C")(b"")
    assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_a_taken_port_is_an_error(listen):
    listener = await listen()
    host, port = listener.addresses[0].split(":")
    with pytest.raises(OSError, match="address already in use"):
        await listener.start(host, int(port))


async def test_a_connection_that_arrives_amid_the_close_is_turned_away(service):
    timers = TimerWheel(asyncio.get_running_loop())
    listener = Listener(service, timers)
    await listener.start("127.0.0.1", 0)
    late = listener._make_connection()  # accepted, and still in its TLS handshake, say
    await listener.close(0.0)
    near, far = socket.socketpair()
    far.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(lambda: late, near)
    assert await asyncio.wait_for(loop.sock_recv(far, 100), 5) == b""
    assert listener.connections == 0
    assert listener.counters.connections_refused == 1
    far.close()
    timers.close()


async def test_unix_socket_files_are_removed_when_they_are_ours(service, tmp_path):
    timers = TimerWheel(asyncio.get_running_loop())
    listener = Listener(service, timers)
    ours, replaced = tmp_path / "ours", tmp_path / "replaced"
    await listener.start_unix(str(ours))
    await listener.start_unix(str(replaced))
    replaced.rename(tmp_path / "elsewhere")
    replaced.write_text("another listener's")
    await listener.close(0.0)
    assert not ours.exists()
    assert replaced.exists()
    timers.close()
