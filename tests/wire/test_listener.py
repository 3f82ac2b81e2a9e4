"""The callers' side against raw HTTP/2 clients: heads, refusals, early answers, failures of a handler."""

import ngh2
import pytest

from relay_service.core.status import Code
from relay_service.message import frame
from relay_service.wire import h2
from tests.wire.service import ask, fields_of, request


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
    assert call.reply.buffered_bytes == 0


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
