"""What the real Toxiproxy does not survive, or does not promise: the embedded server alone."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from pathlib import Path

import pytest

from chaos.toxiproxy.client import ToxiproxyClient
from chaos.toxiproxy.embedded import EmbeddedToxiproxy
from chaos.toxiproxy.embedded.stages import LATENCY_BYTES_MAX
from chaos.toxiproxy.errors import RejectedError
from tests.chaos.toxiproxy.conftest import BOUND_S, Line, Peer, eventually, make_line

CHANGE_S_MAX = 2.0
SOCKET_BUFFER_BYTES_MAX = 4 * 2**20
"""Where the kernel does not say."""


def socket_buffer_bytes(kind: str) -> int:
    """How large the kernel may make a buffer by itself; it grows while somebody sends fast."""
    told = Path(f"/proc/sys/net/ipv4/tcp_{kind}mem")
    return int(told.read_text().split()[2]) if told.exists() else SOCKET_BUFFER_BYTES_MAX


HELD_BYTES_MAX = LATENCY_BYTES_MAX + 2 * (socket_buffer_bytes("r") + socket_buffer_bytes("w"))
"""What the latency toxic holds, and the four socket buffers of a connection through the proxy."""


async def flood(peer: Peer, total_bytes: int) -> int:
    """Send until nothing goes any more for a while; how much went."""
    sent, chunk = 0, b"x" * 65536
    loop = asyncio.get_running_loop()
    while sent < total_bytes:
        try:
            async with asyncio.timeout(0.5):
                await loop.sock_sendall(peer.sock, chunk)
        except TimeoutError:
            break
        sent += len(chunk)
    return sent


@pytest.mark.parametrize("toxic", [None, "latency", "bandwidth", "slicer", "limit_data"])
async def test_memory_is_bounded_while_a_client_does_not_read(embedded_line: Line, toxic: str | None) -> None:
    attributes = {
        "latency": {"latency": 60_000},  # holds what it has, whether anybody reads or not
        "bandwidth": {"rate": 1_000_000},
        "slicer": {"average_size": 10_000},
        "limit_data": {"bytes": 2**40},
    }
    if toxic:
        await embedded_line.add(toxic, **attributes[toxic])
    _near, far = await embedded_line.connect()
    sent = await flood(far, 4 * HELD_BYTES_MAX)
    assert sent <= HELD_BYTES_MAX


async def test_a_toxic_change_while_a_client_does_not_read_is_answered_and_loses_nothing(
    embedded_line: Line,
) -> None:
    """The real server answers 503 after 25 s, and may never serve that proxy again."""
    near, far = await embedded_line.connect()
    data = random.Random(5).randbytes(24_000_000)
    print("seed 5")
    sending = asyncio.ensure_future(far.send(data))
    await asyncio.sleep(0.3)  # long enough to fill every buffer on the way; the test holds either way
    for change in (
        embedded_line.add("latency", latency=5),
        embedded_line.add("slicer", average_size=50_000),
        embedded_line.update("latency_downstream", latency=1),
        embedded_line.add("noop", toxicity=0.5),
        embedded_line.remove("slicer_downstream"),
        embedded_line.remove("latency_downstream"),
    ):
        started_s = time.monotonic()
        await change
        assert time.monotonic() - started_s < CHANGE_S_MAX
    received = await near.receive(len(data))
    await sending
    assert received == data
    fresh_near, fresh_far = await embedded_line.connect()
    await fresh_far.send(b"alive")
    assert await fresh_near.receive(5) == b"alive"


async def test_disabling_is_prompt_while_a_client_does_not_read(embedded_line: Line) -> None:
    _near, far = await embedded_line.connect()
    await flood(far, HELD_BYTES_MAX)
    started_s = time.monotonic()
    await asyncio.to_thread(embedded_line.proxy.disable)
    assert time.monotonic() - started_s < CHANGE_S_MAX


@pytest.mark.parametrize(
    ("type_", "attributes"),
    [("bandwidth", {"rate": -1}), ("slicer", {"average_size": -1}), ("slicer", {"size_variation": -1})],
)
def test_what_would_kill_the_real_server_is_refused(
    embedded_line: Line, type_: str, attributes: dict[str, int]
) -> None:
    with pytest.raises(RejectedError, match="must be at least 0, is -1"):
        embedded_line.proxy.add_toxic(type_, **attributes)
    embedded_line.proxy.add_toxic("bandwidth", rate=5, name="b")
    with pytest.raises(RejectedError):
        embedded_line.proxy.update_toxic("b", rate=-1)
    assert embedded_line.proxy.toxics()[0].attributes == {"rate": 5}


@pytest.mark.parametrize(
    "attributes",
    [{}, {"average_size": 1, "size_variation": 1000}, {"size_variation": 10}, {"average_size": 1}],
)
async def test_any_slicer_passes_the_bytes_on(embedded_line: Line, attributes: dict[str, int]) -> None:
    await embedded_line.add("slicer", **attributes)
    near, far = await embedded_line.connect()
    data = random.Random(7).randbytes(3000)
    await far.send(data)
    assert await near.receive(len(data)) == data


async def test_an_update_that_is_refused_changes_nothing(embedded_line: Line) -> None:
    await embedded_line.add("latency", latency=5, jitter=1)
    with pytest.raises(RejectedError):
        await embedded_line.update("latency_downstream", latency=9, jitter="x")
    (toxic,) = await asyncio.to_thread(embedded_line.proxy.toxics)
    assert toxic.attributes == {"latency": 5, "jitter": 1}


async def test_absurd_delays_are_taken(embedded_line: Line) -> None:
    for name in ("one", "and the other"):
        await embedded_line.add("latency", name=name, latency=2**63 - 1)
    near, far = await embedded_line.connect()
    await far.send(b"held")
    assert await near.hears_nothing_for(0.1)
    for name in ("one", "and the other"):
        await embedded_line.remove(name)
    assert await near.receive(4) == b"held"


async def test_the_same_seed_draws_the_same_links() -> None:
    patterns = [await struck_links(seed) for seed in (11, 11, 12)]
    print("seeds 11, 11, 12")
    assert patterns[0] == patterns[1]
    assert patterns[0] != patterns[2]
    assert 4 <= sum(patterns[0]) <= 20


async def struck_links(seed: int) -> list[bool]:
    """Which of 24 connections a toxic of toxicity 0.5 closed at their first byte."""
    async with EmbeddedToxiproxy(seed=seed) as server:
        line = await asyncio.to_thread(make_line, ToxiproxyClient(server.url), "line")
        await line.add("limit_data", bytes=0, toxicity=0.5)
        struck = []
        for _ in range(24):
            near, far = await line.connect()
            await far.send(b"x")
            struck.append(await first_byte(near) == b"")
        line.close()
        return struck


async def first_byte(peer: Peer) -> bytes:
    async with asyncio.timeout(BOUND_S):
        return await asyncio.get_running_loop().sock_recv(peer.sock, 1)


async def test_stopping_leaves_no_task_and_no_socket_behind() -> None:
    before_tasks, before_fds = asyncio.all_tasks(), open_fds()
    server = EmbeddedToxiproxy(seed=3)
    await server.start()
    client = ToxiproxyClient(server.url)
    line = await asyncio.to_thread(make_line, client, "line")
    await line.add("latency", latency=60_000)
    pairs = [await line.connect() for _ in range(5)]
    for near, far in pairs:
        await far.send(b"held by a timer")
        await near.send(b"passed")
        await far.receive(6)
    await asyncio.to_thread(client.create, "idle", "127.0.0.1:0", line.proxy.upstream)
    await server.stop()
    assert asyncio.all_tasks() == before_tasks
    for near, far in pairs:
        assert await near.receive_to_end() == (b"", "fin")
        assert await far.receive_to_end() == (b"", "fin")
    line.close()
    await eventually(lambda: open_fds() == before_fds)


async def test_connections_that_end_by_themselves_leave_nothing_behind() -> None:
    async with EmbeddedToxiproxy() as server:
        client = ToxiproxyClient(server.url)
        line = await asyncio.to_thread(make_line, client, "line")
        await line.connect()
        before_fds = open_fds()
        for n in range(30):
            near, far = await line.connect()
            await near.send(b"x" * 1000)
            await far.receive(1000)
            (near.close, far.close, near.reset, far.reset)[n % 4]()
            await (far if n % 2 == 0 else near).receive_to_end()
            near.close()
            far.close()
        await eventually(lambda: open_fds() <= before_fds)
        line.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208


async def test_stopping_does_not_wait_for_an_upstream_that_is_being_dialed() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]  # its backlog is full: who dials now hears nothing
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        async with EmbeddedToxiproxy() as server:
            client = ToxiproxyClient(server.url)
            upstream = f"127.0.0.1:{listener.getsockname()[1]}"
            proxy = await asyncio.to_thread(client.create, "slow", "127.0.0.1:0", upstream)
            host, _, port = proxy.listen.rpartition(":")
            near = Peer(socket.create_connection((host, int(port)), timeout=BOUND_S))
            near.sock.setblocking(False)
            await eventually(lambda: any("_connect" in repr(task) for task in asyncio.all_tasks()))
            started_s = time.monotonic()
            await asyncio.to_thread(client.delete, "slow")
            assert time.monotonic() - started_s < CHANGE_S_MAX
            assert await near.receive_to_end() == (b"", "fin")
            near.close()
        for filler in fillers:
            filler.close()
