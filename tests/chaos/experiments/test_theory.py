"""What experiments predict, held against what is known otherwise; no process is started."""

import math
import random

import pytest

from chaos.experiments import attempt_timeout, jitter, metastable, queue_size, storm, workers
from chaos.experiments.arm import Gauge
from chaos.experiments.catalogue import EXPERIMENTS
from chaos.experiments.cli import Name
from chaos.experiments.experiment import Pace
from chaos.experiments.prediction import Prediction, judge, within
from chaos.findings import Verdict
from chaos.history import LoadSample
from chaos.model import Interval


def test_every_experiment_can_be_named_on_the_command_line():
    assert {name.value for name in Name} == set(EXPERIMENTS)


@pytest.mark.parametrize("pace", list(Pace))
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda one: one.name)
def test_every_prediction_lies_within_its_own_tolerance_and_has_a_name_of_its_own(experiment, pace):
    design = experiment.design(pace)
    keys = [each.key for each in design.predictions]
    assert len(set(keys)) == len(keys)
    assert len({arm.name for arm in design.arms}) == len(design.arms) >= 2
    for each in design.predictions:
        assert each.expected in each.interval, each


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda one: one.name)
def test_a_full_run_lasts_less_than_a_minute(experiment):
    restart_s, drain_s = 1.5, 1.5
    planned_s = sum(arm.profile.duration_s + restart_s + drain_s for arm in experiment.design(Pace.FULL).arms)
    assert planned_s < 60


@pytest.mark.parametrize(
    ("kind", "low_s", "high_s"), [("none", 1, 1), ("full", 0, 1), ("equal", 0.5, 1), ("decorrelated", 1, 2)]
)
def test_the_first_wait_has_the_range_of_its_jitter(kind, low_s, high_s):
    rng = random.Random(1)
    waits = [jitter.backoffs_s(kind, 1, rng)[0] for _ in range(2000)]
    assert low_s <= min(waits) <= low_s + 0.01
    assert high_s - 0.01 <= max(waits) <= high_s


def test_the_peak_is_found_wherever_it_lies():
    assert jitter.peak_in_window([0.0, 1.0, 1.05, 1.09, 1.2, 3.0], 0.1) == 3


def test_jitter_is_predicted_to_lower_the_peak_and_none_is_not():
    none, full = (jitter.predict(kind, Pace.FULL).expected for kind in ("none", "full"))
    assert none == 1.0
    assert full < none / 4


def test_the_measured_peak_is_that_of_the_retries_and_not_of_the_herd_itself(make_call, make_evidence):
    herd = [make_call(number, 0.0, done_s=1.3) for number in range(100)]
    moments = [(0.0, 0), (0.05, 100), (0.95, 100), (1.0, 150), (1.25, 200), (1.3, 200)]
    loads = [LoadSample(at_s, calls, 0, 0, 0, 0) for at_s, calls in moments]
    evidence = make_evidence(herd, loads=loads, arrived=200)
    assert jitter.measured_peak(evidence) == pytest.approx(0.6, abs=0.12)


def test_the_queue_accepts_what_is_served_and_what_waits():
    spike = queue_size.SPIKES[Pace.FULL]
    served = spike.capacity_per_s * spike.duration_s
    assert spike.accepted(10) == served + 10 + spike.relay_workers
    assert spike.accepted(10**6) == spike.calls
    assert spike.longest_wait_s(10) == pytest.approx((10 + spike.relay_workers) / spike.capacity_per_s)


def test_a_longer_timeout_lets_more_attempts_through_and_takes_longer_at_the_end():
    short, long = (attempt_timeout.modelled(timeout_s) for timeout_s in (0.1, 1.0))
    assert short.success < long.success
    assert short.load > long.load
    assert short.p99_ms < long.p99_ms


def test_drawn_attempts_are_answered_in_time_as_often_as_the_distribution_says():
    rng = random.Random(3)
    drawn = sum(
        rng.random() >= attempt_timeout.HANG_SHARE
        and rng.lognormvariate(math.log(attempt_timeout.LATENCY_MEDIAN_S), attempt_timeout.LATENCY_SIGMA)
        <= 0.1
        for _ in range(20_000)
    )
    assert drawn / 20_000 == pytest.approx(attempt_timeout.answered_within(0.1), abs=0.01)


