"""The overload rows: what the generator's counts are made into, and one short flood of nothing in between."""

import pytest

from tests.bench.cores import divide
from tests.bench.overload import SERVICE_US, WORKERS, FloodPlan, Floods, flood_rows, interpret
from tests.bench.processes import ROOT, CouldNotStartError
from tests.bench.subjects import Running, start_direct
from tests.bench.toolchain import find_tools


def counts(**changes):
    return {
        "window_s": 2.0,
        "offered": 12_000,
        "ok": 3_800,
        "expired": 200,
        "lost": 0,
        "unsent": 0,
        "latency_ms": {"p99": 50.0},
        "refusal_ms": {"p99": 0.8},
        "status": {"0": 3_800, "8": 7_600, "14": 400},
        "cpu_s": {},
        **changes,
    }


DIRECT = Running("direct", "127.0.0.1:1", None)


def test_goodput_is_a_share_of_the_capacity_and_refusals_are_told_by_their_status():
    flood = interpret(counts(), DIRECT, factor=3, number=0, capacity=2_000.0)
    assert (flood.goodput, flood.offered) == (0.95, 3.0)
    assert (flood.refused, flood.refused_properly, flood.expired) == (8_000, 7_600, 200)
    (row,) = flood_rows([flood])
    assert (row.typed_share, row.expired_share) == (0.95, 200 / 12_000)


def test_a_flood_that_nobody_refused_has_no_refusal_latency():
    flood = interpret(counts(status={"0": 3_800}, refusal_ms=None), DIRECT, 3, 0, 2_000.0)
    (row,) = flood_rows([flood])
    assert row.refusal_p99_ms is None
    assert row.typed_share == 0.0


def test_an_upstream_that_is_not_protected_is_flooded(tmp_path):
    plan = FloodPlan(rounds=1, warmup_s=0.5, duration_s=0.5)
    tools = find_tools(ROOT / ".cache" / "bench")
    if not tools.native:
        pytest.skip(f"the stand-in generator cannot offer 20,000 calls/s: {tools.note}")
    floods, problems = Floods(plan, tools, divide(), tmp_path, {"direct": start_direct}).measure(print)
    assert problems == []
    assert [flood.factor for flood in floods] == [3, 10]
    assert all(flood.offered > 1.5 and flood.expired > 0 for flood in floods)


def test_a_subject_that_cannot_start_is_told_and_the_rest_is_measured(tmp_path):
    def broken(upstream, directory, cores):
        raise CouldNotStartError("no such thing")

    plan = FloodPlan(rounds=1, warmup_s=0.1, duration_s=0.1)
    tools = find_tools(ROOT / ".cache" / "bench")
    floods, problems = Floods(plan, tools, divide(), tmp_path, {"relay": broken}).measure(print)
    assert (floods, problems) == ([], ["overload of relay: no such thing"])


def test_the_upstream_has_the_capacity_that_the_docs_say():
    assert WORKERS * 1e6 / SERVICE_US == 2_000
