"""An upstream's connections: connecting, losing, replacing, closing."""

import asyncio
import random
from contextlib import suppress

import ngh2
import pytest

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream, UpstreamSettings, UpstreamState
from relay_service.wire.client import ClientState
from relay_service.wire.connection import ConnectionSettings
from relay_service.wire.dial import Target
from tests.ports import free_port
from tests.wire.asking import OK, answer, ask


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:x", "host:0", "host:65536", "unix:"])
def test_a_target_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="a target is"):
        Target.parse(text)


def test_targets_are_read():
    assert Target.parse("a.b:80") == Target("a.b", 80)
    assert Target.parse("[::1]:80").authority == "[::1]:80"
    assert Target.parse("unix:/x/y").path == "/x/y"


async def test_it_connects_before_it_is_asked(upstream, raw_server, eventually):
    server = await raw_server()
    up = upstream(server.target, connections=2)
    assert up.state is UpstreamState.CONNECTING
    assert await up.wait_ready(5)
    await eventually(lambda: up.counters.connects == 2)
    assert up.state is UpstreamState.READY


async def test_attempts_spread_over_the_connections(upstream, raw_server, new_sink, eventually):
    server = await raw_server()
    up = upstream(server.target, connections=2)
    await eventually(lambda: up.counters.connects == 2)
    for _ in range(10):
        ask(up, new_sink())
    await eventually(lambda: [len(peer.of(ngh2.RequestReceived)) for peer in server.peers] == [5, 5])


async def test_attempts_wait_for_the_first_connection(upstream, raw_server, new_sink):
    server = await raw_server(answer)
    up = upstream(server.target)
    sink = new_sink()
    ask(up, sink)
    assert (await sink.end()).delivery is Delivery.ANSWERED


async def test_an_upstream_that_is_away_fails_attempts_at_once_with_the_reason(
    upstream, new_sink, eventually
):
    up = upstream(f"127.0.0.1:{free_port()}", backoff_initial_s=30, backoff_max_s=30)
    await eventually(lambda: up.state is UpstreamState.BACKING_OFF)
    sink = new_sink()
    ask(up, sink)
    end = await sink.end()
    assert (end.delivery, end.code) == (Delivery.NOT_SENT, Code.UNAVAILABLE)
    assert "cannot connect" in end.message
    assert up.counters.attempts_unsent == 1


async def test_it_reconnects_when_the_upstream_is_back(upstream, raw_server, new_sink, proxy, eventually):
    server = await raw_server(answer)
    between = await proxy(server.target)
    up = upstream(between.target, connections=1)
    assert await up.wait_ready(5)
    await server.close()
    between.cut()
    await eventually(lambda: up.counters.disconnects == 1)
    await eventually(lambda: up.counters.connect_failures >= 1)
    again = await raw_server(answer)
    between.redirect(again.target)
    assert await up.wait_ready(5)
    sink = new_sink()
    ask(up, sink)
    assert (await sink.end()).delivery is Delivery.ANSWERED
    seen = up.pool()
    assert (seen.connects, seen.reconnects, seen.connections["READY"]) == (2, 1, 1)


async def test_backoff_doubles_to_its_limit_with_jitter_and_starts_anew_after_success():
    class Timers:
        """Keeps what was set; nothing fires by itself."""

        def __init__(self):
            self.delays = []

        def call_at(self, when, callback, argument):
            self.delays.append(when - 100.0)
            self.callback = callback
            return self

        def cancel(self):
            pass

    timers = Timers()
    up = Upstream("u", "127.0.0.1:1", timers, UpstreamSettings(), rng=random.Random(5), clock=lambda: 100.0)
    for _ in range(6):
        up._back_off()
        up._backoff_timer = None
    for delay_s, expected_s in zip(timers.delays, [0.1, 0.2, 0.4, 0.5, 0.5, 0.5], strict=True):
        assert expected_s * 0.8 <= delay_s <= expected_s * 1.2
    assert len(set(timers.delays)) == 6


@pytest.mark.parametrize(("timeout_s", "delivery"), [(1.0, Delivery.NOT_SENT), (10.0, Delivery.ANSWERED)])
async def test_an_attempt_that_waited_for_a_connection_is_sent_only_with_time_for_an_answer(
    upstream, raw_server, new_sink, proxy, eventually, *, timeout_s, delivery
):
    server = await raw_server(answer)
    between = await proxy(f"127.0.0.1:{free_port()}")
    up = upstream(between.target, connections=1, patience_s=9, backoff_initial_s=0.9, backoff_jitter=0)
    await eventually(lambda: up.counters.connect_failures == 1)
    sink = new_sink()
    attempt = up.start("pay.Ledger/Charge", (), timeout_s, sink)
    attempt.send_data(b"", end=True)
    between.redirect(server.target)
    end = await sink.end()
    assert end.delivery is delivery
    assert up.counters.attempts_unsent == (delivery is Delivery.NOT_SENT)


