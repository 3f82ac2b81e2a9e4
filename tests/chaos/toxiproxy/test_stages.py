"""The toxics as state machines, without sockets and with a clock of our own."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.toxiproxy.embedded import stages
from chaos.toxiproxy.embedded.pipeline import Pipeline
from chaos.toxiproxy.embedded.stages import END, Signal
from chaos.toxiproxy.embedded.toxics import (
    Bandwidth,
    Direction,
    Kind,
    Latency,
    LimitData,
    Noop,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
    Toxic,
)


def toxic(name: str, kind: Kind, toxicity: float = 1.0) -> Toxic:
    return Toxic(name, "downstream", Direction.DOWNSTREAM, toxicity, kind)


def chain(*kinds: Kind, toxicity: float = 1.0) -> Pipeline:
    toxics = [toxic(kind.type, kind, toxicity) for kind in kinds]
    return Pipeline(toxics, random.Random, now_s=0.0)


def run(
    pipeline: Pipeline, *, from_s: float = 0.0, until_s: float = 1e6
) -> list[tuple[float, bytes | Signal]]:
    """Take everything that leaves by then, with the time it left at: the link's work in virtual time."""
    left: list[tuple[float, bytes | Signal]] = []
    now_s = from_s
    while now_s <= until_s:
        while (item := pipeline.take(now_s)) is not None:
            left.append((round(now_s, 6), item if item is END else item.data))
            if item is END:
                return left
        due_s = pipeline.due_s()
        if due_s is None:
            break
        assert due_s > now_s, "a due time that has passed would make the link spin"
        now_s = due_s
    return left


def times(left: list[tuple[float, bytes | Signal]]) -> list[float]:
    return [at_s for at_s, _ in left]


def data(left: list[tuple[float, bytes | Signal]]) -> bytes:
    return b"".join(item for _, item in left if isinstance(item, bytes))


def test_latency_draws_whole_milliseconds_from_latency_minus_jitter_to_latency_plus_jitter_minus_one() -> (
    None
):
    drawn = set()
    for seed in range(500):
        pipeline = Pipeline(
            [toxic("l", Latency(latency_ms=10, jitter_ms=3))], lambda _, s=seed: random.Random(s), 0.0
        )
        pipeline.put(b"x", 0.0)
        drawn.add(round(times(run(pipeline))[0] * 1000, 6))
    assert drawn == {7, 8, 9, 10, 11, 12}


def test_latency_counts_from_when_the_chunk_was_read_and_chunks_overlap() -> None:
    pipeline = chain(Latency(latency_ms=100))
    pipeline.put(b"a", 0.0)
    pipeline.put(b"b", 0.03)
    assert times(run(pipeline)) == [0.1, 0.13]


def test_two_latencies_add_up() -> None:
    pipeline = Pipeline([toxic("a", Latency(100)), toxic("b", Latency(50))], random.Random, 0.0)
    pipeline.put(b"x", 0.0)
    assert times(run(pipeline)) == [0.15]


def test_latency_has_room_for_a_bounded_number_of_chunks_and_bytes() -> None:
    many, big = chain(Latency(1000)), chain(Latency(1000))
    for _ in range(stages.LATENCY_CHUNKS_MAX):
        assert many.has_room()
        many.put(b"x", 0.0)
    assert not many.has_room()
    for _ in range(8):
        assert big.has_room()
        big.put(b"x" * 2**20, 0.0)
    assert not big.has_room()


def test_bandwidth_sends_slices_of_a_tenth_of_a_second() -> None:
    pipeline = chain(Bandwidth(rate_kb_per_s=10))
    pipeline.put(b"x" * 2500, 0.0)
    assert [(at, len(piece)) for at, piece in run(pipeline)] == [(0.1, 1000), (0.2, 1000), (0.25, 500)]


def test_bandwidth_makes_up_for_late_wake_ups_and_not_for_idle_time() -> None:
    pipeline = chain(Bandwidth(rate_kb_per_s=10))
    pipeline.put(b"x" * 3000, 0.0)
    assert pipeline.take(0.13) is not None  # 30 ms late
    assert pipeline.due_s() == pytest.approx(0.2)
    run(pipeline, from_s=0.2)
    pipeline.put(b"x" * 1000, 5.0)
    assert times(run(pipeline, from_s=5.0)) == [pytest.approx(5.1, abs=0.006)]


def test_bandwidth_zero_holds_a_chunk_and_lets_an_end_pass_that_has_none_before_it() -> None:
    blocked, empty = chain(Bandwidth(0)), chain(Bandwidth(0))
    blocked.put(b"x", 0.0)
    blocked.end(0.0)
    assert run(blocked) == []
    empty.end(0.0)
    assert run(empty) == [(0.0, END)]


