"""What an attempt's end says, against raw servers that answer, refuse, lie and vanish."""

import ngh2
import pytest

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.message import frame
from relay_service.upstream import UpstreamState
from relay_service.wire.liveness import LivenessSettings
from tests.ports import free_port

OK = [(b":status", b"200"), (b"content-type", b"application/grpc")]
REFUSED, CANCEL, CALM = ngh2.ErrorCode.REFUSED_STREAM, ngh2.ErrorCode.CANCEL, ngh2.ErrorCode.ENHANCE_YOUR_CALM


def on_request(act):
    """A script that does ``act(peer, stream_id)`` once a request is whole."""

    def script(peer, event):
        if isinstance(event, (ngh2.RequestReceived, ngh2.DataReceived)) and event.end_stream:
            act(peer, event.stream_id)

    return script


def trailers_only(*fields):
    return on_request(lambda peer, sid: peer.engine.send_response(sid, [*OK, *fields], end_stream=True))


async def attempt(upstream, sink, target, **settings):
    up = upstream(target, connections=1, **settings)
    started = up.start("a.B/C", [(b"k", b"v")], 5.0, sink)
    started.send_data(frame(b"hi"), end=True)
    return await sink.end(), started


async def test_an_answer_is_heard_whole(upstream, new_sink, raw_server):
    def act(peer, sid):
        peer.engine.send_informational_response(sid, [(b":status", b"103")])
        peer.engine.send_response(sid, [*OK, (b"h", b"1")])
        peer.engine.send_data(sid, frame(b"one"))
        peer.engine.send_data(sid, frame(b"two"))
        peer.engine.send_trailers(sid, [(b"grpc-status", b"0"), (b"t", b"2")])

    server = await raw_server(on_request(act))
    sink = new_sink()
    end, started = await attempt(upstream, sink, server.target)
    assert (end.delivery, end.code, list(end.trailers)) == (Delivery.ANSWERED, Code.OK, [(b"t", b"2")])
    assert [list(headers) for headers in sink.headers] == [[(b"h", b"1")]]
    assert b"".join(sink.data) == frame(b"one") + frame(b"two")
    assert started.peer == server.target
    request = dict(server.peers[0].of(ngh2.RequestReceived)[0].headers)
    assert request.pop(b"grpc-timeout").endswith(b"u")
    assert request == {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/a.B/C",
        b":authority": server.target.encode(),
        b"te": b"trailers",
        b"content-type": b"application/grpc",
        b"k": b"v",
    }


def respond(*fields, end=True):
    return on_request(lambda peer, sid: peer.engine.send_response(sid, list(fields), end_stream=end))


def reset(error_code):
    return on_request(lambda peer, sid: peer.engine.reset_stream(sid, error_code))


def vanish(peer, _sid):
    peer.writer.transport.abort()


def hang_up(peer, _sid):
    peer.writer.close()


def talk_nonsense(peer, _sid):
    peer.writer.write(b"garbage!" * 8)


def go_away_before_it(peer, _sid):
    peer.engine.terminate_connection(0, last_stream_id=0)


def go_away_with_it(peer, sid):
    peer.engine.terminate_connection(CALM, last_stream_id=sid)
    peer.flush()
    peer.writer.close()


def lie_about_the_length(peer, sid):
    peer.engine.send_response(sid, [*OK, (b"content-length", b"3")])
    peer.engine.send_data(sid, b"12345")
    peer.engine.send_trailers(sid, [(b"grpc-status", b"0")])


