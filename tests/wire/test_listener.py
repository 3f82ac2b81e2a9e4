"""The callers' side against raw HTTP/2 clients: malformed requests, floods, early answers, drains."""

import asyncio
import socket
from contextlib import suppress

import grpc
import ngh2
import pytest

from relay_service.core.status import Code
from relay_service.message import frame
from relay_service.timers import TimerWheel
from relay_service.wire import h2
from relay_service.wire.connection import ConnectionSettings
from relay_service.wire.listener import Listener, ListenerSettings


def request(path=b"/a.B/C", content_type=b"application/grpc", method=b"POST", **fields):
    head = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    if content_type:
        head.append((b"content-type", content_type))
    return head + [(name.replace("_", "-").encode(), value) for name, value in fields.items()]


class Call:
    """Keeps what the wire says of a call."""

    def __init__(self, head, reply):
        self.head = head
        self.reply = reply
        self.data = []
        self.ended = False
        self.cancelled = 0
        self.drained = 0

    def on_request_data(self, data, *, end):
        self.data.append(data)
        self.ended = self.ended or end

    def on_cancelled(self):
        self.cancelled += 1

    def on_reply_drained(self):
        self.drained += 1


class Service:
    """A handler that keeps its calls; ``refuse`` answers at the headers."""

    def __init__(self):
        self.calls = []
        self.refuse = None

    def __call__(self, head, reply):
        if self.refuse is not None:
            reply.send_trailers(self.refuse, "no", ())
            return None
        call = Call(head, reply)
        self.calls.append(call)
        return call


@pytest.fixture
def service():
    return Service()


@pytest.fixture
async def listen(service, cleanup):
    async def start(connections_max=100, per_peer=100, **settings):
        timers = TimerWheel(asyncio.get_running_loop())
        connection = ConnectionSettings(**settings)
        bounds = ListenerSettings(
            connection=connection, connections_max=connections_max, connections_per_peer_max=per_peer
        )
        listener = Listener(service, timers, bounds)
        await listener.start("127.0.0.1", 0)

        async def close():
            await listener.close(0.0)
            timers.close()
            assert listener.connections == 0

        cleanup(close)
        return listener

    return start


def fields_of(peer, stream_id, kind=ngh2.ResponseReceived):
    for event in peer.of(kind):
        if event.stream_id == stream_id:
            return dict(event.headers)
    return None


async def ask(peer, headers, **kwargs):
    stream_id = peer.engine.send_request(headers, end_stream=True)
    peer.flush()
    return await peer.until(lambda: fields_of(peer, stream_id))


async def test_a_call_is_heard_with_its_head(listen, service, raw_client, eventually):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    stream_id = peer.engine.send_request(request(grpc_timeout=b"1S", x=b"y"))
    peer.engine.send_data(stream_id, frame(b"abc"), end_stream=True)
    peer.flush()
    await eventually(lambda: service.calls and service.calls[0].ended)
    call = service.calls[0]
    assert (call.head.method, call.head.timeout_s, list(call.head.metadata)) == ("a.B/C", 1.0, [(b"x", b"y")])
    assert call.head.peer.startswith("127.0.0.1:")
    assert b"".join(call.data) == frame(b"abc")
    call.reply.send_headers([(b"k", b"v")])
    call.reply.send_data(frame(b"xyz"))
    call.reply.send_trailers(Code.NOT_FOUND, "ü", [(b"t", b"1")])
    trailers = await peer.until(lambda: fields_of(peer, stream_id, ngh2.TrailersReceived))
    assert fields_of(peer, stream_id) == {
        b":status": b"200",
        b"content-type": b"application/grpc",
        b"k": b"v",
    }
    assert trailers == {b"grpc-status": b"5", b"grpc-message": b"%C3%BC", b"t": b"1"}
    assert peer.of(ngh2.DataReceived)[0].data == frame(b"xyz")
    assert call.cancelled == 0
    await eventually(lambda: listener.streams == 0)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (request(method=b"GET"), b"405"),
        (request(content_type=b"text/plain"), b"415"),
        (request(content_type=None), b"415"),
    ],
)
async def test_what_is_not_grpc_gets_an_http_error(listen, service, raw_client, headers, status):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    assert (await ask(peer, headers))[b":status"] == status
    assert listener.counters.http_rejections == 1
    assert not service.calls


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (request(grpc_timeout=b"1x"), b"13"),
        (request(path=b"/nomethod"), b"12"),
        (request(path=b"/a/b/c"), b"12"),
    ],
)
async def test_malformed_grpc_gets_a_status(listen, service, raw_client, headers, code):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    answer = await ask(peer, headers)
    assert (answer[b":status"], answer[b"grpc-status"]) == (b"200", code)
    assert listener.counters.call_rejections == 1
    assert not service.calls


