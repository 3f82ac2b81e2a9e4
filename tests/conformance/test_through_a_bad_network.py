"""A relay between two bad links: what arrives is what was sent, what fails says so, and nothing stays behind.

Caller and relay, relay and upstream speak through a Toxiproxy each way. Every payload is told by its hash:
the upstream answers with the message it got. The long forms run in `make soak`.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from chaos.toxiproxy.client import Proxy, ToxiproxyClient
from chaos.toxiproxy.launcher import launch
from protos.relay.v1 import admin_pb2, admin_pb2_grpc
from tests.bench.proc import rss_mib
from tests.conformance.peers import Peer, start_relay

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 20_241_122
CALLERS = 32
CALL_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 20.0
RSS_GROWTH_MIB_MAX = 16.0
"""Between the first calls and the last: buffers that grew stay; 1 kB leaked by each call would be 20 MiB."""
STREAM_MESSAGES = 4
SOAK_CALLS = 200_000
SOAK_CALLS_SLICED = 5_000
SOAK_MIXED_S = 20 * 60.0
SIZES = (0, 1, 5, 100, 1_000, 20_000)
SIZES_SLICED = (0, 1, 5, 100)
"""Each byte is a packet of its own then."""
UNARY = "/bad.Network/Echo"
CHAT = "/bad.Network/Chat"

FAILURES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,  # the outcome is unknown
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,  # grpcio's own word for a stream that was cut at an unlucky byte
}

Toxic = tuple[str, dict[str, int]]
TOXICS: dict[str, Toxic] = {
    "slicer": ("slicer", {"average_size": 1, "size_variation": 0, "delay": 0}),
    "latency": ("latency", {"latency": 3, "jitter": 3}),
    "bandwidth": ("bandwidth", {"rate": 2_000}),
    "reset": ("reset_peer", {"timeout": 100}),
    "timeout": ("timeout", {"timeout": 150}),
}
CUTS = {"reset", "timeout"}
"""These end connections; the others only hinder."""


class Upstream:
    """Answers each message with itself."""

    def __init__(self) -> None:
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of one of the two methods; grpcio's interface of a generic handler."""
        if details.method == UNARY:
            return grpc.unary_unary_rpc_method_handler(self._echo)
        return grpc.stream_stream_rpc_method_handler(self._chat) if details.method == CHAT else None

    async def _echo(self, request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        return request

    async def _chat(
        self, requests: AsyncIterator[bytes], _: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request


@dataclass
class Links:
    """The relay, the two links, and a channel that leads over both."""

    relay: Peer
    caller_side: Proxy
    upstream_side: Proxy
    toxiproxy: ToxiproxyClient
    ended: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    """In which words calls ended that did not end well."""

    @property
    def pid(self) -> int:
        return self.relay.process.pid

    async def calls(self, count: int, rng: random.Random, sizes: Sequence[int] = SIZES) -> None:
        """So many calls by `CALLERS` callers at once over fresh channels; each ends well or says why not."""
        left = iter(range(count))
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        options += [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        async with contextlib.AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(self.caller_side.listen, options=options)
                )
                for _ in range(4)
            ]

            async def caller(number: int) -> None:
                for _ in left:
                    await self._call(channels[number % len(channels)], rng, rng.choice(sizes))

            await asyncio.gather(*(caller(number) for number in range(CALLERS)))

    async def _call(self, channel: grpc.aio.Channel, rng: random.Random, size: int) -> None:
        payload = rng.randbytes(size)
        streams = rng.random() < 0.2
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S + 5.0):
                await (_chat(channel, payload) if streams else _echo(channel, payload))
        except grpc.aio.AioRpcError as error:
            if error.code() not in FAILURES:
                raise
            self.ended[error.code().name] += 1
            self.said[error.details() or ""] += 1
        else:
            self.ended["OK"] += 1

    async def at_rest(self) -> admin_pb2.Stats:
        """The relay's figures once nothing is in flight any more."""
        async with grpc.aio.insecure_channel(self.relay.admin) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while True:
                    stats = (await stub.GetStats(admin_pb2.GetStatsRequest(), timeout=5)).stats
                    if stats.calls.in_flight == 0:
                        return stats
                    await asyncio.sleep(0.05)


async def _echo(channel: grpc.aio.Channel, payload: bytes) -> None:
    reply = await channel.unary_unary(UNARY)(payload, timeout=CALL_TIMEOUT_S)
    assert digest(reply) == digest(payload)


async def _chat(channel: grpc.aio.Channel, payload: bytes) -> None:
    call = channel.stream_stream(CHAT)(timeout=CALL_TIMEOUT_S)
    for place in range(STREAM_MESSAGES):
        sent = payload + bytes([place])
        await call.write(sent)
        assert digest(await call.read()) == digest(sent)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), await call.details())


def digest(message: bytes) -> str:
    return hashlib.sha256(message).hexdigest()