def test_throughput_is_bound_by_workers_then_by_the_downstream():
    assert workers.throughput_per_s(1) == 20
    assert workers.throughput_per_s(5) == 100
    assert workers.throughput_per_s(10) == workers.throughput_per_s(20) == 160
    assert workers.latency_s(20) > workers.latency_s(10)


def test_a_budget_bounds_the_storm_whatever_the_number_of_attempts():
    assert storm.budgeted(1, 1000) == 1
    assert storm.budgeted(2, 1000) == storm.budgeted(5, 1000) == pytest.approx(1.21)


def test_the_metastable_load_is_above_capacity_with_every_retry_and_below_it_with_the_budget():
    assert (
        metastable.LOAD_SHARE * metastable.ATTEMPTS
        > 1
        > metastable.LOAD_SHARE * (1 + metastable.BUDGET.ratio)
    )
    assert metastable.RELIEF_SHARE * metastable.ATTEMPTS < 1


def prediction(expected=10.0):
    return Prediction("key", "what", "ms", expected, within(0.1, expected), "because")


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (10.9, Verdict.HELD),
        (11.1, Verdict.BROKEN),
        (8.9, Verdict.BROKEN),
        (None, Verdict.COULD_NOT_TELL),
        (float("nan"), Verdict.COULD_NOT_TELL),
    ],
)
def test_a_measurement_is_judged_by_the_tolerance_stated_before(measured, verdict):
    assert judge(prediction(), measured).verdict is verdict


def test_a_tolerance_has_a_floor_where_the_share_would_be_next_to_nothing():
    assert within(0.1, 1.0, floor=5.0) == Interval(-4.0, 6.0)


def test_an_arm_whose_load_was_not_made_tells_nothing(make_call, make_evidence):
    sound = [make_call(number, number / 100) for number in range(100)]
    assert make_evidence(sound).success == 1.0
    kept_back = [*sound, make_call(100, 1.0, sent=False, code="CANCELLED")]
    late = [make_call(number, number / 100, lag_s=0.5 if number % 5 == 0 else 0.0) for number in range(100)]
    busy = [Gauge(0.1 * number, 0, 0, took_s=0.05) for number in range(9)]
    for evidence in (
        make_evidence(kept_back),
        make_evidence(late),
        make_evidence([]),
        make_evidence(sound, gauges=busy),
    ):
        assert not evidence.sound
        assert evidence.success is evidence.amplification is evidence.latency_ms(99) is None


def course_calls(make_call, failing):
    """A call every 20 ms through the full course, failing where ``failing`` says so."""
    end_s = metastable.COURSES[Pace.FULL].end_s
    times = [number / 50 for number in range(int(end_s * 50))]
    return [
        make_call(number, at_s, code="UNAVAILABLE" if failing(at_s) else "OK")
        for number, at_s in enumerate(times)
    ]


def concluded(make_call, make_evidence, bare_fails):
    course = metastable.COURSES[Pace.FULL]
    design = metastable.design(Pace.FULL)

    def in_outage(at_s):
        return course.steady_s <= at_s < course.healed_s

    bare = make_evidence(course_calls(make_call, bare_fails))
    protected = make_evidence(course_calls(make_call, in_outage))
    return design, metastable.conclude(design, {"bare": bare, "protected": protected})


def test_the_advice_says_that_it_stayed_down_only_if_it_did(make_call, make_evidence):
    course = metastable.COURSES[Pace.FULL]
    _, down = concluded(make_call, make_evidence, lambda at_s: course.steady_s <= at_s < course.again_from_s)
    assert "it stayed down" in down.advice
    design, up = concluded(make_call, make_evidence, lambda at_s: course.steady_s <= at_s < course.healed_s)
    assert "it stayed down" not in up.advice
    assert "recovered by themselves" in up.advice
    after = next(each for each in design.predictions if each.key == "bare/after")
    assert judge(after, up.measured["bare/after"]).verdict is Verdict.BROKEN