async def test_a_refusal_is_one_header_block(listen, service, raw_client):
    service.refuse = Code.RESOURCE_EXHAUSTED
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    answer = await ask(peer, request())
    assert answer[b"grpc-status"] == b"8"
    assert peer.of(ngh2.ResponseReceived)[0].end_stream


async def test_a_request_that_goes_on_after_its_answer_is_stopped_without_error(
    listen, service, raw_client, eventually
):
    service.refuse = Code.RESOURCE_EXHAUSTED
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    stream_id = peer.engine.send_request(request())
    peer.engine.send_data(stream_id, b"x" * 1_000)
    peer.flush()
    await peer.until(lambda: peer.of(ngh2.StreamClosed))
    assert fields_of(peer, stream_id)[b"grpc-status"] == b"8"
    assert peer.of(ngh2.StreamReset)[0].error_code == ngh2.ErrorCode.NO_ERROR
    await eventually(lambda: listener.streams == 0)


async def test_uploads_that_are_refused_do_not_use_up_the_window(listen, service, raw_client, eventually):
    service.refuse = Code.RESOURCE_EXHAUSTED
    window = 256 * 1024
    listener = await listen(limits=h2.Limits(connection_window_bytes=window))
    peer = await raw_client(listener.addresses[0])
    for _ in range(40):
        stream_id = peer.engine.send_request(request())
        peer.engine.send_data(stream_id, b"x" * 60_000)
        peer.flush()
        await peer.until(lambda stream_id=stream_id: fields_of(peer, stream_id))
    await eventually(lambda: listener.streams == 0)
    assert peer.engine.remote_window_size > window // 4


async def test_an_early_answer_waits_for_the_callers_window(listen, service, raw_client, eventually):
    listener = await listen()
    # The caller's streams have no window at all, so trailers after headers must wait.
    peer = await raw_client(listener.addresses[0], settings={4: 0})
    stream_id = peer.engine.send_request(request())
    peer.flush()
    await eventually(lambda: service.calls)
    reply = service.calls[0].reply
    reply.send_headers(())
    reply.send_data(b"x" * 100)
    reply.send_trailers(Code.ABORTED, "", ())
    await peer.until(lambda: fields_of(peer, stream_id))
    peer.engine.set_local_window_size(1_000, stream_id=stream_id)
    peer.flush()
    trailers = await peer.until(lambda: fields_of(peer, stream_id, ngh2.TrailersReceived))
    assert trailers[b"grpc-status"] == b"10"
    await peer.until(lambda: peer.of(ngh2.StreamClosed))
    await eventually(lambda: listener.streams == 0)


@pytest.mark.parametrize("answered", [False, True])
async def test_a_reset_by_the_caller_cancels_the_call_unless_answered(
    listen, service, raw_client, eventually, answered
):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    stream_id = peer.engine.send_request(request())
    peer.flush()
    await eventually(lambda: service.calls)
    call = service.calls[0]
    if answered:
        call.reply.send_trailers(Code.OK, "", ())
    peer.engine.reset_stream(stream_id)
    peer.flush()
    await eventually(lambda: listener.streams == 0)
    assert call.cancelled == (0 if answered else 1)
    # What is sent to a caller who is gone goes nowhere, and does no harm.
    call.reply.send_headers(())
    call.reply.send_data(b"x")
    call.reply.send_trailers(Code.OK, "", ())
    call.reply.consumed(10)
    call.reply.reset()
    assert call.reply.buffered_bytes == 0


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


