"""What is made of the generator's counts, from counts written by hand."""

from typing import Any

import pytest

from tests.bench.measure import Measurement, NoCallSucceededError, interpret
from tests.bench.report import markdown, sheets
from tests.bench.run import Outcome
from tests.bench.summary import absolute_rows, ratio_rows
from tests.bench.workload import ClosedLoop, OpenLoop, Workload

SUBJECT, ECHO = 10, 20
CLOSED = Workload(ClosedLoop(16))
OPEN = Workload(OpenLoop(1000))


def counts(**changes: Any) -> dict[str, Any]:
    return {
        "window_s": 2.0,
        "answered": 10_000,
        "ok": 10_000,
        "expired": 0,
        "unsent": 0,
        "lost": 0,
        "corrupt": 0,
        "latency_ms": {"p50": 1.0, "p99": 3.0},
        "send_lag_ms": {"p50": 0.05, "p99": 0.2},
        "status": {"0": 10_000},
        "generator_cpu_s": 0.2,
        "cpu_s": {str(SUBJECT): 1.9, str(ECHO): 0.2},
    } | changes


def read(
    workload: Workload = CLOSED, *, native: bool = True, pid: int | None = SUBJECT, **changes: Any
) -> Measurement:
    return interpret(
        counts(**changes),
        subject="relay",
        workload=workload,
        round_number=0,
        subject_pid=pid,
        echo_pid=ECHO,
        native=native,
    )


def test_rates_and_cpu_are_per_second_and_per_answered_call():
    got = read()
    assert got.calls_per_s == 5_000
    assert got.cpu_us_per_call == pytest.approx(190)
    assert (got.subject_share, got.load_share) == (pytest.approx(0.95), pytest.approx(0.2))
    assert not got.generator_bound


def test_a_refusal_is_answered_work_for_the_cpu_and_a_failure_for_the_caller():
    got = read(ok=6_000, status={"0": 6_000, "8": 4_000})
    assert got.cpu_us_per_call == pytest.approx(190)
    assert got.calls_per_s == 3_000
    assert got.failed_share == pytest.approx(0.4)


@pytest.mark.parametrize("what", ["expired", "lost", "unsent", "corrupt"])
def test_every_kind_of_missing_answer_counts_as_failed(what):
    assert read(**{what: 10_000}).failed_share == pytest.approx(0.5)


def test_the_generator_was_the_limit_when_the_core_of_the_load_was_full_and_the_subjects_was_not():
    busy_load = {"generator_cpu_s": 1.0, "cpu_s": {str(SUBJECT): 1.0, str(ECHO): 0.9}}
    assert read(**busy_load).generator_bound
    both_full = busy_load | {"cpu_s": {str(SUBJECT): 1.9, str(ECHO): 0.9}}
    assert not read(**both_full).generator_bound


def test_a_generator_that_is_late_is_the_limit_of_an_open_loop_only():
    late = {"send_lag_ms": {"p50": 1.0, "p99": 5.0}}
    assert read(OPEN, **late).generator_bound
    assert not read(CLOSED, **late).generator_bound


def test_rows_of_the_python_generator_are_always_generator_bound():
    assert read(native=False).generator_bound


def test_no_proxy_has_no_cpu_of_its_own():
    assert read(pid=None, cpu_s={str(ECHO): 0.2}).cpu_us_per_call is None


def test_a_measurement_without_a_success_is_none():
    with pytest.raises(NoCallSucceededError, match="'14': 5"):
        read(ok=0, latency_ms=None, status={"14": 5})


def outcome() -> Outcome:
    """Six rounds, the last three on half the speed; the relay takes a quarter of bare's CPU in each."""
    made = Outcome()
    for round_number in range(6):
        slow = 1.0 if round_number < 3 else 2.0
        for name, cpu_us in (("relay", 25.0), ("bare", 100.0), ("direct", None)):
            made.measurements.append(
                Measurement(
                    subject=name,
                    workload=str(CLOSED),
                    round=round_number,
                    calls_per_s=1_000 / slow,
                    p50_ms=slow * (cpu_us or 10) / 100,
                    p99_ms=slow,
                    cpu_us_per_call=None if cpu_us is None else slow * cpu_us,
                    subject_share=0.5,
                    load_share=0.5,
                    failed_share=0.02 if name == "bare" and round_number == 0 else 0,
                    send_lag_p99_ms=0,
                    generator_bound=name == "bare" and round_number < 3,
                    raw={},
                )
            )
    return made


def test_ratios_are_steady_where_the_machine_is_not():
    (row,) = ratio_rows(outcome(), ["relay", "bare", "envoy", "direct"])
    assert (row.subject, row.to) == ("relay", "bare")
    cpu = row.ratios["cpu_us_per_call"]
    assert (cpu.median, cpu.low, cpu.high) == (0.25, 0.25, 0.25)
    assert row.ratios["calls_per_s"].median == 1


def test_without_the_relay_the_first_proxy_that_was_measured_is_compared():
    made = outcome()
    made.measurements = [m for m in made.measurements if m.subject != "relay"]
    assert ratio_rows(made, ["relay", "bare", "envoy", "direct"]) == []
    assert [row.subject for row in absolute_rows(made, ["relay", "bare", "direct"])] == ["bare", "direct"]


def test_only_rounds_with_both_subjects_are_paired():
    made = outcome()
    made.measurements = [m for m in made.measurements if m.subject != "bare" or m.round % 2]
    (row,) = ratio_rows(made, ["relay", "bare"])
    assert row.ratios["cpu_us_per_call"].count == 3


def test_added_latency_is_over_no_proxy_in_the_same_round():
    rows = {row.subject: row for row in absolute_rows(outcome(), ["relay", "direct"])}
    assert rows["relay"].added_p50_ms == pytest.approx((0.15 + 0.30) / 2)
    assert rows["direct"].added_p50_ms is None


def test_notes_say_generator_bound_and_how_many_failed():
    rows = {row.subject: row for row in absolute_rows(outcome(), ["relay", "bare"])}
    assert rows["relay"].notes == ()
    assert rows["bare"].notes == ("generator-bound", "up to 2.00% of calls failed")


def test_the_ratios_come_first_on_paper():
    text = markdown(["how"], sheets(outcome(), ["relay", "bare", "direct"]), ["envoy: not found"])
    assert text.index("## Ratios") < text.index("## Absolute")
    assert "| c 16, 100 B | relay / bare | 0.25 [0.25, 0.25] |" in text
    assert "Could not measure: envoy: not found" in text