HTML = [(b":status", b"200"), (b"content-type", b"text/html")]
ENDS = {
    "a status": (
        trailers_only((b"grpc-status", b"5"), (b"grpc-message", b"gone")),
        Delivery.ANSWERED,
        Code.NOT_FOUND,
    ),
    "OK": (trailers_only((b"grpc-status", b"0")), Delivery.ANSWERED, Code.OK),
    "no status": (trailers_only(), Delivery.UNANSWERED, Code.UNKNOWN),
    "a status that is none": (trailers_only((b"grpc-status", b"x")), Delivery.UNANSWERED, Code.UNKNOWN),
    "HTTP 503": (respond((b":status", b"503")), Delivery.UNANSWERED, Code.UNAVAILABLE),
    "HTTP 404 and a body": (
        respond((b":status", b"404"), end=False),
        Delivery.UNANSWERED,
        Code.UNIMPLEMENTED,
    ),
    "a web page": (respond(*HTML, end=False), Delivery.UNANSWERED, Code.UNKNOWN),
    "REFUSED_STREAM": (reset(REFUSED), Delivery.NOT_SENT, Code.UNAVAILABLE),
    "CANCEL": (reset(CANCEL), Delivery.UNANSWERED, Code.CANCELLED),
    "ENHANCE_YOUR_CALM": (reset(CALM), Delivery.UNANSWERED, Code.RESOURCE_EXHAUSTED),
    "NO_ERROR": (reset(0), Delivery.UNANSWERED, Code.INTERNAL),
    "a TCP reset": (on_request(vanish), Delivery.UNANSWERED, Code.UNAVAILABLE),
    "a TCP end": (on_request(hang_up), Delivery.UNANSWERED, Code.UNAVAILABLE),
    "no HTTP/2": (on_request(talk_nonsense), Delivery.UNANSWERED, Code.UNAVAILABLE),
    "a GOAWAY that excludes it": (on_request(go_away_before_it), Delivery.NOT_SENT, Code.UNAVAILABLE),
    "a GOAWAY that includes it": (on_request(go_away_with_it), Delivery.UNANSWERED, Code.UNAVAILABLE),
    "a forbidden header": (
        trailers_only((b"grpc-status", b"0"), (b"connection", b"close")),
        Delivery.UNANSWERED,
        Code.INTERNAL,
    ),
    "a length that lies": (on_request(lie_about_the_length), Delivery.UNANSWERED, Code.INTERNAL),
}


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS.keys())
async def test_every_way_to_end_tells_what_is_known(upstream, new_sink, raw_server, case):
    script, delivery, code = case
    server = await raw_server(script)
    end, _ = await attempt(upstream, new_sink(), server.target)
    assert (end.delivery, end.code) == (delivery, code), end.message
    assert end.message or delivery is Delivery.ANSWERED


def hang_up_after_headers(peer, _sid):
    peer.flush()
    peer.writer.close()


def headers_then(act):
    def script(peer, sid):
        peer.engine.send_response(sid, OK)
        act(peer, sid)

    return on_request(script)


@pytest.mark.parametrize(
    "act",
    [
        lambda peer, sid: peer.engine.send_data(sid, frame(b"x"), end_stream=True),
        lambda peer, sid: peer.engine.send_trailers(sid, [(b"x", b"y")]),
        lambda peer, sid: (peer.flush(), peer.engine.reset_stream(sid, REFUSED)),
        hang_up_after_headers,
    ],
)
async def test_after_headers_only_a_status_is_an_answer(upstream, new_sink, raw_server, act):
    server = await raw_server(headers_then(act))
    sink = new_sink()
    end, _ = await attempt(upstream, sink, server.target)
    assert end.delivery is Delivery.UNANSWERED
    assert len(sink.headers) == 1


async def test_the_trailers_fields_of_an_early_answer_end_the_request(
    upstream, new_sink, raw_server, eventually
):
    def script(peer, event):
        if isinstance(event, ngh2.RequestReceived):
            peer.engine.send_response(event.stream_id, [*OK, (b"grpc-status", b"9")], end_stream=True)

    server = await raw_server(script)
    up = upstream(server.target, connections=1)
    sink = new_sink()
    started = up.start("a.B/C", (), None, sink)
    started.send_data(frame(b"first"), end=False)
    assert (await sink.end()).code is Code.FAILED_PRECONDITION
    started.send_data(frame(b"more"), end=False)  # goes nowhere
    peer = server.peers[0]
    await peer.until(lambda: peer.of(ngh2.StreamReset))
    assert peer.of(ngh2.StreamReset)[0].error_code == ngh2.ErrorCode.NO_ERROR
    assert b"grpc-timeout" not in dict(peer.of(ngh2.RequestReceived)[0].headers)
    for connection in up._live:
        await eventually(lambda connection=connection: not connection.streams)


async def test_cancel_before_a_connection_means_not_sent(upstream, new_sink, raw_server):
    server = await raw_server()
    up = upstream(server.target)
    sink = new_sink()
    started = up.start("a.B/C", (), None, sink)
    started.send_data(b"x" * 100, end=True)
    assert started.peer == ""
    assert started.buffered_bytes == 100
    assert started.cancel() is Delivery.NOT_SENT
    assert await up.wait_ready(5)
    assert not server.peers[0].of(ngh2.RequestReceived)
    assert not sink.ends