def handles(pid: int) -> int:
    """Open files and sockets of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_links(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Links]:
    """One relay for all weathers: none may leave anything behind for the next."""
    tmp_path = tmp_path_factory.mktemp("links")
    async with contextlib.AsyncExitStack() as undo:
        upstream = Upstream()
        await upstream.server.start()
        undo.push_async_callback(upstream.server.stop, 0)
        toxiproxy = await asyncio.to_thread(launch, seed=SEED, log_dir=tmp_path)
        undo.callback(toxiproxy.stop)
        client = toxiproxy.client()
        print("toxiproxy:", toxiproxy.kind, "seed:", SEED)
        far = await asyncio.to_thread(client.create, "upstream", "127.0.0.1:0", upstream.address)
        policy = tmp_path / "policy.json"
        policy.write_text(json.dumps(_POLICY))
        relay = await asyncio.to_thread(start_relay, far.listen, tmp_path, str(policy))
        undo.callback(relay.stop)
        near = await asyncio.to_thread(client.create, "caller", "127.0.0.1:0", relay.address)
        yield Links(relay, near, far, client)


@pytest.fixture
def links(shared_links: Links) -> Links:
    """Without toxics, and with nothing counted yet."""
    shared_links.toxiproxy.reset()
    shared_links.ended.clear()
    shared_links.said.clear()
    return shared_links


_POLICY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.05s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "relay": {
        "methods": [
            {"name": [{"service": "bad.Network", "method": "Echo"}], "safety": "IDEMPOTENT", "unary": True}
        ],
        # It would soon spare a link that cuts every connection all further calls.
        "off": ["breaker"],
    },
}


@contextlib.asynccontextmanager
async def poisoned(proxy: Proxy, toxic: Toxic) -> AsyncIterator[None]:
    """The toxic in both directions."""
    kind, attributes = toxic
    with contextlib.ExitStack() as stack:
        for stream in ("upstream", "downstream"):
            await asyncio.to_thread(stack.enter_context, proxy.toxic(kind, stream=stream, **attributes))
        yield


async def nothing_stays_behind(links: Links, handles_before: int) -> None:
    """Calls add up, none is open, and sockets are those of the beginning."""
    stats = await links.at_rest()
    calls = stats.calls
    assert calls.received == calls.ok + calls.errors + calls.refused + calls.cancelled
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while handles(links.pid) > handles_before:  # noqa: ASYNC110 (another process's, no event tells)
            await asyncio.sleep(0.05)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("link", ["caller_side", "upstream_side"])
@pytest.mark.parametrize("name", TOXICS)
async def test_a_bad_link_corrupts_nothing_and_leaves_nothing_behind(
    links: Links, name: str, link: str
) -> None:
    rng = random.Random(SEED)
    await links.calls(8, rng)
    before = handles(links.pid)
    async with poisoned(getattr(links, link), TOXICS[name]):
        await links.calls(*((24, rng, SIZES_SLICED) if name == "slicer" else (120, rng)))
    if name not in CUTS:
        assert set(links.ended) == {"OK"}, links.said
    await links.calls(8, rng)
    await nothing_stays_behind(links, before + 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("link", ["caller_side", "upstream_side"])
@pytest.mark.parametrize("name", TOXICS)
async def test_many_calls_over_a_bad_link_leak_nothing(links: Links, name: str, link: str) -> None:
    rng = random.Random(SEED)
    count = SOAK_CALLS_SLICED if name == "slicer" else SOAK_CALLS // (2 * (len(TOXICS) - 1))
    await links.calls(1_000, rng)
    before, memory_before = handles(links.pid), rss_mib(links.pid)
    async with poisoned(getattr(links, link), TOXICS[name]):
        await links.calls(count, rng, SIZES_SLICED if name == "slicer" else SIZES)
    if name not in CUTS:
        assert set(links.ended) == {"OK"}, links.said
    await nothing_stays_behind(links, before + 2)
    grown = rss_mib(links.pid) - memory_before
    print(f"{name} {link}: {count} calls, {dict(links.ended)}, memory {memory_before:.1f} MiB {grown:+.1f}")
    assert grown < RSS_GROWTH_MIB_MAX


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_twenty_minutes_of_mixed_load_are_flat(links: Links) -> None:
    """Toxics come and go on both links; memory and handles of the last quarter are those of the second."""
    rng = random.Random(SEED)
    loop = asyncio.get_running_loop()
    length_s = float(os.environ.get("SOAK_MIXED_S", SOAK_MIXED_S))
    ends_at = loop.time() + length_s
    samples: list[tuple[float, int]] = []

    async def load() -> None:
        while loop.time() < ends_at:
            await links.calls(500, rng)

    async def weather() -> None:
        while loop.time() < ends_at:
            proxy = rng.choice((links.caller_side, links.upstream_side))
            async with poisoned(proxy, TOXICS[rng.choice(list(TOXICS))]):
                await asyncio.sleep(min(rng.uniform(0.5, 3.0), length_s / 20))
            await asyncio.sleep(min(rng.uniform(0.5, 2.0), length_s / 20))

    async def watch(read: Callable[[int], float]) -> None:
        while loop.time() < ends_at:
            samples.append((read(links.pid), handles(links.pid)))
            await asyncio.sleep(length_s / 200)

    await asyncio.gather(load(), weather(), watch(rss_mib))
    await links.at_rest()
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[3 * quarter :]
    memory = [statistics.median(sample[0] for sample in part) for part in (second, last)]
    open_files = [statistics.median(sample[1] for sample in part) for part in (second, last)]
    print(f"{dict(links.ended)}; memory {memory} MiB, handles {open_files}")
    assert links.ended["OK"] > length_s * 10
    assert memory[1] - memory[0] < RSS_GROWTH_MIB_MAX / 2
    assert open_files[1] - open_files[0] < 8
