"""Callers that send spoiled bytes in odd pieces and leave as they like: the relay lives on unharmed.

What they send are valid streams with a few mutations each, so that most get past the first frame.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc.aio
import ngh2
import pytest

from relay_service.app import App, running
from relay_service.config.loading import policy_of
from relay_service.config.settings import read_settings
from relay_service.core.status import Code
from relay_service.ports import CallHead, Reply
from relay_service.timers import TimerWheel
from relay_service.wire.listener import Listener
from tests.conformance.campaign import BOUND_S, NORMAL_S, SEED, SOAK_S, Memory, Watch, campaign, until
from tests.conformance.mutation import RST_STREAM, Frame, chunks, recordings, spoiled

METHOD = "/fuzz.Fuzz/Echo"
LINGER_S = 0.02


class Echo:
    """An upstream's end of a call: what comes goes back."""

    def __init__(self, head: CallHead, reply: Reply) -> None:
        self._reply = reply
        reply.send_headers(())

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        self._reply.send_data(data)
        self._reply.consumed(len(data))
        if end:
            self._reply.send_trailers(Code.OK, "", ())

    def on_cancelled(self) -> None:
        """Nothing is held."""

    def on_reply_drained(self) -> None:
        """What is queued is what was received: little."""


@asynccontextmanager
async def a_relay() -> AsyncIterator[App]:
    """The whole relay in this process, in front of an echo."""
    timers = TimerWheel(asyncio.get_running_loop())
    upstream = Listener(Echo, timers)
    target = await upstream.start("127.0.0.1", 0)
    nowhere = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "http_listen": "127.0.0.1:0"}
    settings = read_settings({**nowhere, "upstream": target, "policy": "default"})
    try:
        async with running(settings, policy_of(settings)) as app:
            yield app
    finally:
        await upstream.close(0)
        timers.close()


async def spoil_a_connection(app: App, number: int, streams: list[list[Frame]]) -> None:
    """One connection: spoiled bytes in odd pieces, and one of the ways to leave."""
    rng = random.Random(f"{SEED} {number}")
    data = spoiled(rng, rng.choice(streams), rng.choice(streams))
    host, _, port = app.addresses.relay.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with suppress(OSError):
        for chunk in chunks(rng, data):
            if writer.transport.is_closing():
                break
            writer.write(chunk)
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        match rng.randrange(4):
            case 0:
                writer.transport.abort()
            case 1:
                writer.write_eof()
                while await reader.read(65_536):
                    pass
            case _:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S * rng.random()):
                        while await reader.read(65_536):
                            pass
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def spoil_callers(caplog: pytest.LogCaptureFixture, duration_s: float) -> None:
    streams = recordings(METHOD)
    memory = Memory()
    async with a_relay() as app:
        watch = Watch(caplog)
        timers_before = app.timers.count

        async def check(number: int) -> None:
            where = f"seed {SEED}, up to run {number}"
            async with grpc.aio.insecure_channel(
                app.addresses.relay, [("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                payload = random.Random(number).randbytes(1_000)
                assert await channel.unary_unary(METHOD)(payload, timeout=BOUND_S) == payload, where
            watch.nothing_went_wrong(where)
            memory.check(where)

        runs = await campaign(lambda number: spoil_a_connection(app, number, streams), check, duration_s)
        await check(runs)
        await until(lambda: app.listener.connections == 0, "a connection is left")
        await until(lambda: app.relay.in_flight == 0, f"{app.relay.in_flight} calls are left")
        await until(
            lambda: sum(upstream.streams for upstream in app.fleet.upstreams.values()) == 0,
            "an attempt is left",
        )
        await until(lambda: app.timers.count <= timers_before, "a timer is left")
        assert app.listener.streams == 0
        watch.nothing_went_wrong(f"seed {SEED}, the end")
        assert app.listener.counters.handler_failures == 0
        print(f"seed {SEED}: {runs} connections, {app.listener.counters}")


async def test_a_request_refused_and_reset_at_once_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    caller = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
    caller.initiate_connection({})
    caller.send_request(
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")],
        end_stream=True,
    )
    reset = Frame(RST_STREAM, 0, 1, b"\0\0\0\x08").encode()
    timers = TimerWheel(asyncio.get_running_loop())
    listener = Listener(Echo, timers)
    host, _, port = (await listener.start("127.0.0.1", 0)).rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(caller.data_to_send() + reset)
    await until(lambda: listener.counters.streams == 1, "the request never came")
    writer.close()
    await writer.wait_closed()
    await listener.close(0)
    timers.close()
    assert listener.counters.handler_failures == 0, caplog.text


@pytest.mark.timeout(120)
async def test_callers_that_send_spoiled_bytes_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    await spoil_callers(caplog, NORMAL_S)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 120)
async def test_callers_that_send_spoiled_bytes_for_minutes_harm_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await spoil_callers(caplog, SOAK_S)
