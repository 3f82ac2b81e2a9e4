"""Medians of paired ratios with intervals that assume nothing about the distribution.

Two subjects measured one after the other share the machine's mood of that moment, so their ratio is
steadier than either figure. The interval for the median comes from order statistics: the number of
observations below the true median is binomial(n, 1/2), whatever they are drawn from.
Source: Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and an interval that holds the true one with probability ``coverage``."""

    median: float
    low: float
    high: float
    coverage: float
    count: int


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The median of ``values`` and the narrowest symmetric pair of order statistics around it that
    covers at least ``confidence``.

    Fewer than six values cannot reach 95 %: then the interval is their whole range and ``coverage``
    says what it is worth. Raises `ValueError` for no values.
    """
    if not values:
        raise ValueError("no values to estimate from")
    ordered = sorted(values)
    rank = _outer_rank(len(ordered), confidence)
    return Estimate(
        median=median(ordered),
        low=ordered[rank],
        high=ordered[-1 - rank],
        coverage=_coverage(len(ordered), rank),
        count=len(ordered),
    )


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Element by element; the two must be of equal length, in the order of the rounds.

    Raises `ValueError` for different lengths or a denominator that is not positive.
    """
    if any(d <= 0 for d in denominators):
        raise ValueError("a ratio needs positive denominators")
    return [n / d for n, d in zip(numerators, denominators, strict=True)]


def _coverage(count: int, rank: int) -> float:
    """P(x[rank] <= median <= x[-1 - rank]), ranks from 0."""
    return 1 - 2 * sum(comb(count, i) for i in range(rank + 1)) / 2**count


def _outer_rank(count: int, confidence: float) -> int:
    rank = 0
    while rank + 1 <= (count - 1) // 2 and _coverage(count, rank + 1) >= confidence:
        rank += 1
    return rank
