"""How fast work goes: what the queue's promises about time are computed from."""

import math

RATE_TIME_CONSTANT_S = 1.0
"""How far back the drain rate looks: older departures weigh 1/e less each second."""


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
