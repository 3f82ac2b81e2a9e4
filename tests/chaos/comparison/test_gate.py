"""The gate on planted pairs: what is worse is found, what is alike is not, and too little is no proof."""

import functools
import json
import random

import pytest
from typer.testing import CliRunner

from chaos.cli import app
from chaos.comparison.gate import DEFAULT_LIMITS, Allowance, Limits, compare, verdict_of
from chaos.comparison.sample import RunError, bucket, bucket_ms, from_calls, read_run, require_alike
from chaos.findings import Verdict
from chaos.history import CallRecord, HistoryWriter, Outcome, new_run

RATE_PER_S = 100


def calls(
    seed=1, *, seconds=30, errors=0.002, median_ms=20.0, rate_per_s=RATE_PER_S, phase="load", stall=0.0
):
    """A run: log-normal latencies, some errors, and ``stall`` of its half-seconds ten times as slow."""
    rng = random.Random(seed)
    stalled = {number: rng.random() < stall for number in range(seconds * 2)}
    for number in range(round(seconds * rate_per_s)):
        at_s = number / rate_per_s
        slow = 10 if stalled[min(int(at_s * 2), seconds * 2 - 1)] else 1
        code = "UNAVAILABLE" if rng.random() < errors else "OK"
        latency_s = rng.lognormvariate(0, 0.3) * median_ms / 1000 * slow
        yield CallRecord(
            id=number,
            phase=phase,
            operation=f"operation-{number}",
            method="shop.v1.Orders/Place",
            intended_s=at_s,
            done_s=at_s + latency_s,
            code=code,
            outcome=Outcome.EXECUTED if code == "OK" else Outcome.UNKNOWN,
            trace_id=f"{number:032x}",
            sent_s=at_s,
        )


@functools.cache
def run(memory_mb=50.0, **planted):
    return from_calls("steady", calls(**planted), memory_mb)


def rows(before, after, limits=DEFAULT_LIMITS):
    return {row.measure: row for row in compare(before, after, limits)}


def test_two_runs_of_the_same_system_are_alike():
    compared = compare(run(seed=1), run(seed=2))
    assert [row.verdict for row in compared] == [Verdict.HELD] * 5, compared
    assert verdict_of(compared) is Verdict.HELD


@pytest.mark.parametrize(
    ("measure", "planted"),
    [
        ("errors", {"errors": 0.06}),
        ("p50 latency", {"median_ms": 28.0}),
        ("p99 latency", {"stall": 0.3}),
        ("throughput", {"rate_per_s": 85}),
        ("memory", {"memory_mb": 75.0}),
    ],
)
def test_what_became_worse_is_found_and_named(measure, planted):
    compared = rows(run(seed=1), run(seed=2, **planted))
    assert compared[measure].verdict is Verdict.BROKEN, compared[measure]
    assert verdict_of(tuple(compared.values())) is Verdict.BROKEN


@pytest.mark.parametrize(
    "planted", [{"errors": 0.0}, {"median_ms": 12.0}, {"rate_per_s": 120}, {"memory_mb": 30.0}], ids=str
)
def test_what_became_better_is_never_held_against_it(planted):
    assert verdict_of(compare(run(seed=1), run(seed=2, **planted))) is Verdict.HELD


def test_too_few_calls_are_no_proof_either_way():
    compared = rows(run(seed=1, seconds=1), run(seed=2, seconds=1, errors=0.5))
    assert compared["errors"].verdict is Verdict.COULD_NOT_TELL
    assert "only 100 calls" in compared["errors"].note


def test_a_difference_within_the_noise_is_not_called_a_change():
    # One hiccup makes p99 five times as long. Counted as independent, its calls would make that look certain.
    compared = rows(run(seed=1), run(seed=3, stall=0.02))
    row = compared["p99 latency"]
    assert row.interval.low < row.allowed < row.interval.high
    assert row.verdict is Verdict.COULD_NOT_TELL


def test_limits_are_the_users():
    before, after = run(seed=1), run(seed=2, median_ms=28.0)
    assert rows(before, after)["p50 latency"].verdict is Verdict.BROKEN
    lax = Limits(p50=Allowance(0.8, 1.0), p99=Allowance(0.8, 1.0))
    assert verdict_of(compare(before, after, lax)) is Verdict.HELD


