"""A histogram of durations in fixed memory, with buckets that grow by 2^(1/8).

As in DDSketch (https://arxiv.org/abs/1908.10693): buckets of equal relative width bound the relative
error of every quantile, whatever the distribution. With eight buckets per doubling it is below 4.5 %
from 8 µs to over an hour; below and above it is only known to be so.
"""

import math
from collections.abc import Iterable

BUCKETS_PER_DOUBLING = 8
DOUBLINGS = 29
LOWEST_S = 2.0**-7 / 1000
"""Durations below 7.8 µs share the first bucket. A power of two of a millisecond, so that all powers of
two of a millisecond are bucket bounds, which is what the exposition shows."""

_LAST = BUCKETS_PER_DOUBLING * DOUBLINGS + 1
_PER_LOWEST = 1 / LOWEST_S


class LogHistogram:
    """Counts durations in seconds.

    State: ``_counts`` by bucket (the first below `LOWEST_S`, the last for what is too long) and ``sum_s``.
    """

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (_LAST + 1)
        self.sum_s = 0.0

    def record(self, duration_s: float) -> None:
        """Count one duration; a negative one counts as zero."""
        multiple = duration_s * _PER_LOWEST
        if multiple < 1.0:
            self._counts[0] += 1
            self.sum_s += max(duration_s, 0.0)
            return
        index = int(math.log2(multiple) * BUCKETS_PER_DOUBLING) + 1
        self._counts[min(index, _LAST)] += 1
        self.sum_s += duration_s

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self._counts)

    def quantile_s(self, share: float) -> float:
        """The duration that a ``share`` (0 to 1) of all stay below; 0 when nothing was recorded.

        The answer is the point of the bucket that is equally far, relatively, from both its bounds.
        """
        rank = max(1, math.ceil(share * self.count))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return _middle_s(index)
        return 0.0

    def cumulative(self, upper_bounds_ms: Iterable[int | float]) -> list[int]:
        """How many durations lie below each bound; the bounds are powers of two of a millisecond."""
        counts = []
        for bound_ms in upper_bounds_ms:
            doublings = round(math.log2(bound_ms / 1000 * _PER_LOWEST))
            counts.append(sum(self._counts[: doublings * BUCKETS_PER_DOUBLING + 1]))
        return counts


def _middle_s(index: int) -> float:
    if index == 0:
        return LOWEST_S / 2
    growth = math.exp2(1 / BUCKETS_PER_DOUBLING)
    lower_s = LOWEST_S * math.exp2((index - 1) / BUCKETS_PER_DOUBLING)
    return lower_s * 2 * growth / (1 + growth)