def test_timeout_ends_after_silence_and_every_chunk_starts_it_anew() -> None:
    pipeline = chain(Timeout(timeout_ms=100))
    pipeline.put(b"dropped", 0.08)
    assert run(pipeline, until_s=0.17) == []
    assert run(pipeline, from_s=0.17) == [(0.18, END)]


def test_reset_peer_counts_its_timeout_from_the_first_byte() -> None:
    pipeline = chain(ResetPeer(timeout_ms=100))
    assert run(pipeline) == []
    pipeline.put(b"dropped", 2.0)
    pipeline.put(b"dropped too", 2.05)
    assert run(pipeline, from_s=2.05) == [(2.1, END)]


def test_limit_data_counts_across_updates_and_toxicity_changes() -> None:
    pipeline = chain(LimitData(10))
    pipeline.put(b"x" * 6, 0.0)
    assert data(run(pipeline)) == b"x" * 6
    pipeline.update(toxic("limit_data", LimitData(10), toxicity=0.0), 1.0)
    pipeline.put(b"free" * 5, 1.0)
    assert data(run(pipeline, from_s=1.0)) == b"free" * 5
    pipeline.update(toxic("limit_data", LimitData(8)), 2.0)
    pipeline.put(b"y" * 6, 2.0)
    assert run(pipeline, from_s=2.0) == [(2.0, b"yy"), (2.0, END)]


@pytest.mark.parametrize("kind", [LimitData(3), ResetPeer(60_000), Timeout(0)])
@pytest.mark.parametrize("change", ["removed", "toxicity 0"])
def test_a_stream_that_lost_bytes_ends_rather_than_going_on(kind: Kind, change: str) -> None:
    pipeline = chain(kind)
    pipeline.put(b"lost?", 0.0)
    pipeline.advance(0.0)
    if change == "removed":
        pipeline.remove(kind.type, 0.0)
    else:
        pipeline.update(toxic(kind.type, kind, toxicity=0.0), 0.0)
    pipeline.put(b"more", 0.1)
    left = run(pipeline, from_s=0.1)
    assert data(left) in {b"", b"los"}
    assert left[-1][1] is END


def test_slices_are_about_the_average_size() -> None:
    pipeline = chain(Slicer(average_bytes=100, variation_bytes=20))
    pipeline.put(bytes(range(256)) * 20, 0.0)
    left = run(pipeline)
    sizes = [len(piece) for _, piece in left]
    assert data(left) == bytes(range(256)) * 20
    assert max(sizes) <= 120
    assert len(sizes) > 40


def test_a_toxic_added_behind_others_does_not_disturb_their_draws() -> None:
    def delays(*names: str) -> list[float]:
        pipeline = Pipeline([toxic(name, Latency(0, 50)) for name in names[:1]], random.Random, 0.0)
        for name in names[1:]:
            pipeline.add(toxic(name, Noop(), toxicity=0.5), 0.0)
        for _ in range(5):
            pipeline.put(b"x", 0.0)
        return times(run(pipeline))

    assert delays("jittery") == delays("jittery", "other")


KEEPING = st.one_of(
    st.builds(Latency, latency_ms=st.integers(0, 50), jitter_ms=st.integers(0, 20)),
    st.builds(Bandwidth, rate_kb_per_s=st.integers(1, 100)),
    st.builds(SlowClose, delay_ms=st.integers(0, 50)),
    st.builds(
        Slicer,
        average_bytes=st.integers(0, 40),
        variation_bytes=st.integers(0, 60),
        delay_us=st.integers(0, 500),
    ),
    st.just(Noop()),
)
CHANGES = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), KEEPING, st.sampled_from([0.0, 0.5, 1.0])),
    st.tuples(st.just("remove"), st.sampled_from("abc"), st.none(), st.none()),
    st.tuples(st.just("put"), st.binary(min_size=1, max_size=200), st.none(), st.none()),
    st.tuples(st.just("wait"), st.floats(0.0, 0.05), st.none(), st.none()),
)


@given(st.lists(CHANGES, max_size=40))
def test_toxics_that_keep_bytes_keep_them_all_in_order_whatever_changes_meanwhile(changes: list) -> None:
    pipeline = Pipeline([], random.Random, 0.0)
    now_s, sent, received, present = 0.0, b"", b"", {}
    for what, value, kind, toxicity in changes:
        match what:
            case "add":
                change: Callable[..., None] = pipeline.update if value in present else pipeline.add
                # An update keeps a toxic's type.
                kept = present.get(value, kind)
                present[value] = kind if type(kind) is type(kept) else kept
                change(toxic(value, present[value], toxicity), now_s)
            case "remove":
                pipeline.remove(value, now_s)
                present.pop(value, None)
            case "put":
                pipeline.put(value, now_s)
                sent += value
            case "wait":
                received += data(run(pipeline, from_s=now_s, until_s=now_s + value))
                now_s += value
    pipeline.end(now_s)
    left = run(pipeline, from_s=now_s)
    assert received + data(left) == sent
    assert left[-1][1] is END
