"""A slow reader holds back the writer on the other side of the relay, and nothing piles up between."""

import asyncio
import os
from pathlib import Path

import grpc
import grpc.aio
import ngh2

from relay_service.core.evidence import Delivery
from relay_service.message import frame
from relay_service.upstream import UpstreamSettings
from relay_service.wire import h2
from relay_service.wire.client import ClientState
from relay_service.wire.connection import RESETS_BETWEEN_WINDOW_CHECKS, ConnectionSettings
from relay_service.wire.listener import ListenerSettings

MESSAGES = 10_000
MESSAGE = b"m" * 5_000
STREAM_BYTES = MESSAGES * (len(MESSAGE) + 5)
OK = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def memory_bytes() -> int:
    """Resident set size of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Flood:
    """A server's script: one long answer, as much as the windows take; counts what was offered to them."""

    def __init__(self):
        self.offered = 0
        self.stream_id = 0
        self.chunk = frame(MESSAGE) * 10

    def __call__(self, peer, event):
        if isinstance(event, ngh2.RequestReceived):
            self.stream_id = event.stream_id
            peer.engine.send_response(event.stream_id, OK)
        if self.stream_id and isinstance(event, (ngh2.RequestReceived, ngh2.WindowUpdated)):
            self.offer(peer)

    def offer(self, peer):
        peer.flush()
        while self.offered < STREAM_BYTES and not peer.engine.queued_body_size(self.stream_id):
            peer.engine.send_data(self.stream_id, self.chunk)
            self.offered += len(self.chunk)
            if self.offered == STREAM_BYTES:
                peer.engine.send_trailers(self.stream_id, [(b"grpc-status", b"0")])
            peer.flush()


async def test_a_slow_reader_of_a_long_stream_holds_back_the_server_and_memory_stays_flat(
    pass_through, raw_server, raw_client, eventually
):
    flood = Flood()
    server = await raw_server(flood)
    relay = await pass_through(server.target)
    reader = await raw_client(relay.address, auto_window_update=False)
    received = 0
    held = []

    def take(peer, event):
        nonlocal received
        if isinstance(event, ngh2.DataReceived):
            received += len(event.data)
            held.append(len(event.data))

    reader.script = take
    reader.forgets = (ngh2.DataReceived,)
    stream_id = reader.engine.send_request(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/a.B/C"),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
        ],
        end_stream=True,
    )
    reader.flush()
    # The reader's whole window; it gives nothing back.
    await eventually(lambda: received == 65_535)
    stalled_at = await settled(lambda: flood.offered)
    limits = h2.Limits()
    between = limits.stream_window_bytes + 3 * ConnectionSettings().stream_high_water_bytes
    assert stalled_at <= 65_535 + between + 2 * len(flood.chunk)
    assert relay.buffered_max <= between
    before = memory_bytes()
    most = 0
    while received < STREAM_BYTES:
        while held:
            reader.engine.acknowledge_received_data(held.pop(), stream_id)
        reader.flush()
        seen = received
        await eventually(lambda seen=seen: received > seen or received == STREAM_BYTES)
        most = max(most, memory_bytes())
        assert flood.offered - received <= between + 4 * len(flood.chunk)
    await reader.until(lambda: reader.of(ngh2.TrailersReceived))
    assert most - before < 16 * 1024 * 1024, "50 MB went through"
    await eventually(lambda: relay.listener.streams == 0)


async def settled(value):
    """The value once it has not changed for a while."""
    last, same = value(), 0
    while same < 10:
        await asyncio.sleep(0.01)
        now = value()
        same = same + 1 if now == last else 0
        last = now
    return last


async def test_a_slow_server_holds_back_the_uploading_client(relay, channel, echo):
    call = channel.stream_unary("/test.Echo/Collect")(metadata=(("wait", "1"),))
    written = 0

    async def upload():
        nonlocal written
        for _ in range(5_000):
            await call.write(MESSAGE)
            written += len(MESSAGE)
        await call.done_writing()

    uploading = asyncio.create_task(upload())
    stalled_at = await settled(lambda: written)
    assert stalled_at < 5_000_000, "25 MB are to be sent and nobody reads"
    echo.handler.release.set()
    await asyncio.wait_for(uploading, 30)
    assert await call == str(5_000 * len(MESSAGE)).encode()


async def test_a_slow_reader_does_not_stall_the_others_on_its_connection(relay, channel):
    slow = channel.unary_stream("/test.Echo/Expand")(b"3000", metadata=(("size", "5000"),))
    assert await slow.read() == b"x" * 5_000
    fast = channel.unary_unary("/test.Echo/Unary")
    for _ in range(50):
        assert await fast(b"y" * 20_000, timeout=10) == b"y" * 20_000
    count = 1
    while await slow.read() is not grpc.aio.EOF:
        count += 1
    assert count == 3_000


