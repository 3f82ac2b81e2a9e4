"""What each toxic does to real sockets, on every server there is. Time bounds are wide: machines are busy."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from chaos.toxiproxy.client import ProxySpec
from tests.chaos.toxiproxy.conftest import Line

LATE_S = 1.5  # how much longer than asked for anything may take before it counts as wrong
QUIET_S = 0.15  # how long nothing must be heard to count as nothing


async def test_bytes_pass_both_ways_unchanged(line: Line) -> None:
    near, far = await line.connect()
    rng = random.Random(20)
    print("seed 20")
    for sender, receiver in ((near, far), (far, near)):
        data = rng.randbytes(2_000_000)
        received, _ = await asyncio.gather(receiver.receive(len(data)), sender.send(data))
        assert received == data


async def test_what_either_side_says_at_once_arrives(line: Line) -> None:
    """Before the proxy has both sockets, one of them may have spoken already."""
    for _ in range(20):
        near = await line.connect_client()
        await near.send(b"client first")
        far = await line.accept()
        await far.send(b"server first")
        assert await far.receive(12) == b"client first"
        assert await near.receive(12) == b"server first"
        near.close()
        far.close()


async def test_a_half_close_closes_both_directions(line: Line) -> None:
    near, far = await line.connect()
    await near.send(b"question")
    near.half_close()
    assert await far.receive_to_end() == (b"question", "fin")
    assert await near.receive_to_end() == (b"", "fin")


async def test_an_upstream_that_cannot_be_reached_closes_the_client(line: Line) -> None:
    line.close()  # nobody listens there any more
    near = await line.connect_client()
    data, _ = await near.receive_to_end()
    assert data == b""


async def test_disabling_ends_live_connections_and_refuses_new_ones_and_toxics_survive(line: Line) -> None:
    near, far = await line.connect()
    await line.add("noop")
    await asyncio.to_thread(line.proxy.disable)
    assert await near.receive_to_end() == (b"", "fin")
    assert await far.receive_to_end() == (b"", "fin")
    with pytest.raises(ConnectionRefusedError):
        await line.connect_client()
    await asyncio.to_thread(line.proxy.enable)
    near, far = await line.connect()
    await near.send(b"again")
    assert await far.receive(5) == b"again"
    assert [toxic.name for toxic in await asyncio.to_thread(line.proxy.toxics)] == ["noop_downstream"]


async def test_latency_delays_its_direction_only(line: Line) -> None:
    await line.add("latency", latency=200)
    near, far = await line.connect()
    started_s = time.monotonic()
    await near.send(b"up")
    assert await far.receive(2) == b"up"
    up_s = time.monotonic() - started_s
    await far.send(b"down")
    assert await near.receive(4) == b"down"
    down_s = time.monotonic() - started_s - up_s
    assert down_s >= 0.2
    assert down_s < 0.2 + LATE_S
    assert up_s < down_s


async def test_jitter_keeps_the_order_of_bytes(line: Line) -> None:
    await line.add("latency", latency=20, jitter=20, stream="upstream")
    near, far = await line.connect()
    sent = b"".join(bytes([n]) * 100 for n in range(50))
    for n in range(50):
        await near.send(bytes([n]) * 100)
        await asyncio.sleep(0)  # a chunk of its own each, as far as the kernel goes along
    assert await far.receive(len(sent)) == sent


async def test_an_update_acts_on_what_is_already_on_the_way(line: Line) -> None:
    near, far = await line.connect()
    await line.add("latency", latency=60_000, stream="upstream")
    await near.send(b"late")
    assert await far.hears_nothing_for(QUIET_S)
    await line.update("latency_upstream", latency=0)
    assert await far.receive(4) == b"late"


async def test_removing_latency_lets_go_what_it_held_in_order(line: Line) -> None:
    near, far = await line.connect()
    await line.add("latency", latency=60_000, stream="upstream")
    for piece in (b"one", b"two", b"three"):
        await near.send(piece)
        await asyncio.sleep(0.01)
    assert await far.hears_nothing_for(QUIET_S)
    await line.remove("latency_upstream")
    await near.send(b"four")
    assert await far.receive(15) == b"onetwothreefour"


async def test_bandwidth_limits_the_rate(line: Line) -> None:
    await line.add("bandwidth", rate=200)
    near, far = await line.connect()
    started_s = time.monotonic()
    data = random.Random(1).randbytes(100_000)
    received, _ = await asyncio.gather(near.receive(len(data)), far.send(data))
    took_s = time.monotonic() - started_s
    assert received == data
    assert 0.45 <= took_s < 0.5 + LATE_S


async def test_bandwidth_zero_blocks_until_it_is_updated(line: Line) -> None:
    await line.add("bandwidth", rate=0)
    near, far = await line.connect()
    await far.send(b"held")
    assert await near.hears_nothing_for(QUIET_S)
    await line.update("bandwidth_downstream", rate=1000)
    assert await near.receive(4) == b"held"


async def test_slow_close_delays_the_end_and_not_the_bytes(line: Line) -> None:
    await line.add("slow_close", delay=400)
    near, far = await line.connect()
    await far.send(b"last words")
    assert await near.receive(10) == b"last words"
    started_s = time.monotonic()
    far.close()
    assert await near.receive_to_end() == (b"", "fin")
    assert 0.39 <= time.monotonic() - started_s < 0.4 + LATE_S


async def test_timeout_zero_drops_everything_and_its_removal_closes_the_connection(line: Line) -> None:
    near, far = await line.connect()
    await line.add("timeout", timeout=0)
    await far.send(b"into the void")
    assert await near.hears_nothing_for(QUIET_S)
    await near.send(b"the other way")
    assert await far.receive(13) == b"the other way"
    await line.remove("timeout_downstream")
    assert await near.receive_to_end() == (b"", "fin")
    assert (await far.receive_to_end())[0] == b""


async def test_timeout_closes_after_the_silence(line: Line) -> None:
    await line.add("timeout", timeout=300)
    started_s = time.monotonic()
    near, _far = await line.connect()
    assert (await near.receive_to_end())[0] == b""
    assert 0.29 <= time.monotonic() - started_s < 0.3 + LATE_S


async def test_reset_peer_resets_connections_made_while_it_is_set(line: Line) -> None:
    await line.add("reset_peer")
    near, far = await line.connect()
    await far.send(b"dropped")
    assert await near.receive_to_end() == (b"", "reset")


async def test_reset_peer_waits_for_a_byte_and_then_for_its_timeout(line: Line) -> None:
    await line.add("reset_peer", timeout=300)
    near, far = await line.connect()
    assert await near.hears_nothing_for(QUIET_S)
    started_s = time.monotonic()
    await far.send(b"dropped")
    assert await near.receive_to_end() == (b"", "reset")
    assert 0.29 <= time.monotonic() - started_s < 0.3 + LATE_S


async def test_reset_peer_ends_older_connections_with_a_fin(line: Line) -> None:
    near, far = await line.connect()
    await line.add("reset_peer")
    await far.send(b"dropped")
    assert await near.receive_to_end() == (b"", "fin")


async def test_limit_data_cuts_what_exceeds_it_and_closes(line: Line) -> None:
    await line.add("limit_data", bytes=100)
    near, far = await line.connect()
    await far.send(b"x" * 150)
    assert await near.receive_to_end() == (b"x" * 100, "fin")


async def test_limit_data_keeps_its_count_when_it_is_updated(line: Line) -> None:
    await line.add("limit_data", bytes=100)
    near, far = await line.connect()
    await far.send(b"a" * 60)
    assert await near.receive(60) == b"a" * 60
    await line.update("limit_data_downstream", bytes=80)
    await far.send(b"b" * 60)
    assert (await near.receive_to_end())[0] == b"b" * 20


async def test_slicer_preserves_the_bytes_and_cuts_them_small(line: Line) -> None:
    await line.add("slicer", average_size=100, size_variation=20, delay=2000)
    near, far = await line.connect()
    data = random.Random(3).randbytes(3000)
    sending = asyncio.ensure_future(far.send(data))
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < len(data):
        pieces.append(await asyncio.get_running_loop().sock_recv(near.sock, 65536))
    await sending
    assert b"".join(pieces) == data
    assert len(pieces) >= 10


@pytest.mark.parametrize(
    ("chain", "at_least_s"), [(("limit_data", "slow_close"), 0.4), (("slow_close", "limit_data"), 0.0)]
)
async def test_toxics_form_a_chain_in_the_order_added(
    line: Line, chain: tuple[str, ...], at_least_s: float
) -> None:
    """The end that limit_data makes is delayed by a slow_close behind it, not by one before it."""
    attributes = {"limit_data": {"bytes": 10}, "slow_close": {"delay": 400}}
    for type_ in chain:
        await line.add(type_, **attributes[type_])
    near, far = await line.connect()
    started_s = time.monotonic()
    await far.send(b"x" * 20)
    assert (await near.receive_to_end())[0] == b"x" * 10
    took_s = time.monotonic() - started_s
    assert took_s >= at_least_s - 0.01
    assert took_s < at_least_s + (LATE_S if at_least_s else 0.35)


async def test_a_toxic_of_toxicity_zero_does_nothing_until_its_toxicity_is_updated(line: Line) -> None:
    await line.add("latency", latency=60_000, toxicity=0.0)
    near, far = await line.connect()
    await far.send(b"free")
    assert await near.receive(4) == b"free"
    await line.update("latency_downstream", toxicity=1.0)
    await far.send(b"held")
    assert await near.hears_nothing_for(QUIET_S)
    await asyncio.to_thread(line.client.reset)
    assert await near.receive(4) == b"held"


async def test_populate_leaves_a_proxy_that_does_not_differ_with_its_toxics_and_connections(
    line: Line,
) -> None:
    near, far = await line.connect()
    await line.add("noop")
    same = ProxySpec("line", line.proxy.listen, line.proxy.upstream, enabled=False)
    (kept,) = await asyncio.to_thread(line.client.populate, [same])
    assert kept.enabled
    assert kept.listen == line.proxy.listen
    assert len(await asyncio.to_thread(kept.toxics)) == 1
    await near.send(b"still here")
    assert await far.receive(10) == b"still here"


async def test_populate_replaces_a_proxy_that_differs(line: Line) -> None:
    near, _far = await line.connect()
    await line.add("noop")
    moved = ProxySpec("line", "127.0.0.1:0", line.proxy.upstream)
    (replaced,) = await asyncio.to_thread(line.client.populate, [moved])
    assert replaced.listen != line.proxy.listen
    assert await asyncio.to_thread(replaced.toxics) == []
    assert await near.receive_to_end() == (b"", "fin")


async def test_reset_enables_every_proxy_and_removes_every_toxic(line: Line) -> None:
    await line.add("latency", latency=60_000)
    await asyncio.to_thread(line.proxy.disable)
    await asyncio.to_thread(line.client.reset)
    near, far = await line.connect()
    await far.send(b"hello")
    assert await near.receive(5) == b"hello"
    assert await asyncio.to_thread(line.proxy.toxics) == []


async def test_deleting_a_proxy_ends_its_connections(line: Line) -> None:
    near, _far = await line.connect()
    await asyncio.to_thread(line.client.delete, "line")
    assert await near.receive_to_end() == (b"", "fin")
    with pytest.raises(ConnectionRefusedError):
        await line.connect_client()


async def test_a_reset_by_the_upstream_ends_the_client(line: Line) -> None:
    near, far = await line.connect()
    far.reset()
    assert (await near.receive_to_end())[0] == b""
