"""Connections that fall silent: questioned, left, replaced; and the living left in peace."""

import asyncio
import random
import time
from contextlib import suppress

import ngh2

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream, UpstreamSettings, UpstreamState
from relay_service.wire.client import ClientState
from relay_service.wire.liveness import LivenessSettings
from tests.wire.asking import OK, answer, ask

QUICK = LivenessSettings(silence_s=0.05, ping_timeout_s=0.1)


async def test_a_blackholed_connection_is_left_within_its_bound(
    upstream, raw_server, new_sink, proxy, eventually
):
    server = await raw_server(answer)
    hole = await proxy(server.target)
    up = upstream(hole.target, connections=1)
    assert await up.wait_ready(5)
    warm = new_sink()
    ask(up, warm)
    await warm.end()
    hole.blackholed = True
    sinks = [new_sink() for _ in range(3)]
    began = time.monotonic()
    for sink in sinks:
        ask(up, sink)
    ends = [await sink.end() for sink in sinks]
    took_s = time.monotonic() - began
    assert [(end.delivery, end.code) for end in ends] == [(Delivery.UNANSWERED, Code.UNAVAILABLE)] * 3
    assert "ping" in ends[0].message
    assert 1.2 <= took_s < 1.5 + 0.5, "0.6 s of silence, 0.6 s for the ping, and a busy machine"
    seen = up.pool()
    assert (seen.zombies, seen.disconnects, seen.pings - seen.pings_answered) == (1, 1, 1)
    hole.blackholed = False
    assert await up.wait_ready(5)
    after = new_sink()
    ask(up, after)
    assert (await after.end()).delivery is Delivery.ANSWERED


async def test_attempts_too_short_to_see_silence_do_not_hide_it(
    upstream, raw_server, new_sink, proxy, eventually
):
    server = await raw_server(answer)
    hole = await proxy(server.target)
    up = upstream(hole.target, connections=1, liveness=LivenessSettings(silence_s=0.2, ping_timeout_s=0.2))
    assert await up.wait_ready(5)
    connection = up._usable[0]
    hole.blackholed = True
    began = time.monotonic()
    while not up.counters.disconnects:
        assert time.monotonic() - began < 2
        started = ask(up, new_sink())
        await asyncio.sleep(0.02)
        started.cancel()
        await eventually(lambda: not connection.streams)
        await asyncio.sleep(0.02)
    assert "ping" in up.counters.last_error


async def test_one_attempt_given_up_is_enough_to_find_a_dead_connection(
    upstream, raw_server, new_sink, proxy, eventually
):
    server = await raw_server(answer)
    hole = await proxy(server.target)
    up = upstream(hole.target, connections=1, liveness=QUICK)
    assert await up.wait_ready(5)
    connection = up._usable[0]
    answered = new_sink()
    ask(up, answered)
    await answered.end()  # nothing of the connection's beginning is still on its way
    written_id = connection._written_id
    hole.blackholed = True
    started = ask(up, new_sink())
    await eventually(lambda: connection._written_id > written_id)
    started.cancel()
    await eventually(lambda: up.counters.disconnects)
    assert "ping" in up.counters.last_error


async def test_slow_calls_on_a_living_connection_are_pinged_twice_and_then_left_in_peace(
    upstream, raw_server, new_sink, eventually
):
    server = await raw_server()
    up = upstream(server.target, connections=1, liveness=QUICK)
    assert await up.wait_ready(5)
    slow = new_sink()
    ask(up, slow)
    old = await eventually(lambda: server.peers and server.peers[0])
    # Silent for long: a second connection takes over.
    await eventually(lambda: len(server.peers) == 2)
    await eventually(lambda: up.counters.connects == 2)
    assert len(old.of(ngh2.PingReceived)) == 2
    ask(up, new_sink())
    await eventually(lambda: server.peers[1].of(ngh2.RequestReceived))
    assert len(old.of(ngh2.RequestReceived)) == 1
    assert len(old.of(ngh2.PingReceived)) == 2
    # The slow call is not harmed, and its answer makes the connection good again.
    old.engine.send_response(1, [*OK, (b"grpc-status", b"0")], end_stream=True)
    old.flush()
    assert (await slow.end()).delivery is Delivery.ANSWERED
    # One connection is enough: the one with fewer streams goes.
    await old.until(lambda: old.eof)
    assert up.state is UpstreamState.READY
    seen = up.pool()
    assert (seen.pings, seen.pings_answered, seen.zombies) == (2, 2, 0)
    assert 0 < seen.ping_round_trip_s <= seen.ping_round_trip_max_s < 1


async def test_when_all_connections_rest_the_last_heard_of_still_serves(
    upstream, raw_server, new_sink, eventually
):
    server = await raw_server()
    up = upstream(server.target, connections=1, connections_spare=0, connections_max=1, liveness=QUICK)
    assert await up.wait_ready(5)
    ask(up, new_sink())
    await eventually(lambda: not up._usable)
    assert up.state is UpstreamState.READY
    ask(up, new_sink())
    await eventually(lambda: len(server.peers[0].of(ngh2.RequestReceived)) == 2)
    assert len(server.peers) == 1


