"""Theory against tables worked out by hand, and intervals against brute force."""

import math
import random

import pytest

from chaos.model import (
    attempts_mean,
    attempts_variance,
    binomial_interval,
    mean_interval,
    success_probability,
)


@pytest.mark.parametrize(
    ("p", "success", "load"), [(0.3, 0.9919, 1.417), (0.8, 0.5904, 2.952), (0.0, 1.0, 1.0)]
)
def test_four_attempts_succeed_and_cost_what_the_textbook_says(p, success, load):
    assert success_probability(p, 4) == pytest.approx(success)
    assert attempts_mean(p, 4) == pytest.approx(load)


def test_mean_and_variance_of_attempts_are_those_of_the_enumerated_distribution():
    p, n = 0.3, 4
    chance = {k: p ** (k - 1) * (1 - p) for k in range(1, n)} | {n: p ** (n - 1)}
    mean = sum(k * q for k, q in chance.items())
    variance = sum((k - mean) ** 2 * q for k, q in chance.items())
    assert attempts_mean(p, n) == pytest.approx(mean)
    assert attempts_variance(p, n) == pytest.approx(variance)


@pytest.mark.parametrize(("n", "p", "confidence"), [(20, 0.5, 0.95), (50, 0.9919, 0.99), (5, 0.1, 0.9)])
def test_the_binomial_interval_is_the_narrowest_whose_tails_hold_their_share(n, p, confidence):
    mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    interval = binomial_interval(n, p, confidence)
    low, high = round(interval.low * n), round(interval.high * n)
    tail = (1 - confidence) / 2
    assert sum(mass[:low]) <= tail < sum(mass[: low + 1])
    assert sum(mass[high + 1 :]) <= tail < sum(mass[high:])


def test_the_interval_of_five_thousand_calls_tells_four_attempts_from_three():
    interval = binomial_interval(5000, success_probability(0.3, 4))
    assert success_probability(0.3, 4) in interval
    assert success_probability(0.3, 3) not in interval
    assert interval.high - interval.low < 0.012


def test_the_interval_of_the_mean_holds_simulated_means():
    rng = random.Random(5)
    p, n, trials = 0.8, 4, 800
    interval = mean_interval(trials, attempts_mean(p, n), attempts_variance(p, n), confidence=0.999)

    def attempts():
        return next((k for k in range(1, n) if rng.random() >= p), n)

    means = [sum(attempts() for _ in range(trials)) / trials for _ in range(300)]
    outside = sum(mean not in interval for mean in means)
    assert outside <= 4


def test_certainty_leaves_no_room_and_nothing_measured_has_no_interval():
    assert binomial_interval(10, 1.0).low == 1.0
    with pytest.raises(ValueError, match="at least one trial"):
        binomial_interval(0, 0.5)
