"""Replies that are complete and stay: how long they may, how many bytes of them, and what others notice."""

import asyncio

import ngh2
import pytest

from relay_service.core.status import Code
from relay_service.timers import TimerWheel
from relay_service.wire.departures import Departures, DepartureSettings
from relay_service.wire.listener import Listener, ListenerSettings

SETTINGS = DepartureSettings(linger_s=10.0, bytes_per_s_min=100, bytes_max=10_000)


@pytest.fixture
def queued():
    """Bytes that wait in the engine, by stream."""
    return {}


@pytest.fixture
def departures(queued):
    return Departures(SETTINGS, lambda stream_id: queued.get(stream_id, 0))


def test_a_reply_that_stands_still_is_overdue(departures, queued):
    queued[1] = 1_000
    departures.add(1, 0.0)
    departures.add(3, 0.0)  # trailers alone, without a byte of data
    assert departures.overdue(9.9) == []
    assert departures.overdue(10.0) == [1, 3]


def test_a_reply_that_moves_may_take_as_long_as_a_poor_line_needs(departures, queued):
    queued[1] = 1_000
    departures.add(1, 0.0)
    for now in range(0, 20, 5):
        queued[1] -= 1
        assert departures.overdue(float(now)) == []
    queued[1] -= 1
    assert departures.overdue(20.0) == [1], "10 s and 1,000 bytes at 100 a second"


def test_bytes_are_counted_until_they_left(departures, queued):
    queued.update({1: 6_000, 3: 4_001})
    departures.add(1, 0.0)
    assert not departures.full
    departures.add(3, 0.0)
    departures.add(3, 1.0)
    assert departures.full
    queued[3] = 3_000
    departures.overdue(1.0)
    assert not departures.full
    departures.remove(1)
    departures.remove(1)
    departures.remove(3)
    assert len(departures) == 0
    queued[5] = 10_000
    departures.add(5, 0.0)
    assert not departures.full


# -- on the wire -----------------------------------------------------------------------------------------


class Service:
    """Answers each call at its headers: with ``size`` bytes of data, or without a body."""

    def __init__(self, size):
        self.size = size
        self.cancelled = 0

    def __call__(self, head, reply):
        reply.send_headers(())
        reply.send_data(bytes(self.size))
        reply.send_trailers(Code.OK, "", ())


@pytest.fixture
async def serve(cleanup):
    async def start(service, **departures):
        timers = TimerWheel(asyncio.get_running_loop())
        settings = ListenerSettings(departures=DepartureSettings(**departures))
        listener = Listener(service, timers, settings)
        await listener.start("127.0.0.1", 0)

        async def close():
            await listener.close(0.0)
            timers.close()

        cleanup(close)
        return listener

    return start


HEAD = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"x"),
    (b"content-type", b"application/grpc"),
]


@pytest.mark.parametrize("half_closed", [True, False])
async def test_a_caller_that_never_opens_its_window_gets_its_reply_reset(
    serve, raw_client, eventually, half_closed
):
    listener = await serve(Service(1_000), linger_s=0.2, bytes_per_s_min=10_000)
    peer = await raw_client(listener.addresses[0], settings={4: 0})
    stream_id = peer.engine.send_request(HEAD, end_stream=half_closed)
    peer.flush()
    await peer.until(lambda: peer.of(ngh2.StreamReset))
    assert peer.of(ngh2.StreamReset)[0].stream_id == stream_id
    await eventually(lambda: listener.streams == 0)
    assert listener.counters.replies_given_up == 1
    assert listener.connections == 1