async def test_a_handler_that_fails_costs_one_stream_only(listen, service, raw_client, eventually, caplog):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    good = peer.engine.send_request(request())
    peer.flush()
    await eventually(lambda: service.calls)
    service.calls[0].on_request_data = lambda *_, **__: 1 / 0
    bad = peer.engine.send_request(request(path=b"/bad.B/C"))
    peer.engine.send_data(good, b"x")
    peer.flush()
    await peer.until(lambda: peer.of(ngh2.StreamReset))
    assert peer.of(ngh2.StreamReset)[0].error_code == ngh2.ErrorCode.INTERNAL_ERROR
    await eventually(lambda: len(service.calls) == 2)
    service.calls[1].reply.send_trailers(Code.OK, "", ())
    await peer.until(lambda: fields_of(peer, bad))
    assert listener.counters.handler_failures == 1
    assert "failed" in caplog.text


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


async def test_an_end_too_large_to_send_loses_its_details_and_keeps_its_status(
    listen, service, raw_client, eventually
):
    listener = await listen(limits=h2.Limits(header_block_sent_bytes=2_000))
    peer = await raw_client(listener.addresses[0])
    large = [(b"x", b"y" * 5_000)]
    for committed in (False, True):
        stream_id = peer.engine.send_request(request(), end_stream=True)
        peer.flush()
        await eventually(lambda: service.calls)
        reply = service.calls.pop().reply
        if committed:
            reply.send_headers(())
        reply.send_trailers(Code.NOT_FOUND, "m" * 3_000, large)
        kind = ngh2.TrailersReceived if committed else ngh2.ResponseReceived
        fields = await peer.until(lambda sid=stream_id, kind=kind: fields_of(peer, sid, kind))
        assert fields[b"grpc-status"] == b"5"
        assert fields[b"grpc-message"] == b"m" * 256
        assert b"x" not in fields
    assert not peer.of(ngh2.StreamReset)


async def test_window_comes_back_after_the_half_close(listen, service, raw_client, eventually):
    listener = await listen(limits=h2.Limits(connection_window_bytes=65_535))
    peer = await raw_client(listener.addresses[0])
    stream_id = peer.engine.send_request(request())
    peer.engine.send_data(stream_id, bytes(60_000), end_stream=True)
    peer.flush()
    await eventually(lambda: service.calls and service.calls[0].ended)
    left = peer.engine.remote_window_size
    service.calls[0].reply.consumed(60_000)
    await peer.until(lambda: peer.engine.remote_window_size >= left + 60_000)
    service.calls[0].reply.send_trailers(Code.OK, "", ())


async def test_a_call_that_fails_at_the_loss_of_its_caller_silences_no_other(
    listen, service, raw_client, eventually, caplog
):
    listener = await listen()
    peer = await raw_client(listener.addresses[0])
    for _ in range(3):
        peer.engine.send_request(request())
    peer.flush()
    await eventually(lambda: len(service.calls) == 3)
    service.calls[0].on_cancelled = lambda: 1 / 0
    peer.writer.transport.abort()
    await eventually(lambda: listener.connections == 0)
    assert [call.cancelled for call in service.calls[1:]] == [1, 1]
    assert "failed" in caplog.text


async def test_a_call_that_fails_when_its_reply_drained_costs_its_stream_only(
    listen, service, raw_client, eventually, caplog
):
    listener = await listen()
    peer = await raw_client(listener.addresses[0], settings={4: 0})
    streams = [peer.engine.send_request(request(), end_stream=True) for _ in range(2)]
    peer.flush()
    await eventually(lambda: len(service.calls) == 2)
    for call in service.calls:
        call.reply.send_headers(())
        call.reply.send_data(bytes(65_537))
    service.calls[0].on_reply_drained = lambda: 1 / 0
    await peer.until(lambda: len(peer.of(ngh2.ResponseReceived)) == 2)
    for stream_id in streams:
        peer.engine.set_local_window_size(1_000_000, stream_id=stream_id)
    peer.engine.set_local_window_size(10_000_000)
    peer.flush()
    await eventually(lambda: service.calls[1].drained)
    await peer.until(lambda: peer.of(ngh2.StreamReset))
    assert [event.stream_id for event in peer.of(ngh2.StreamReset)] == streams[:1]
    assert "failed" in caplog.text
    service.calls[1].reply.send_trailers(Code.OK, "", ())
    await eventually(lambda: listener.streams == 0)


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
