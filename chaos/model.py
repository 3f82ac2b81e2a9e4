"""What theory says before anything is measured, and how far from it chance alone may take us.

The model of a call: each attempt fails with probability ``p``, independently, and up to ``n`` attempts
are made. Then the number of attempts is a geometric distribution cut off at ``n``.
"""

import math
from dataclasses import dataclass

CONFIDENCE = 0.9999
"""How sure an interval is by default: with ten of them, one sound run in a thousand falls outside."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends belong to it."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def success_probability(failure_probability: float, attempts_max: int) -> float:
    """The chance that one of up to ``attempts_max`` attempts succeeds: 1 - p^n."""
    return 1.0 - failure_probability**attempts_max


def attempts_mean(failure_probability: float, attempts_max: int) -> float:
    """Attempts per call, the load factor: 1 + p + ... + p^(n-1)."""
    return sum(failure_probability**made for made in range(attempts_max))


def attempts_variance(failure_probability: float, attempts_max: int) -> float:
    """The variance of the attempts of one call."""
    p, n = failure_probability, attempts_max
    # E[K^2] = sum over k of (2k - 1) P(K >= k), and the k-th attempt is made with probability p^(k-1).
    second_moment = sum((2 * k - 1) * p ** (k - 1) for k in range(1, n + 1))
    return second_moment - attempts_mean(p, n) ** 2


def binomial_interval(trials: int, probability: float, confidence: float = CONFIDENCE) -> Interval:
    """Where the share of successes among ``trials`` lies with at least ``confidence``, if theory is right.

    Exact: the tails of the binomial distribution are summed, each holding at most half of the rest.
    """
    if trials < 1:
        raise ValueError("an interval needs at least one trial")
    if probability <= 0.0 or probability >= 1.0:
        return Interval(probability, probability)
    tail = (1.0 - confidence) / 2
    low = _quantile(trials, probability, tail)
    high = trials - _quantile(trials, 1.0 - probability, tail)
    return Interval(low / trials, high / trials)


def mean_interval(trials: int, mean: float, variance: float, confidence: float = CONFIDENCE) -> Interval:
    """Where the mean of ``trials`` independent values lies with ``confidence`` (central limit theorem)."""
    if trials < 1:
        raise ValueError("an interval needs at least one trial")
    half_width = normal_quantile((1.0 + confidence) / 2) * math.sqrt(variance / trials)
    return Interval(mean - half_width, mean + half_width)


def normal_quantile(probability: float) -> float:
    """The value below which a standard normal variable lies with ``probability``."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def _quantile(trials: int, probability: float, tail: float) -> int:
    """The smallest count whose cumulative binomial probability exceeds ``tail``."""
    log_odds = math.log(probability) - math.log1p(-probability)
    log_mass = trials * math.log1p(-probability)
    cumulative = 0.0
    for count in range(trials + 1):
        cumulative += math.exp(log_mass)
        if cumulative > tail:
            return count
        log_mass += math.log((trials - count) / (count + 1)) + log_odds if count < trials else 0.0
    return trials