async def test_cancel_in_the_turn_of_its_start_means_not_sent_and_nothing_leaves(
    upstream, new_sink, raw_server
):
    server = await raw_server(trailers_only((b"grpc-status", b"0")))
    up = upstream(server.target, connections=1)
    assert await up.wait_ready(5)
    doomed, other = new_sink(), new_sink()
    started = up.start("a.B/Doomed", (), None, doomed)
    started.send_data(b"", end=True)
    assert started.cancel() is Delivery.NOT_SENT
    up.start("a.B/Other", (), None, other).send_data(b"", end=True)
    await other.end()
    paths = [dict(event.headers)[b":path"] for event in server.peers[0].of(ngh2.RequestReceived)]
    assert paths == [b"/a.B/Other"]
    assert not doomed.ends


async def test_cancel_after_it_left_means_unanswered_and_resets(upstream, new_sink, raw_server, eventually):
    server = await raw_server()
    up = upstream(server.target, connections=1)
    sink = new_sink()
    started = up.start("a.B/C", (), None, sink)
    started.send_data(b"x", end=False)
    await eventually(lambda: server.peers and server.peers[0].of(ngh2.DataReceived))
    assert started.cancel() is Delivery.UNANSWERED
    assert started.cancel() is Delivery.UNANSWERED
    peer = server.peers[0]
    await peer.until(lambda: peer.of(ngh2.StreamReset))
    assert peer.of(ngh2.StreamReset)[0].error_code == CANCEL
    assert not sink.ends


async def test_goaway_moves_later_streams_and_lets_earlier_ones_end(
    upstream, new_sink, raw_server, eventually
):
    server = await raw_server()
    up = upstream(server.target, connections=1)
    sinks = [new_sink() for _ in range(3)]
    for sink in sinks:
        up.start("a.B/C", (), None, sink).send_data(b"", end=True)
    await eventually(lambda: server.peers and len(server.peers[0].of(ngh2.RequestReceived)) == 3)
    first = server.peers[0]
    first.engine.send_goaway(0, last_stream_id=3)
    first.flush()
    end = await sinks[2].end()
    assert (end.delivery, end.code) == (Delivery.NOT_SENT, Code.UNAVAILABLE)
    assert not sinks[0].ends
    # A replacement is there for new attempts while the old connection finishes.
    await eventually(lambda: len(server.peers) == 2 and server.peers[1].of(ngh2.SettingsAcknowledged))
    later = new_sink()
    up.start("a.B/C", (), None, later).send_data(b"", end=True)
    await eventually(lambda: server.peers[1].of(ngh2.RequestReceived))
    for sid in (1, 3):
        first.engine.send_response(sid, [*OK, (b"grpc-status", b"0")], end_stream=True)
    first.flush()
    assert [(await sink.end()).delivery for sink in sinks[:2]] == [Delivery.ANSWERED] * 2
    await first.until(lambda: first.eof)
    assert not later.ends


async def test_the_peers_stream_limit_is_obeyed_and_waiting_attempts_are_not_sent(
    upstream, new_sink, raw_server, eventually
):
    server = await raw_server(settings={ngh2.Setting.MAX_CONCURRENT_STREAMS: 2})
    up = upstream(server.target, connections=1, waiting_max=2)
    assert await up.wait_ready(5)
    sinks = [new_sink() for _ in range(5)]
    attempts = [up.start(f"a.B/{number}", (), None, sink) for number, sink in enumerate(sinks)]
    for started in attempts:
        started.send_data(b"", end=True)
    end = await sinks[4].end()
    assert (end.delivery, end.code) == (Delivery.NOT_SENT, Code.UNAVAILABLE)
    assert "wait for upstream" in end.message
    peer = server.peers[0]
    await peer.until(lambda: len(peer.of(ngh2.RequestReceived)) == 2)
    assert attempts[2].cancel() is Delivery.NOT_SENT
    peer.engine.send_response(1, [*OK, (b"grpc-status", b"0")], end_stream=True)
    peer.flush()
    await peer.until(lambda: len(peer.of(ngh2.RequestReceived)) == 3)
    assert dict(peer.of(ngh2.RequestReceived)[2].headers)[b":path"] == b"/a.B/3"
    assert len(up._waiting) == 0


