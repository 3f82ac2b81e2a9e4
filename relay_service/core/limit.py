"""How many attempts should be under way at once: the arithmetic, apart from who enforces it.

A limit hears how each attempt ended and says how many there may be. It looks at windows, not at single
attempts: long enough that what it sees was caused by the limit it had set.

Three faults that such limits are known for, and what keeps them away here:

- Everything times out, so every sample is alike, no gradient is seen, and the limit grows without end
  (Netflix/concurrency-limits#137): a timeout is a loss, and losses lower the limit.
- The baseline drifts up in a long incident until slow looks normal (failsafe-go#127): it is frozen while
  attempts are slow, and while the limit is what holds the load.
- The service has become slower for good and the limit stays small for ever, or is pinned to a handful each
  time the baseline is measured (envoyproxy/envoy#38338): when a smaller limit does not make attempts faster,
  they are slow by nature, and the baseline is raised; and it is only ever lowered to look while attempts are
  slow or nothing is known, by halves, and put back at once.
"""

from typing import Protocol

from relay_service.core.gradient_limit import GradientLimit
from relay_service.core.load_window import LOSS_TOLERATED, USED_SHARE, LoadSign, Sampler, load_sign_of
from relay_service.core.policy import AdmissionPolicy, LimitKind, LimitPolicy

__all__ = [
    "AimdLimit",
    "ConcurrencyLimit",
    "FixedLimit",
    "GradientLimit",
    "LoadSign",
    "load_sign_of",
    "make_limit",
]

_IGNORED = LoadSign.IGNORED
"""Read with every attempt's end, and much faster than off its class (Python 3.11)."""


class ConcurrencyLimit(Protocol):
    """How many attempts may be under way."""

    @property
    def limit(self) -> int:
        """The number now; at least 1."""

    @property
    def baseline_s(self) -> float:
        """What an attempt takes without load; 0 where that is not known or not asked for."""

    def record(self, outcome: LoadSign, held_s: float, in_flight: int, now: float) -> None:
        """An attempt ended after ``held_s``; ``in_flight`` were under way, this one included."""


def make_limit(policy: AdmissionPolicy, now: float) -> ConcurrencyLimit:
    """The limit that a policy asks for."""
    match policy.limit.kind:
        case LimitKind.FIXED:
            return FixedLimit(policy.workers)
        case LimitKind.AIMD:
            return AimdLimit(policy.limit, now)
        case LimitKind.GRADIENT:
            return GradientLimit(policy.limit, now)


class FixedLimit:
    """The operator's number."""

    __slots__ = ("limit",)

    baseline_s = 0.0

    def __init__(self, workers: int) -> None:
        self.limit = workers

    def record(self, outcome: LoadSign, held_s: float, in_flight: int, now: float) -> None:
        """See `ConcurrencyLimit.record`: nothing is learned."""


class AimdLimit:
    """Additive increase, multiplicative decrease, as TCP does it (Chiu and Jain, 1989).

    One more per window while the limit is in use, a tenth less after a window with losses or with a mean
    above the latency objective.
    """

    __slots__ = ("_limit", "_policy", "_sampler")

    baseline_s = 0.0

    def __init__(self, policy: LimitPolicy, now: float) -> None:
        self._policy = policy
        self._limit = float(policy.initial)
        self._sampler = Sampler(now)

    @property
    def limit(self) -> int:
        """See `ConcurrencyLimit.limit`."""
        return int(self._limit)

    def record(self, outcome: LoadSign, held_s: float, in_flight: int, now: float) -> None:
        """See `ConcurrencyLimit.record`."""
        if outcome is _IGNORED:
            return
        window = self._sampler.add(outcome, held_s, in_flight, now, self._limit)
        if window is None:
            return
        objective_s = self._policy.latency_objective_s
        slow = objective_s is not None and window.mean_s is not None and window.mean_s > objective_s
        if slow or window.loss_share > LOSS_TOLERATED:
            self._limit *= 0.9
        elif window.peak_in_flight >= USED_SHARE * self.limit:
            self._limit += 1.0
        self._limit = min(self._policy.max, max(self._policy.min, self._limit))