async def test_what_rests_is_replaced_although_it_keeps_its_streams_and_the_number_is_bounded(
    upstream, raw_server, new_sink, eventually
):
    server = await raw_server()
    up = upstream(server.target, connections=1, connections_spare=0, connections_max=3, liveness=QUICK)
    slow = []
    for number in range(1, 4):
        await eventually(lambda number=number: up.counters.connects == number and up._usable)
        slow.append(new_sink())
        ask(up, slow[-1])  # the connection will rest with it
    await eventually(lambda: not up._usable)
    ask(up, new_sink())
    await eventually(lambda: len(server.peers[2].of(ngh2.RequestReceived)) == 2)
    assert len(server.peers) == 3
    # Those that rested have a successor; the last of them has none.
    assert [c.state for c in up._live] == [ClientState.RETIRED, ClientState.RETIRED, ClientState.RESTING]
    for peer, sink in zip(server.peers, slow, strict=True):
        assert not sink.ends
        peer.engine.send_response(1, [*OK, (b"grpc-status", b"0")], end_stream=True)
        peer.flush()
        assert (await sink.end()).delivery is Delivery.ANSWERED
    await eventually(lambda: [peer.eof for peer in server.peers] == [True, True, False])


async def test_calls_succeed_soon_after_all_that_rest_went_dead(upstream, raw_server, new_sink, eventually):
    """Idle streams rest every connection with its pings spent; then the network loses what there is."""

    def answer_calls(peer, event):
        if isinstance(event, ngh2.DataReceived) and event.data:
            answer(peer, event)

    server = await raw_server(answer_calls)
    up = upstream(server.target, connections=2, connections_spare=0, liveness=QUICK)
    await eventually(lambda: up.counters.connects == 2)
    for _ in range(2):
        ask(up, new_sink())  # idle, for ever
    first = set(up._live)
    await eventually(lambda: all(c.state in (ClientState.RESTING, ClientState.RETIRED) for c in first))
    for peer in server.peers:
        peer.mute = True
    began = time.monotonic()
    while True:
        sink = new_sink()
        started = up.start("a.B/C", (), None, sink)
        started.send_data(b"x", end=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(sink.ended.wait(), 0.5)
        if sink.ends and sink.ends[0].delivery is Delivery.ANSWERED:
            break
        started.cancel()
        assert time.monotonic() - began < 4, "an outage without end"


async def test_a_trickle_is_no_upload_and_a_burst_is_one(upstream, raw_server, new_sink, eventually):
    server = await raw_server(settings={ngh2.Setting.INITIAL_WINDOW_SIZE: 2**30})
    now = [time.monotonic()]  # runs ahead of the timers' clock, so that none of them fires
    settings = UpstreamSettings(connections=1)
    timers = TimerWheel(asyncio.get_running_loop())
    up = Upstream("u", server.target, timers, settings, rng=random.Random(1), clock=lambda: now[0])
    up.open()
    assert await up.wait_ready(5)
    server.peers[0].engine.set_local_window_size(2**30)
    server.peers[0].flush()
    connection = up._usable[0]
    upload_bytes, recent_s = connection.upload_bytes, settings.liveness.upload_recent_s

    async def all_left():
        await eventually(lambda: connection.engine.queued_body_size() == 0)
        connection.bytes_sent_when_heard = connection.bytes_sent  # the peer is heard of after it

    chat = up.start("a.B/Chat", (), None, new_sink())
    for _ in range(20):
        now[0] += recent_s
        chat.send_data(bytes(upload_bytes // 8), end=False)
        await all_left()
        assert not connection._is_uploading(now[0])
    for _ in range(2):
        chat.send_data(bytes(upload_bytes + 1), end=False)
        await all_left()
    now[0] += recent_s
    assert connection._is_uploading(now[0])
    assert not connection._is_uploading(now[0] + 0.1)
    await up.close(0.0)
    timers.close()


async def test_idle_connections_are_not_pinged(upstream, raw_server, new_sink):
    server = await raw_server(answer)
    up = upstream(server.target, connections=1, liveness=QUICK)
    sink = new_sink()
    ask(up, sink)
    await sink.end()
    await asyncio.sleep(3 * (QUICK.silence_s + QUICK.ping_timeout_s))
    assert not server.peers[0].of(ngh2.PingReceived)
    assert not up.counters.disconnects


async def test_an_answer_to_no_ping_is_no_answer(upstream, raw_server, new_sink):
    server = await raw_server(answer)
    up = upstream(server.target, connections=1)
    assert await up.wait_ready(5)
    server.peers[0].writer.write(bytes((0, 0, 8, 6, 1, 0, 0, 0, 0)) + b"unasked!")
    sink = new_sink()
    ask(up, sink)
    await sink.end()
    seen = up.pool()
    assert (seen.pings, seen.pings_answered, seen.ping_round_trip_max_s) == (0, 0, 0.0)