async def test_a_limit_that_grows_lets_waiting_attempts_go(upstream, new_sink, raw_server):
    server = await raw_server(settings={ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    up = upstream(server.target, connections=1)
    assert await up.wait_ready(5)
    for _ in range(3):
        up.start("a.B/C", (), None, new_sink()).send_data(b"", end=True)
    peer = server.peers[0]
    await peer.until(lambda: len(peer.of(ngh2.RequestReceived)) == 1)
    peer.engine.update_settings({ngh2.Setting.MAX_CONCURRENT_STREAMS: 3})
    peer.flush()
    await peer.until(lambda: len(peer.of(ngh2.RequestReceived)) == 3)


async def test_evidence_is_true_wherever_the_connection_is_cut(upstream, new_sink, raw_server, proxy):
    """Whenever the attempt says NOT_SENT, the server has seen no request."""
    seen = 0
    for cut_after in [*range(1, 140, 9), *range(140, 700, 40)]:
        server = await raw_server()
        cutter = await proxy(server.target)
        cutter.cut_after_bytes = cut_after
        up = upstream(cutter.target, connections=1, connections_spare=0)
        sink = new_sink()
        up.start("a.B/C", [(b"k", b"v" * 200)], None, sink).send_data(frame(b"x" * 300), end=True)
        end = await sink.end()
        await up.close(0.0)
        requests = sum(len(peer.of(ngh2.RequestReceived)) for peer in server.peers)
        assert end.code is Code.UNAVAILABLE
        assert end.delivery in (Delivery.NOT_SENT, Delivery.UNANSWERED)
        if requests:
            assert end.delivery is Delivery.UNANSWERED, f"cut after {cut_after} bytes"
        seen += end.delivery is Delivery.UNANSWERED
    assert seen, "no cut came late enough to be ambiguous"


async def test_on_end_is_never_called_from_inside_start(upstream, new_sink):
    up = upstream(f"127.0.0.1:{free_port()}")
    sink = new_sink()
    up.start("a.B/C", (), None, sink)
    assert not sink.ends
    end = await sink.end()
    assert (end.delivery, end.code) == (Delivery.NOT_SENT, Code.UNAVAILABLE)
    assert "cannot connect" in end.message
    at_once = new_sink()
    up.start("a.B/C", (), None, at_once)
    assert not at_once.ends
    await at_once.end()


async def test_an_attempt_cancelled_after_it_failed_to_start_hears_nothing(upstream, new_sink, eventually):
    up = upstream(f"127.0.0.1:{free_port()}", backoff_initial_s=30, backoff_max_s=30)
    await eventually(lambda: up.state is UpstreamState.BACKING_OFF)
    doomed, witness = new_sink(), new_sink()
    started = up.start("a.B/C", (), None, doomed)
    assert started.cancel() is Delivery.NOT_SENT
    up.start("a.B/C", (), None, witness)
    await witness.end()
    assert not doomed.ends


async def test_metadata_too_large_to_send_is_not_sent(upstream, new_sink, raw_server):
    server = await raw_server()
    up = upstream(server.target, connections=1)
    assert await up.wait_ready(5)
    sink = new_sink()
    up.start("a.B/C", [(b"k", b"v" * 300_000)], None, sink).send_data(b"", end=True)
    end = await sink.end()
    assert (end.delivery, end.code) == (Delivery.NOT_SENT, Code.RESOURCE_EXHAUSTED)
    assert not server.peers[0].of(ngh2.RequestReceived)


async def test_a_sink_that_fails_costs_its_stream_only(upstream, new_sink, raw_server, caplog):
    server = await raw_server(
        on_request(
            lambda peer, sid: (
                peer.engine.send_response(sid, OK),
                peer.engine.send_trailers(sid, [(b"grpc-status", b"0")]),
            )
        )
    )
    up = upstream(server.target, connections=1, liveness=LivenessSettings())
    assert await up.wait_ready(5)
    bad, good = new_sink(), new_sink()
    bad.on_response_headers = lambda *_: 1 / 0
    up.start("a.B/C", (), None, bad).send_data(b"", end=True)
    up.start("a.B/C", (), None, good).send_data(b"", end=True)
    assert (await good.end()).delivery is Delivery.ANSWERED
    assert "failed" in caplog.text
    end = await bad.end()
    assert (end.delivery, end.code) == (Delivery.UNANSWERED, Code.INTERNAL)
    assert "failed to handle" in end.message