def test_memory_that_was_not_recorded_is_not_judged():
    compared = rows(run(memory_mb=None), run(seed=2))
    assert compared["memory"].verdict is None
    assert "not recorded" in compared["memory"].note


def test_runs_in_which_nothing_succeeded_have_no_latency_to_judge():
    compared = rows(run(errors=1.0), run(seed=2, errors=1.0))
    assert compared["p50 latency"].verdict is None
    assert compared["errors"].verdict is Verdict.HELD


def test_phases_of_unlike_load_do_not_count_as_noise():
    def two_phases(seed):
        yield from calls(seed, seconds=10, phase="quick", median_ms=5.0)
        yield from calls(seed + 10, seconds=10, phase="slow", median_ms=80.0)

    compared = {row.measure: row for row in compare(*(from_calls("x", two_phases(seed)) for seed in (1, 2)))}
    assert compared["p99 latency"].verdict is Verdict.HELD, compared["p99 latency"]


def test_the_same_two_runs_always_get_the_same_verdict():
    assert compare(run(seed=1), run(seed=2)) == compare(run(seed=1), run(seed=2))


def test_runs_of_different_scenarios_or_phases_are_not_compared():
    with pytest.raises(RunError, match="difference says nothing"):
        require_alike(from_calls("a", calls()), from_calls("b", calls()))
    with pytest.raises(RunError, match="different phases"):
        require_alike(from_calls("a", calls(phase="x")), from_calls("a", calls(phase="y")))


@pytest.mark.parametrize("latency_s", [1e-7, 0.0004, 0.02, 1.0, 33.0])
def test_a_bucket_is_within_one_percent_of_what_falls_into_it(latency_s):
    assert bucket_ms(bucket(latency_s)) == pytest.approx(max(latency_s, 1e-6) * 1000, rel=0.011)


def write(folder, **planted):
    with HistoryWriter(folder / "history.jsonl", new_run("steady", 1, "test")) as history:
        for call in calls(**planted):
            history.add(call)
    (folder / "summary.json").write_text(json.dumps({"relay_memory_peak_mb": 60.0}))
    return str(folder)


def test_memory_is_found_where_a_run_of_the_lab_writes_it(tmp_path):
    write(tmp_path)
    summary = {"scenario": "steady", "measures": {"relay_memory_peak_mb": 101.5}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert read_run(tmp_path).memory_mb == 101.5


@pytest.mark.parametrize(
    ("planted", "code", "word"),
    [
        ({}, 0, "held"),
        ({"errors": 0.1}, 1, "broken"),
        ({"seconds": 1}, 2, "could_not_tell"),
    ],
)
def test_the_command_tells_by_its_exit_code(tmp_path, planted, code, word):
    before, after = write(tmp_path / "a", seed=1), write(tmp_path / "b", seed=2, **planted)
    printed = CliRunner().invoke(app, ["compare", before, after, "--json"])
    assert printed.exit_code == code, printed.output
    shown = json.loads(printed.output)
    assert shown["verdict"] == word
    assert [row["measure"] for row in shown["measures"]][-1] == "memory"
    table = CliRunner().invoke(app, ["compare", before, after])
    assert table.exit_code == code
    assert "p99 latency" in table.output


def test_options_set_the_limits(tmp_path):
    before, after = write(tmp_path / "a", seed=1), write(tmp_path / "b", seed=2, median_ms=30.0)
    assert CliRunner().invoke(app, ["compare", before, after]).exit_code == 1
    lax = ["--p50", "80", "--p99", "80"]
    assert CliRunner().invoke(app, ["compare", before, after, *lax]).exit_code == 0


def test_a_folder_without_a_run_is_named(tmp_path):
    printed = CliRunner().invoke(app, ["compare", write(tmp_path / "a"), str(tmp_path / "nothing")])
    assert printed.exit_code == 2
    assert "no history.jsonl" in printed.output


def test_calls_that_were_never_sent_do_not_count_as_errors(tmp_path):
    folder = tmp_path / "a"
    write(folder, seconds=4, errors=0.0)
    unsent = (
        '{"kind":"call","id":1,"phase":"load","operation":"x","method":"m","intended_s":1.0,"done_s":1.0,'
    )
    with (folder / "history.jsonl").open("a") as history:
        history.write(unsent + '"code":"CANCELLED","outcome":"unsent","trace_id":""}\n')
    assert sum(block.errors for stretch in read_run(folder).stretches for block in stretch.blocks) == 0
