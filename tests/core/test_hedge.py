"""How long a first attempt is waited for before it is hedged: learned, bounded, and not fooled by hedges."""

from random import Random

import pytest

from relay_service.core.events import WaitHedge
from relay_service.core.hedge import METHODS_MAX, Hedging, MethodLatency
from relay_service.core.hedged import Hedges
from relay_service.core.policy import HedgePolicy

POLICY = HedgePolicy()


def learned(hedging: Hedging, method: str, took_s: list[float]) -> float | None:
    for each_s in took_s:
        hedging.first_answered(method, POLICY, each_s, hedging.latency_s(method))
    return hedging.latency_s(method)


def test_nothing_is_said_before_enough_attempts_were_answered() -> None:
    hedging = Hedging()
    assert learned(hedging, "a", [0.1] * (POLICY.min_samples - 1)) is None
    assert learned(hedging, "a", [0.1]) == pytest.approx(0.1)
    assert hedging.latency_s("b") is None, "each method for itself"


def test_the_first_estimate_is_exact_whatever_came_first() -> None:
    assert learned(Hedging(), "a", [9.0] + [n / 1000 for n in range(1, 100)]) == pytest.approx(0.096)


@pytest.mark.parametrize(("quantile", "wait_s"), [(0.95, 0.01), (None, 0.01)])
def test_the_wait_is_never_shorter_than_the_policy_says(quantile: float | None, wait_s: float) -> None:
    hedging = Hedging()
    learned(hedging, "a", [0.001] * 100)
    hedges = Hedges(hedging, "a", HedgePolicy(quantile=quantile, min_delay_s=0.01))
    assert hedges.main_started(1, 5.0) == (WaitHedge(5.0 + wait_s),)


def test_without_a_quantile_nothing_is_learned() -> None:
    hedging = Hedging()
    hedging.first_answered("a", HedgePolicy(quantile=None), 5.0, None)
    assert hedging.state().methods == ()


def test_the_number_of_methods_is_bounded() -> None:
    hedging = Hedging()
    for number in range(METHODS_MAX + 10):
        hedging.first_answered(f"m{number}", POLICY, 0.1, None)
    assert len(hedging.state().methods) == METHODS_MAX


@pytest.mark.parametrize("seed", range(5))
def test_one_in_twenty_outlives_the_wait_also_when_all_of_these_lose_against_their_hedge(seed: int) -> None:
    """If losers were left out, what is left would look faster with each hedge, and more be hedged."""
    rng, latency = Random(seed), MethodLatency(0.95, 100)
    outlived = calls = 0
    for number in range(20_000):
        took_s = rng.lognormvariate(-4.0, 1.0)
        wait_s = latency.quantile_s
        if wait_s is None or took_s < wait_s:
            latency.answered(took_s, wait_s)
        else:
            latency.unanswered(wait_s + 0.001, wait_s)
            outlived += 1
        calls += number >= 100
    assert 0.04 < outlived / calls < 0.05, f"seed {seed}"


@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_the_wait_follows_a_change_of_the_service(factor: float) -> None:
    rng, latency = Random(1), MethodLatency(0.95, 100)
    for _ in range(1000):
        latency.answered(rng.uniform(0.01, 0.02), latency.quantile_s)
    for _ in range(2000):
        latency.answered(factor * rng.uniform(0.01, 0.02), latency.quantile_s)
    assert latency.quantile_s == pytest.approx(factor * 0.0195, rel=0.1)


def test_an_attempt_that_fails_fast_says_nothing() -> None:
    latency = MethodLatency(0.95, 10)
    for _ in range(10):
        latency.answered(0.1, None)
    for _ in range(100):
        latency.unanswered(0.001, latency.quantile_s)
    assert latency.quantile_s == pytest.approx(0.1)