async def test_beyond_the_bytes_a_connection_may_hold_its_further_replies_are_reset(
    serve, raw_client, eventually
):
    service = Service(100_000)
    listener = await serve(service, bytes_max=450_000)
    peer = await raw_client(listener.addresses[0], settings={4: 0})
    streams = []
    for _ in range(8):
        streams.append(peer.engine.send_request(HEAD, end_stream=True))
        peer.flush()
        await peer.until(
            lambda: len(peer.of(ngh2.ResponseReceived)) + len(peer.of(ngh2.StreamReset)) == len(streams)
        )
    resets = peer.of(ngh2.StreamReset)
    assert [event.stream_id for event in resets] == streams[5:]
    assert {event.error_code for event in resets} == {ngh2.ErrorCode.ENHANCE_YOUR_CALM}
    assert listener.counters.replies_given_up == 3
    # The others are there to be taken, and then there is room again.
    peer.engine.set_local_window_size(10_000_000)
    for stream_id in streams[:5]:
        peer.engine.set_local_window_size(100_000, stream_id=stream_id)
    peer.flush()
    await peer.until(lambda: len(peer.of(ngh2.TrailersReceived)) == 5)
    last = peer.engine.send_request(HEAD, end_stream=True)
    peer.flush()
    peer.engine.set_local_window_size(100_000, stream_id=last)
    peer.flush()
    await peer.until(lambda: len(peer.of(ngh2.TrailersReceived)) == 6)
    await eventually(lambda: listener.streams == 0)


async def test_a_reply_taken_slowly_is_left_in_peace(serve, raw_client, eventually):
    listener = await serve(Service(100_000), linger_s=0.5)
    peer = await raw_client(listener.addresses[0], settings={4: 0}, auto_window_update=False)
    peer.engine.set_local_window_size(1_000_000)
    stream_id = peer.engine.send_request(HEAD, end_stream=True)
    peer.flush()
    await peer.until(lambda: peer.of(ngh2.ResponseReceived))
    received = 0
    for _ in range(20):  # 5,000 bytes each 50 ms: twice the time it might stand still
        peer.engine.set_local_window_size(received + 5_000, stream_id=stream_id)
        peer.flush()
        received += 5_000
        await peer.until(
            lambda: sum(len(event.data) for event in peer.of(ngh2.DataReceived)) >= received  # noqa: B023
        )
        await asyncio.sleep(0.05)
    await peer.until(lambda: peer.of(ngh2.TrailersReceived))
    assert listener.counters.replies_given_up == 0
    await eventually(lambda: listener.streams == 0)


async def test_replies_that_do_not_leave_cost_the_others_nothing(serve, raw_client, eventually):
    """What a flush does for replies on their way out grows with what changed, not with how many there are."""
    listener = await serve(Service(10), linger_s=1_000.0)
    peer = await raw_client(listener.addresses[0], settings={4: 0})
    stuck = 200
    for _ in range(stuck):
        peer.engine.send_request(HEAD)
    peer.flush()
    await eventually(lambda: listener.streams == stuck)
    (connection,) = listener._connections
    looks = []
    has_left = type(connection)._has_left

    def counted(self, stream):
        looks.append(stream.id)
        return has_left(self, stream)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(connection), "_has_left", counted)
        for number in range(10):
            stream_id = peer.engine.send_request(HEAD)
            peer.flush()
            await eventually(lambda number=number: listener.streams == stuck + number + 1)
        assert len(looks) <= 20
    peer.engine.set_local_window_size(1_000, stream_id=stream_id)
    peer.flush()
    await peer.until(lambda: peer.of(ngh2.TrailersReceived))
    await eventually(lambda: listener.streams == stuck + 9)


async def test_a_request_that_outlasts_its_reply_is_stopped_when_the_connections_window_opened(
    serve, raw_client, eventually
):
    listener = await serve(Service(40_000), linger_s=2.0)
    peer = await raw_client(listener.addresses[0], auto_window_update=False)
    for _ in range(2):
        peer.engine.send_request(HEAD)
    peer.flush()
    # The connection's window is used up before both replies have left.
    await peer.until(lambda: sum(len(event.data) for event in peer.of(ngh2.DataReceived)) == 65_535)
    assert listener.streams
    peer.engine.set_local_window_size(1_000_000)
    peer.flush()
    await eventually(lambda: listener.streams == 0)
    assert {event.error_code for event in peer.of(ngh2.StreamReset)} <= {ngh2.ErrorCode.NO_ERROR}
    assert len(peer.of(ngh2.TrailersReceived)) == 2
    assert listener.counters.replies_given_up == 0
