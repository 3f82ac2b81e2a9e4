"""How fast work goes: what the queue's promises about time are computed from."""

import math
from collections.abc import Sequence

RATE_TIME_CONSTANT_S = 1.0
"""How far back the drain rate looks: older departures weigh 1/e less each second."""

SERVICE_STEP = 0.05
"""How fast the learned service time follows: about twenty observations for the mean."""


class DrainRate:
    """Departures per second, exponentially weighted over `RATE_TIME_CONSTANT_S`.

    Departures further apart than that are told by the time between them: the weight of the last one is gone
    before the next comes, and slow is not the same as stopped.
    """

    __slots__ = ("_at", "_gap_s", "_last", "_weight")

    def __init__(self, now: float) -> None:
        self._weight = 0.0
        self._at = self._last = now
        self._gap_s: float | None = None

    def count(self, now: float) -> None:
        """One more left."""
        self._decay(now)
        self._weight += 1.0
        self._gap_s = now - self._last
        self._last = now

    def per_second(self, now: float) -> float:
        """The rate now; 0 before the first departure."""
        if self._gap_s is None:
            return 0.0
        self._decay(now)
        apart_s = max(RATE_TIME_CONSTANT_S, self._gap_s, now - self._last)
        return max(self._weight / RATE_TIME_CONSTANT_S, 1.0 / apart_s)

    def _decay(self, now: float) -> None:
        elapsed_s = now - self._at
        if elapsed_s > 0.0:
            self._weight *= math.exp(-elapsed_s / RATE_TIME_CONSTANT_S)
        self._at = now


class LearnedQuantile:
    """The duration that a share ``quantile`` of all stays below, in seconds; it forgets exponentially.

    A stochastic approximation (Robbins and Monro, 1951) on the logarithm: each observation moves the
    estimate by a few percent, up or down, so that it rests where ``quantile`` of them lie below. It asks
    only on which side of the estimate an observation lies, so one that was cut short counts as well.
    """

    __slots__ = ("_quantile", "observations", "quantile_s")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self.observations = 0
        self.quantile_s = 0.0

    def observe(self, took_s: float) -> None:
        """One more."""
        if self.observations == 0:
            self.observations, self.quantile_s = 1, took_s
        elif took_s < self.quantile_s:
            self.count_below()
        else:
            self.count_above()

    def count_below(self) -> None:
        """One more, that was shorter than the estimate."""
        self._move(self._quantile - 1.0)

    def count_above(self) -> None:
        """One more, that was longer."""
        self._move(self._quantile)

    def _move(self, step: float) -> None:
        self.observations += 1
        self.quantile_s *= math.exp(self._weight * step)

    def begin_with(self, durations_s: Sequence[float]) -> None:
        """Start from what the first few say exactly, rather than from the very first of them."""
        self.observations = len(durations_s)
        self.quantile_s = sorted(durations_s)[
            min(len(durations_s) - 1, int(self._quantile * len(durations_s)))
        ]

    @property
    def _weight(self) -> float:
        """The first few count alike; otherwise the very first would weigh twenty times its due."""
        return max(SERVICE_STEP, 1.0 / self.observations)


class ServiceTime(LearnedQuantile):
    """How long an attempt holds its worker, learned from those that ended: one quantile and the mean."""

    __slots__ = ("mean_s",)

    def __init__(self, quantile: float) -> None:
        super().__init__(quantile)
        self.mean_s = 0.0

    def observe(self, took_s: float) -> None:
        """One attempt held its worker for so long."""
        super().observe(took_s)
        self.mean_s += self._weight * (took_s - self.mean_s)