async def test_the_backoff_does_not_grow_while_each_connection_answers(
    upstream, raw_server, new_sink, proxy, eventually
):
    server = await raw_server(answer)
    between = await proxy(server.target)
    up = upstream(between.target, connections=1, backoff_initial_s=0.01, backoff_max_s=30, backoff_jitter=0)
    for cuts in range(1, 7):
        assert await up.wait_ready(5)
        sink = new_sink()
        ask(up, sink)
        assert (await sink.end()).delivery is Delivery.ANSWERED
        between.cut()
        await eventually(lambda cuts=cuts: up.counters.disconnects == cuts)
        assert up._backoff_s == 0.02, "one step on from the initial backoff, as after the first"


async def test_the_backoff_grows_while_connections_break_before_they_have_answered(
    upstream, raw_server, proxy, eventually
):
    server = await raw_server(answer)
    between = await proxy(server.target)
    up = upstream(between.target, connections=1, backoff_initial_s=0.01, backoff_max_s=30, backoff_jitter=0)
    for cuts in range(1, 4):
        assert await up.wait_ready(5)
        between.cut()
        await eventually(lambda cuts=cuts: up.counters.disconnects == cuts)
        assert up._backoff_s == 0.01 * 2**cuts


async def test_a_peer_without_settings_is_no_connection(upstream, new_sink):
    gone = asyncio.Event()

    async def silent(reader, writer):
        await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    target = "{}:{}".format(*server.sockets[0].getsockname())
    up = upstream(target, connections=1, connection=ConnectionSettings(handshake_timeout_s=0.1))
    sink = new_sink()
    ask(up, sink)
    end = await sink.end()
    assert (end.delivery, end.code) == (Delivery.NOT_SENT, Code.UNAVAILABLE)
    assert "SETTINGS" in end.message
    await asyncio.wait_for(gone.wait(), 5)
    await up.close(0.0)
    server.close()


