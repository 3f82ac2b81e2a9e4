"""An upstream that answers with spoiled bytes: every attempt ends once, and a good connection still works."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import ngh2
import pytest

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.ports import Attempt, AttemptEnd, Headers
from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream, UpstreamSettings
from tests.conformance.campaign import BOUND_S, NORMAL_S, SEED, SOAK_S, Memory, Watch, campaign, until
from tests.conformance.mutation import Frame, chunks, frames_of, message, spoiled

METHOD = "fuzz.Fuzz/Echo"
ROUND_TIMEOUT_S = 0.08
"""A server that waits for more gives up after so long, as streams it left open would never end."""


@dataclass
class Sink:
    """Counts the ends of one attempt."""

    ends: list[AttemptEnd] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    received: bytes = b""

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        assert not self.ends

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        assert not self.ends
        self.received += data
        attempt.consumed(len(data))

    def on_attempt_drained(self, attempt: Attempt) -> None:
        """Nothing waits for it."""

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        self.ends.append(end)
        self.ended.set()


class SpoilingServer:
    """A server whose engine is honest and whose output is spoiled, on all connections but the wholesome."""

    def __init__(self) -> None:
        self.wholesome = False
        self.accepted = 0
        self.target = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.target = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        number, self.accepted = self.accepted, self.accepted + 1
        try:
            await self._serve(random.Random(f"{SEED} {number}"), reader, writer)
        except (OSError, ngh2.NGH2Error):
            pass
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def _serve(
        self, rng: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        spoils = not self.wholesome
        engine = ngh2.Connection(ngh2.Role.SERVER, ngh2.Configuration())
        engine.initiate_connection(
            {ngh2.Setting.MAX_CONCURRENT_STREAMS: rng.choice((1, 3, 100)) if spoils else 100}
        )
        # The handshake is mostly left whole: else little else would be reached.
        writer.write(self._output(rng, engine, spoils=spoils and rng.random() < 0.1))
        rounds = rng.randint(1, 12) if spoils else None
        while rounds is None or rounds:
            rounds = None if rounds is None else rounds - 1
            async with asyncio.timeout(ROUND_TIMEOUT_S if spoils else None):
                data = await reader.read(65_536)
            if not data:
                return
            engine.receive_data(data)
            for event in engine.events():
                self._answer(rng, engine, event, spoils=spoils)
            for chunk in chunks(rng, self._output(rng, engine, spoils=spoils and rng.random() < 0.4)):
                if writer.transport.is_closing():
                    return
                writer.write(chunk)
                await asyncio.sleep(0)

    @staticmethod
    def _output(rng: random.Random, engine: ngh2.Connection, *, spoils: bool) -> bytes:
        data = engine.data_to_send()
        frames = frames_of(data)
        return spoiled(rng, frames, frames or [Frame(6, 0, 0, b"unasked!")]) if spoils else data

    @staticmethod
    def _answer(rng: random.Random, engine: ngh2.Connection, event: Any, *, spoils: bool) -> None:
        if not isinstance(event, ngh2.RequestReceived):
            return
        stream_id = event.stream_id
        kind = rng.randrange(8) if spoils else 0
        fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
        trailers = [
            (b"grpc-status", b"%d" % rng.randrange(18) if spoils else b"0"),
            (b"grpc-message", b"m%20"),
        ]
        match kind:
            case 1:
                engine.send_response(stream_id, [*fields, *trailers], end_stream=True)
            case 2:
                engine.reset_stream(stream_id, rng.randrange(14))
            case 3:
                engine.send_goaway(rng.randrange(14))
            case 4:
                engine.send_response(stream_id, [(b":status", b"503"), (b"content-type", b"text/html")])
                engine.send_data(stream_id, b"<html>", end_stream=True)
            case 5:
                engine.send_informational_response(stream_id, [(b":status", b"103")])
            case 6:
                return
            case _:
                engine.send_response(stream_id, fields)
                engine.send_data(stream_id, message(b"w" * rng.choice((0, 10, 20_000))))
                engine.send_trailers(stream_id, trailers)


async def attempt_once(upstream: Upstream, number: int) -> None:
    """One attempt: it ends exactly once, whatever the upstream says, unless it was cancelled."""
    rng = random.Random(f"{SEED} attempt {number}")
    sink = Sink()
    attempt = upstream.start(METHOD, [(b"x-n", b"%d" % number)], 5.0, sink)
    attempt.send_data(message(rng.randbytes(rng.choice((0, 100, 70_000)))), end=rng.random() < 0.7)
    if rng.random() < 0.2:
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        ended_before = bool(sink.ends)
        attempt.cancel()
        assert len(sink.ends) == ended_before
        return
    await sink.ended.wait()
    await asyncio.sleep(0)
    assert len(sink.ends) == 1, sink.ends
    assert sink.ends[0].delivery is Delivery.ANSWERED or not sink.ends[0].trailers


async def spoil_the_upstream(caplog: pytest.LogCaptureFixture, duration_s: float) -> None:
    memory = Memory()
    timers = TimerWheel(asyncio.get_running_loop())
    settings = UpstreamSettings(connections=4, backoff_initial_s=0.005, backoff_max_s=0.005)
    async with SpoilingServer() as server:
        watch = Watch(caplog)
        upstream = Upstream("spoiling", server.target, timers, settings, rng=random.Random(SEED))
        upstream.open()

        async def check(number: int) -> None:
            where = f"seed {SEED}, up to attempt {number}"
            watch.nothing_went_wrong(where)
            memory.check(where)

        async def run(number: int) -> None:
            await attempt_once(upstream, number)

        runs = await campaign(run, check, duration_s)
        await check(runs)
        server.wholesome = True
        await until(lambda: upstream.streams == 0, "a stream is left")
        await recovers(upstream)
        await upstream.close(1.0)
        assert upstream.streams == 0
        assert timers.count == 0
        print(f"seed {SEED}: {runs} attempts, {server.accepted} connections, {upstream.counters}")
    timers.close()


async def recovers(upstream: Upstream) -> None:
    """Once the server means well, an attempt is answered."""
    deadline = time.monotonic() + BOUND_S
    while True:
        sink = Sink()
        upstream.start(METHOD, [], None, sink).send_data(message(b"well?"), end=True)
        async with asyncio.timeout(BOUND_S):
            await sink.ended.wait()
        if sink.ends[0].code is Code.OK and sink.ends[0].delivery is Delivery.ANSWERED:
            return
        assert time.monotonic() < deadline, sink.ends
        await asyncio.sleep(0.02)


@pytest.mark.timeout(120)
async def test_an_upstream_that_sends_spoiled_bytes_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    await spoil_the_upstream(caplog, NORMAL_S)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 120)
async def test_an_upstream_that_sends_spoiled_bytes_for_minutes_is_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await spoil_the_upstream(caplog, SOAK_S)