async def test_long_streams_pass_in_both_directions_at_once(channel):
    async def requests():
        for number in range(2_000):
            yield b"%d" % number * 100

    expected = 0
    async for message in channel.stream_stream("/test.Echo/Chat")(requests()):
        assert message == b"%d" % expected * 100
        expected += 1
    assert expected == 2_000


async def test_windows_come_back_after_streams_that_were_cut_short(echo, pass_through):
    """Nine of ten streams are cancelled amid their data, many times the connection window in all."""
    window = 512 * 1024
    limits = h2.Limits(connection_window_bytes=window, stream_window_bytes=64 * 1024)
    relay = await pass_through(
        echo.target,
        upstream=UpstreamSettings(connection=ConnectionSettings(limits=limits), connections=1),
        listener=ListenerSettings(connection=ConnectionSettings(limits=limits)),
    )
    assert await relay.upstream.wait_ready(10)
    async with grpc.aio.insecure_channel(relay.address) as channel:
        for number in range(60):
            call = channel.unary_stream("/test.Echo/Expand")(b"100", metadata=(("size", "4000"),))
            if number % 10:
                await call.read()
                call.cancel()
            else:
                count = 0
                async for _ in call:
                    count += 1
                assert count == 100
    assert relay.upstream.counters.disconnects == 0


async def test_a_window_that_leaked_away_retires_the_connection(upstream, raw_server, new_sink, eventually):
    """Resets amid DATA frames lose window in the engine; the connection is changed before it starves."""
    limits = h2.Limits(connection_window_bytes=512 * 1024, stream_window_bytes=64 * 1024)
    half_frame = (16_000).to_bytes(3, "big") + b"\x00\x00"

    def script(peer, event):
        if isinstance(event, ngh2.RequestReceived):
            peer.engine.send_response(event.stream_id, OK)
            peer.flush()
            peer.writer.write(half_frame + event.stream_id.to_bytes(4, "big") + b"x" * 8_000)
        elif isinstance(event, ngh2.StreamReset):
            peer.writer.write(b"x" * 8_000)

    server = await raw_server(script)
    up = upstream(server.target, connections=1, connection=ConnectionSettings(limits=limits))
    assert await up.wait_ready(5)
    connection = next(iter(up._live))
    # Each stream leaks 8,000 of 524,288 bytes. The window is looked at after every 256 resets: bring that
    # near, for this server minds no window and would run it over.
    streams = 26
    connection._resets = RESETS_BETWEEN_WINDOW_CHECKS - streams
    for _ in range(streams):
        sink = new_sink()
        started = up.start("a.B/C", (), None, sink)
        received = connection.bytes_received
        await asyncio.wait_for(sink.headed.wait(), 5)
        await eventually(lambda received=received: connection.bytes_received >= received + 8_000)
        assert connection.state is ClientState.READY
        started.cancel()
        await eventually(lambda: not connection.streams)
    await eventually(lambda: not connection.open)
    assert connection.lost_reason == "retired"
    await eventually(lambda: up.counters.connects == 2)


async def test_a_blocked_transport_keeps_headers_known_as_not_sent(upstream, new_sink, eventually):
    """What waits behind a full socket never left, and says so."""
    release = asyncio.Event()
    writers = []

    async def stuck(reader, writer):
        writers.append(writer)
        engine = ngh2.Connection(ngh2.Role.SERVER)
        engine.initiate_connection({4: 2**30})
        engine.set_local_window_size(2**30)
        writer.write(engine.data_to_send())
        reader._transport.pause_reading()
        await release.wait()
        writer.transport.abort()

    server = await asyncio.start_server(stuck, "127.0.0.1", 0, limit=1_024)
    up = upstream("{}:{}".format(*server.sockets[0].getsockname()), connections=1)
    assert await up.wait_ready(5)
    big = new_sink()
    up.start("a.B/Big", (), None, big).send_data(bytes(30_000_000), end=True)
    connection = next(iter(up._live))
    await eventually(lambda: connection._write_blocked)
    behind = new_sink()
    started = up.start("a.B/Behind", (), None, behind)
    started.send_data(b"x", end=True)
    assert connection.flush_due or connection.engine.want_write
    release.set()
    assert (await behind.end()).delivery is Delivery.NOT_SENT
    assert (await big.end()).delivery is Delivery.UNANSWERED
    await up.close(0.0)
    server.close()
