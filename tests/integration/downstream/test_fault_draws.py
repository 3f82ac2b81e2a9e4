"""The fault plan by itself: draws are seeded, fair and bounded."""

import math
import random
import statistics

import pytest

from downstream_service.faults import (
    LATENCY_MAX_S,
    Crash,
    Exponential,
    Failure,
    Fault,
    FaultPlan,
    Fixed,
    Hang,
    Latency,
    LogNormal,
    Moment,
    Uniform,
)

CHARGE = "downstream.v1.PaymentService/Charge"
LIST = "downstream.v1.PaymentService/ListCharges"
UNAVAILABLE = Failure(14, "down", Moment.BEFORE_EFFECT)
SEED = 20_240_607


def failing(probability: float, **limits: object) -> Fault:
    return Fault("down", UNAVAILABLE, probability, **limits)  # type: ignore[arg-type]


def slow(latency_s: float, probability: float = 1.0) -> Fault:
    return Fault("slow", Latency(Fixed(latency_s)), probability)


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    faults = [failing(0.3), Fault("tail", Latency(LogNormal(0.1, 1.0)), 0.5)]
    runs = [
        [plan.draw(CHARGE) for _ in range(500)] for plan in (FaultPlan(faults, SEED), FaultPlan(faults, SEED))
    ]
    other = FaultPlan(faults, SEED + 1)
    assert runs[0] == runs[1]
    assert runs[0] != [other.draw(CHARGE) for _ in range(500)]


@pytest.mark.parametrize("probability", [0.01, 0.3, 0.8])
def test_a_fault_strikes_as_often_as_its_probability_says(probability: float) -> None:
    print("seed", SEED)
    calls = 20_000
    plan = FaultPlan([failing(probability)], SEED)
    struck = sum(plan.draw(CHARGE).ending is UNAVAILABLE for _ in range(calls))
    # Five standard deviations of the binomial: a fair generator fails this once in two million seeds.
    assert abs(struck - calls * probability) < 5 * math.sqrt(calls * probability * (1 - probability))
    assert plan.strikes == (struck,)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 1_000)])
def test_never_and_always_are_exact(probability: float, expected: int) -> None:
    plan = FaultPlan([failing(probability)], SEED)
    assert sum(plan.draw(CHARGE).ending is not None for _ in range(1_000)) == expected


def test_latencies_add_up_and_the_first_failing_fault_ends_the_trying() -> None:
    hang = Fault("stuck", Hang(Moment.AFTER_EFFECT))
    plan = FaultPlan([slow(0.25), slow(0.5), hang, slow(9.0), failing(1.0)], SEED)
    strike = plan.draw(CHARGE)
    assert strike.latency_s == 0.75
    assert strike.ending == Hang(Moment.AFTER_EFFECT)
    assert strike.names == ("slow", "slow", "stuck")
    assert plan.strikes == (1, 1, 1, 0, 0)


def test_a_spent_fault_strikes_no_more() -> None:
    plan = FaultPlan([failing(1.0, max_strikes=2)], SEED)
    assert [plan.draw(CHARGE).ending is UNAVAILABLE for _ in range(4)] == [True, True, False, False]


def test_a_fault_for_one_method_spares_the_others() -> None:
    plan = FaultPlan([failing(1.0, methods=frozenset({CHARGE}))], SEED)
    assert plan.draw(CHARGE).ending is UNAVAILABLE
    assert plan.draw(LIST).ending is None


def test_a_calls_own_faults_come_first_and_are_not_counted() -> None:
    plan = FaultPlan([failing(1.0)], SEED)
    crash = Crash(Moment.BEFORE_EFFECT)
    assert plan.draw(CHARGE, [Fault("own", crash)]).ending is crash
    assert plan.strikes == (0,)


def test_latency_distributions_have_the_shape_they_are_named_for() -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    uniform = [Uniform(0.1, 0.3).sample_s(rng) for _ in range(20_000)]
    log_normal = [LogNormal(0.1, 1.0).sample_s(rng) for _ in range(20_000)]
    exponential = [Exponential(0.2).sample_s(rng) for _ in range(20_000)]
    assert 0.1 <= min(uniform) < 0.101
    assert 0.299 < max(uniform) <= 0.3
    assert statistics.median(log_normal) == pytest.approx(0.1, rel=0.05)
    # The 99th percentile of this log-normal is e^2.326, about ten times the median.
    assert statistics.quantiles(log_normal, n=100)[98] == pytest.approx(1.024, rel=0.15)
    assert statistics.mean(exponential) == pytest.approx(0.2, rel=0.05)
    assert statistics.median(exponential) == pytest.approx(0.2 * math.log(2), rel=0.05)


def test_no_draw_is_longer_than_the_bound() -> None:
    rng = random.Random(SEED)
    assert max(LogNormal(3_600.0, 10.0).sample_s(rng) for _ in range(1_000)) == LATENCY_MAX_S
    assert max(Exponential(3_600.0).sample_s(rng) for _ in range(1_000)) == LATENCY_MAX_S