async def test_a_peer_that_is_no_http_2_is_no_connection(upstream, new_sink):
    async def http_1(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(http_1, "127.0.0.1", 0)
    up = upstream("{}:{}".format(*server.sockets[0].getsockname()), connections=1)
    sink = new_sink()
    ask(up, sink)
    assert (await sink.end()).delivery is Delivery.NOT_SENT
    await up.close(0.0)
    server.close()


async def test_a_connection_that_fails_with_its_first_bytes_is_never_used(upstream, eventually):
    gone = asyncio.Event()

    async def mad(reader, writer):
        engine = ngh2.Connection(ngh2.Role.SERVER)
        engine.initiate_connection()
        for _ in range(2_000):
            engine.ping()
        writer.write(engine.data_to_send())  # ready and lost in one read
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(mad, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    up = upstream(address, connections=1, backoff_initial_s=30, backoff_max_s=30)
    await eventually(lambda: up.counters.connect_failures)
    assert not up._live
    assert not up.counters.connects
    assert "ENHANCE_YOUR_CALM" in up.counters.last_error
    await asyncio.wait_for(gone.wait(), 5)
    server.close()


async def test_a_request_that_cannot_be_sent_harms_no_other(upstream, raw_server, new_sink):
    server = await raw_server(answer)
    up = upstream(server.target, connections=1)
    bad, good, later = new_sink(), new_sink(), new_sink()
    up.start("a.B/Ü", (), None, bad)  # both wait for the first connection
    ask(up, good)
    assert (await good.end()).delivery is Delivery.ANSWERED
    end = await bad.end()
    assert (end.delivery, end.code) == (Delivery.NOT_SENT, Code.RESOURCE_EXHAUSTED)
    up.start("a.B/Ü", (), None, bad := new_sink())
    assert not bad.ends, "on_end from inside start"
    assert (await bad.end()).code is Code.RESOURCE_EXHAUSTED
    ask(up, later)
    assert (await later.end()).delivery is Delivery.ANSWERED
    assert not up._waiting
    assert len(server.peers) == 1


async def test_a_connection_that_takes_no_more_streams_is_passed_over(
    upstream, raw_server, new_sink, eventually
):
    server = await raw_server(answer)
    up = upstream(server.target, connections=2)
    await eventually(lambda: up.counters.connects == 2)
    spent = up._choose()
    spent.engine.terminate_connection()
    sink = new_sink()
    ask(up, sink)
    assert spent.state is ClientState.READY, "it retires, but not from inside start"
    assert (await sink.end()).delivery is Delivery.ANSWERED
    await eventually(lambda: spent.state is ClientState.LOST)
    await eventually(lambda: up.counters.connects == 3)


async def test_an_attempt_overtaken_by_goaway_before_it_left_may_be_sent_elsewhere(
    upstream, raw_server, new_sink, eventually
):
    server = await raw_server()
    up = upstream(server.target, connections=1)
    assert await up.wait_ready(5)
    connection = up._usable[0]
    # After its GOAWAY the server's engine takes no bytes any more.
    await server.peers[0].until(lambda: server.peers[0].of(ngh2.SettingsAcknowledged))
    connection._write_blocked = True  # what is queued stays with the engine
    sink = new_sink()
    ask(up, sink)
    server.peers[0].engine.send_goaway(0, last_stream_id=0)
    server.peers[0].flush()
    await eventually(lambda: connection.state is ClientState.RETIRED)
    assert (up.pool().goaways, up.pool().connections["RETIRED"], up.pool().streams) == (1, 1, 1)
    connection.resume_writing()
    end = await sink.end()
    assert (end.delivery, end.code) == (Delivery.NOT_SENT, Code.UNAVAILABLE)


async def test_a_sink_that_fails_does_not_silence_the_others(upstream, raw_server, new_sink, caplog):
    server = await raw_server()
    up = upstream(server.target, connections=1, backoff_initial_s=30, backoff_max_s=30)
    assert await up.wait_ready(5)
    sinks = [new_sink() for _ in range(4)]
    for sink in sinks:
        ask(up, sink)
    sinks[0].on_end = lambda *_: 1 / 0
    await server.peers[0].until(lambda: len(server.peers[0].of(ngh2.RequestReceived)) == 4)
    server.peers[0].writer.transport.abort()
    for sink in sinks[1:]:
        assert (await sink.end()).delivery is Delivery.UNANSWERED
    assert "failed" in caplog.text


async def test_a_sink_that_fails_does_not_silence_those_that_wait_with_it(upstream, new_sink, caplog):
    up = upstream(f"127.0.0.1:{free_port()}", connections=1, patience_s=0.0, backoff_initial_s=30)
    sinks = [new_sink() for _ in range(3)]
    for sink in sinks:
        ask(up, sink)
    sinks[0].on_end = lambda *_: 1 / 0
    for sink in sinks[1:]:
        assert (await sink.end()).delivery is Delivery.NOT_SENT
    assert "failed" in caplog.text


async def test_close_waits_for_streams_and_says_goodbye(upstream, raw_server, new_sink, eventually):
    server = await raw_server()
    up = upstream(server.target, connections=1)
    assert await up.wait_ready(5)
    sink = new_sink()
    ask(up, sink)
    peer = server.peers[0]
    await peer.until(lambda: peer.of(ngh2.RequestReceived))
    closing = asyncio.create_task(up.close(5.0))
    await asyncio.sleep(0)
    late = new_sink()
    ask(up, late)
    assert (await late.end()).delivery is Delivery.NOT_SENT
    assert not closing.done()
    peer.engine.send_response(1, [*OK, (b"grpc-status", b"0")], end_stream=True)
    peer.flush()
    assert (await sink.end()).delivery is Delivery.ANSWERED
    await asyncio.wait_for(closing, 5)
    await peer.until(lambda: peer.of(ngh2.GoAwayReceived))
    assert up.state is UpstreamState.CLOSED


async def test_close_is_bounded_and_tells_what_is_known(upstream, raw_server, new_sink):
    server = await raw_server()
    up = upstream(server.target, connections=1)
    assert await up.wait_ready(5)
    sink = new_sink()
    ask(up, sink)
    peer = server.peers[0]
    await peer.until(lambda: peer.of(ngh2.RequestReceived))
    await asyncio.wait_for(up.close(0.05), 5)
    assert (await sink.end()).delivery is Delivery.UNANSWERED


async def test_close_while_connecting_leaves_nothing(new_sink, eventually):
    accepted = []
    server = await asyncio.start_server(lambda _, w: accepted.append(w), "127.0.0.1", 0)
    timers = TimerWheel(asyncio.get_running_loop())
    up = Upstream("u", "{}:{}".format(*server.sockets[0].getsockname()), timers, rng=random.Random(1))
    up.open()
    sink = new_sink()
    ask(up, sink)
    await eventually(lambda: accepted)
    await up.close(0.0)
    assert (await sink.end()).delivery is Delivery.NOT_SENT
    assert not up._dials
    server.close()
    for writer in accepted:
        writer.transport.abort()
    timers.close()


async def test_unix_targets_are_reached(upstream, new_sink, tmp_path, cleanup):
    path = str(tmp_path / "raw.sock")

    async def serve(reader, writer):
        engine = ngh2.Connection(ngh2.Role.SERVER)
        engine.initiate_connection()
        writer.write(engine.data_to_send())
        while data := await reader.read(65_536):
            engine.receive_data(data)
            for event in engine.events():
                if isinstance(event, ngh2.DataReceived) and event.end_stream:
                    engine.send_response(event.stream_id, [*OK, (b"grpc-status", b"0")], end_stream=True)
            writer.write(engine.data_to_send())
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    up = upstream(f"unix:{path}", connections=1)
    sink = new_sink()
    started = ask(up, sink)
    assert (await sink.end()).code is Code.OK
    assert started.peer == f"unix:{path}"
    await up.close(0.0)
    server.close()
