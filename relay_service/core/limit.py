"""How many attempts should be under way at once: the arithmetic, apart from who enforces it.

A limit hears how each attempt ended and says how many there may be. It looks at windows, not at single
attempts: long enough that what it sees was caused by the limit it had set.

Three faults that such limits are known for, and what keeps them away here:

- Everything times out, so every sample is alike, no gradient is seen, and the limit grows without end
  (Netflix/concurrency-limits#137): a timeout is a loss, and losses lower the limit.
- The baseline drifts up in a long incident until slow looks normal (failsafe-go#127): it is frozen while
  attempts are slow, and while the limit is what holds the load.
- The service has become slower for good and the limit stays small for ever (envoyproxy/envoy#38338): when
  a smaller limit does not make attempts faster, they are slow by nature, and the baseline is raised.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from relay_service.core.evidence import Delivery
from relay_service.core.policy import AdmissionPolicy, LimitKind, LimitPolicy
from relay_service.core.status import Code

WINDOW_MIN_S = 0.1
SAMPLES_MIN = 20

TOLERANCE = 1.5
"""Attempts count as slow when they take so many times the baseline."""
DRIFT = 0.1
"""How far one window moves the baseline towards what it saw."""
USED_SHARE = 0.8
"""The limit is what holds the load when so much of it is in use."""
LOSS_TOLERATED = 0.05
"""Networks lose a little whatever the load."""
SMALL_LIMIT = 5.0
"""Here so few attempts are under way that they can hardly be what makes each other slow."""


class LoadSign(Enum):
    """What an attempt's end says about load."""

    SUCCESS = "success"
    """Answered in full; how long it took is a measurement."""
    TIMED_OUT = "timed_out"
    """No answer came in the time it had."""
    REFUSED = "refused"
    """The upstream said that it has too much to do."""
    IGNORED = "ignored"
    """Nothing: the caller went away, it never left, or it failed for its own reasons."""


def load_sign_of(delivery: Delivery, code: Code) -> LoadSign:
    """What an attempt that ended like this says about load. Failures that come fast say nothing."""
    match delivery, code:
        case (Delivery.NOT_SENT, _) | (_, Code.CANCELLED):
            return LoadSign.IGNORED
        case (Delivery.UNANSWERED, _) | (_, Code.DEADLINE_EXCEEDED):
            return LoadSign.TIMED_OUT
        case _, Code.OK:
            return LoadSign.SUCCESS
        case _, Code.RESOURCE_EXHAUSTED:
            return LoadSign.REFUSED
        case _:
            return LoadSign.IGNORED


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


@dataclass(frozen=True, slots=True)
class Window:
    """What a limit led to: the mean time of those that succeeded (None without any), the share that was
    lost, and the most that were under way."""

    mean_s: float | None
    loss_share: float
    peak_in_flight: int


class Sampler:
    """Cuts the stream of ended attempts into windows.

    A success counts only if it began inside the window, under the limit that is being judged. A window
    ends once it holds enough and has lasted twice as long as attempts take: a shorter one would see
    only the fast ones. With a limit below `SAMPLES_MIN` as many samples as the limit are enough, so that
    a small limit is not a slow one.
    """

    __slots__ = ("_last_mean_s", "_lost", "_peak", "_since", "_succeeded", "_sum_s")

    def __init__(self, now: float) -> None:
        self._last_mean_s = 0.0
        self._restart(now)

    def _restart(self, now: float) -> None:
        self._since = now
        self._succeeded = 0
        self._lost = 0
        self._sum_s = 0.0
        self._peak = 0

    def add(
        self, outcome: LoadSign, held_s: float, in_flight: int, now: float, limit: float
    ) -> Window | None:
        """Count one attempt; the window that it completes, if it does."""
        if outcome is LoadSign.SUCCESS:
            if now - held_s < self._since:
                return None
            self._succeeded += 1
            self._sum_s += held_s
        else:
            self._lost += 1
        self._peak = max(self._peak, in_flight)
        samples = self._succeeded + self._lost
        if samples < min(SAMPLES_MIN, limit) or now - self._since < max(WINDOW_MIN_S, 2 * self._last_mean_s):
            return None
        mean_s = self._sum_s / self._succeeded if self._succeeded else None
        window = Window(mean_s, self._lost / samples, self._peak)
        self._last_mean_s = mean_s or 0.0
        self._restart(now)
        return window


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
        if outcome is LoadSign.IGNORED:
            return
        window = self._sampler.add(outcome, held_s, in_flight, now, self._limit)
        if window is None:
            return
        objective_s = self._policy.latency_objective_s
        slow = objective_s is not None and window.mean_s is not None and window.mean_s > objective_s
        if slow or window.loss_share > LOSS_TOLERATED:
            self._limit *= 0.9
        elif window.peak_in_flight >= USED_SHARE * self._limit:
            self._limit += 1.0
        self._limit = min(self._policy.max, max(self._policy.min, self._limit))


