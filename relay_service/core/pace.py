"""How fast work goes: what the queue's promises about time are computed from."""

import math

RATE_TIME_CONSTANT_S = 1.0
"""How far back the drain rate looks: older departures weigh 1/e less each second."""

SERVICE_STEP = 0.05
"""How fast the learned service time follows: about twenty observations for the mean."""


class DrainRate:
    """Departures per second, exponentially weighted over `RATE_TIME_CONSTANT_S`."""

    __slots__ = ("_at", "_weight")

    def __init__(self, now: float) -> None:
        self._weight = 0.0
        self._at = now

    def count(self, now: float) -> None:
        """One more left."""
        self._decay(now)
        self._weight += 1.0

    def per_second(self, now: float) -> float:
        """The rate now."""
        self._decay(now)
        return self._weight / RATE_TIME_CONSTANT_S

    def _decay(self, now: float) -> None:
        elapsed_s = max(0.0, now - self._at)
        self._weight *= math.exp(-elapsed_s / RATE_TIME_CONSTANT_S)
        self._at = now


class ServiceTime:
    """How long an attempt holds its worker, learned from those that ended: the mean and one quantile.

    Both forget exponentially. The quantile is a stochastic approximation (Robbins and Monro, 1951) on the
    logarithm: each observation moves the estimate by a few percent, up or down, so that it rests where
    ``quantile`` of them lie below. Observations in seconds.
    """

    __slots__ = ("_quantile", "mean_s", "observations", "quantile_s")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self.observations = 0
        self.mean_s = 0.0
        self.quantile_s = 0.0

    def observe(self, held_s: float) -> None:
        """One attempt held its worker for so long."""
        self.observations += 1
        # The first few count alike; otherwise the very first would weigh twenty times its due.
        weight = max(SERVICE_STEP, 1.0 / self.observations)
        self.mean_s += weight * (held_s - self.mean_s)
        if self.observations == 1:
            self.quantile_s = held_s
        else:
            below = 1.0 if held_s < self.quantile_s else 0.0
            self.quantile_s *= math.exp(weight * (self._quantile - below))
