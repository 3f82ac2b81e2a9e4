"""What one caller may not do to the others: too much of anything, and nothing at all."""

import asyncio
from contextlib import suppress

import ngh2
import pytest

from relay_service.core.status import Code
from relay_service.wire import h2
from tests.wire.service import ask, request


async def test_streams_beyond_the_limit_are_refused(listen, service, raw_client, eventually):
    listener = await listen(limits=h2.Limits(streams_max=2))
    peer = await raw_client(listener.addresses[0])
    assert peer.of(ngh2.SettingsReceived)[0].settings[ngh2.Setting.MAX_CONCURRENT_STREAMS] == 2
    for _ in range(3):
        peer.engine.send_request(request())
    peer.flush()
    await eventually(lambda: len(service.calls) == 2)
    # The engine of this peer holds the third back by itself, as it must.
    service.calls[0].reply.send_trailers(Code.OK, "", ())
    await eventually(lambda: len(service.calls) == 3)


async def test_http_1_is_told_to_go_away(listen):
    listener = await listen()
    reader, writer = await asyncio.open_connection(*listener.addresses[0].split(":"))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    assert h2.goaway_frame(0, h2.ErrorCode.PROTOCOL_ERROR)[3:4] in answer
    writer.close()
    assert listener.counters.connections_failed == 1


async def test_a_peer_that_says_nothing_is_closed(listen):
    listener = await listen(handshake_timeout_s=0.05)
    reader, writer = await asyncio.open_connection(*listener.addresses[0].split(":"))
    with suppress(ConnectionResetError):
        while await asyncio.wait_for(reader.read(1_000), 5):
            pass
    writer.close()
    assert "SETTINGS" in listener.counters.last_failure


async def test_connections_beyond_the_limit_are_closed_at_once(listen, raw_client):
    listener = await listen(connections_max=1)
    await raw_client(listener.addresses[0])
    reader, writer = await asyncio.open_connection(*listener.addresses[0].split(":"))
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert listener.counters.connections_refused == 1
    assert listener.connections == 1


async def test_one_peer_cannot_take_all_connections(listen, raw_client):
    listener = await listen(per_peer=1)
    mine = await raw_client(listener.addresses[0])
    port = int(listener.addresses[0].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert listener.status().refused_of_peer == 1
    # The whole of 127.0.0.0/8 is the loopback: this is another peer.
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    assert await asyncio.wait_for(reader.read(9), 5)
    assert listener.status().connections == 2
    writer.close()
    # A place that is free again may be taken again.
    mine.writer.close()
    async with asyncio.timeout(5):
        while listener.connections:  # noqa: ASYNC110 (the listener has no event for it)
            await asyncio.sleep(0.01)
    await raw_client(listener.addresses[0])
    assert listener.status().connections == 1


def _ping_flood(peer):
    for _ in range(200):
        peer.engine.ping()


def _empty_data_flood(peer):
    frame_head = b"\x00\x00\x00\x00\x00" + (1).to_bytes(4, "big")
    peer.writer.write(frame_head * 200)


def _settings_flood(peer):
    for _ in range(200):
        peer.engine.update_settings({4: 70_000})


@pytest.mark.parametrize("flood", [_ping_flood, _empty_data_flood, _settings_flood])
async def test_floods_of_control_frames_end_the_connection_and_no_other(
    listen, service, raw_client, eventually, flood
):
    listener = await listen(limits=h2.Limits(control_frames_per_s=100))
    victim = await raw_client(listener.addresses[0])
    attacker = await raw_client(listener.addresses[0])
    attacker.engine.send_request(request())
    attacker.flush()
    for _ in range(50):
        if attacker.eof:
            break
        try:
            flood(attacker)
            attacker.flush()
        except ngh2.NGH2Error:
            break
        await asyncio.sleep(0.001)
    await eventually(lambda: attacker.eof)
    goaways = attacker.of(ngh2.GoAwayReceived)
    assert not goaways or goaways[-1].error_code == ngh2.ErrorCode.ENHANCE_YOUR_CALM
    assert listener.counters.connections_failed == 1
    service.refuse = Code.OK
    assert (await ask(victim, request()))[b"grpc-status"] == b"0"


async def test_a_header_bomb_ends_the_connection(listen, raw_client):
    listener = await listen(limits=h2.Limits(header_list_bytes=8_192))
    peer = await raw_client(listener.addresses[0])
    peer.engine.send_request([*request(), *[(b"k%d" % number, b"v" * 500) for number in range(40)]])
    peer.flush()
    await peer.until(lambda: peer.eof)
    assert peer.of(ngh2.GoAwayReceived)[0].error_code == ngh2.ErrorCode.ENHANCE_YOUR_CALM
    assert listener.counters.connections_failed == 1


async def test_a_peer_that_does_not_read_is_given_up(listen, service, eventually):
    listener = await listen(write_stall_timeout_s=0.1, write_buffer_bytes=1_024)
    _, writer = await asyncio.open_connection(*listener.addresses[0].split(":"), limit=1_024)
    engine = ngh2.Connection(ngh2.Role.CLIENT)
    engine.initiate_connection({4: 2**30})
    engine.set_local_window_size(2**30)
    engine.send_request(request())
    writer.write(engine.data_to_send())
    await eventually(lambda: service.calls)
    reply = service.calls[0].reply
    reply.send_headers(())
    reply.send_data(bytes(20_000_000))
    await eventually(lambda: service.calls[0].cancelled)
    assert "read nothing" in listener.counters.last_failure
    assert listener.connections == 0
    writer.transport.abort()