class GradientLimit:
    """As many as the service takes before it only queues them.

    ``limit x baseline / latency`` attempts would be under way if none queued in the service; to that, a
    tolerance and the square root of the limit are added, so that there is always a little to do and the
    limit keeps trying upwards (after the gradient of Netflix/concurrency-limits). Until something was
    slow or lost for the first time the limit doubles from window to window.

    State: the limit, the baseline, whether the limit still doubles, and where the present descent began.
    """

    __slots__ = ("_baseline_s", "_descent", "_doubling", "_limit", "_policy", "_sampler")

    def __init__(self, policy: LimitPolicy, now: float) -> None:
        self._policy = policy
        self._limit = float(policy.initial)
        self._sampler = Sampler(now)
        self._baseline_s = 0.0
        self._doubling = True
        self._descent: tuple[float, float] | None = None

    @property
    def limit(self) -> int:
        """See `ConcurrencyLimit.limit`."""
        return int(self._limit)

    @property
    def baseline_s(self) -> float:
        """See `ConcurrencyLimit.baseline_s`."""
        return self._baseline_s

    def record(self, outcome: LoadSign, held_s: float, in_flight: int, now: float) -> None:
        """See `ConcurrencyLimit.record`."""
        if outcome is LoadSign.IGNORED:
            return
        if outcome is LoadSign.TIMED_OUT and held_s < TOLERANCE * self._baseline_s:
            return  # it was given less time than an attempt needs: that is its caller's doing
        window = self._sampler.add(outcome, held_s, in_flight, now, self._limit)
        if window is not None:
            self._follow(window)

    def _follow(self, window: Window) -> None:
        gradient = 1.0 - window.loss_share if window.loss_share > LOSS_TOLERATED else 1.0
        in_use = window.peak_in_flight >= USED_SHARE * self._limit
        if window.mean_s is not None:
            slow = self._is_slow(window.mean_s)
            self._learn(window.mean_s, slow=slow, in_use=in_use)
            gradient *= min(1.0, TOLERANCE * self._baseline_s / window.mean_s)
        if gradient < 1.0:
            self._doubling = False
        limit = self._limit * max(0.5, gradient)
        if in_use and window.mean_s is not None:
            limit += self._limit if self._doubling else math.sqrt(self._limit)
        self._limit = min(self._policy.max, max(self._policy.min, limit))

    def _is_slow(self, mean_s: float) -> bool:
        return self._baseline_s > 0.0 and mean_s > TOLERANCE * self._baseline_s

    def _learn(self, mean_s: float, *, slow: bool, in_use: bool) -> None:
        """Move the baseline: down freely, up only when the load cannot be what makes attempts slow."""
        if self._baseline_s == 0.0:
            self._set_baseline(mean_s)
        elif slow:
            self._judge_descent(mean_s)
        else:
            self._descent = None
            if mean_s < self._baseline_s or not in_use:
                self._drift_towards(mean_s)

    def _judge_descent(self, mean_s: float) -> None:
        """See whether a lower limit has made attempts faster; if not, they are slow by nature."""
        if self._limit <= max(SMALL_LIMIT, self._policy.min):
            self._drift_towards(mean_s)
        began = self._descent
        if began is None or mean_s > 1.05 * began[1]:
            # Still getting slower: only what follows the worst can show what a lower limit does.
            self._descent = self._limit, mean_s
        elif self._limit <= 0.5 * began[0]:
            # Half the limit is half the queue. Between "as slow" and "twice as fast" the line is drawn
            # near the former: a baseline raised by mistake would let the queue in.
            made_no_difference = mean_s > 0.85 * began[1]
            if made_no_difference:
                self._set_baseline(mean_s)
            self._descent = None if made_no_difference else (self._limit, mean_s)

    def _drift_towards(self, mean_s: float) -> None:
        self._set_baseline(self._baseline_s + DRIFT * (mean_s - self._baseline_s))

    def _set_baseline(self, seconds: float) -> None:
        objective_s = self._policy.latency_objective_s
        self._baseline_s = seconds if objective_s is None else min(seconds, objective_s)
