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
from dataclasses import dataclass, replace
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
SMALL_DRIFT = 0.5
"""The same while so few are under way that they can hardly be what makes each other slow."""
USED_SHARE = 0.8
"""The limit is what holds the load when so much of it is in use."""
NO_QUEUE = 1.25
"""Attempts that take hardly more than the baseline did not queue."""
CLEAR_WINDOWS = 3
"""After so many windows without a queue the limit doubles instead of feeling its way."""
CLEAR_STEP = 0.6
"""A limit that has to fall to so little does not try upwards meanwhile: only a clear step down shows whether
the limit is to blame."""
SETTLED_AFTER = 2
"""The first slow window may have begun before what made it slow; the second is the first to compare with."""
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


# Read with every attempt's end, and much faster than off their classes (Python 3.11).
_OK, _ANSWERED = Code.OK, Delivery.ANSWERED
_SUCCESS, _IGNORED = LoadSign.SUCCESS, LoadSign.IGNORED


def load_sign_of(delivery: Delivery, code: Code) -> LoadSign:
    """What an attempt that ended like this says about load. Failures that come fast say nothing."""
    if code is _OK and delivery is _ANSWERED:
        return _SUCCESS
    match delivery, code:
        case (Delivery.NOT_SENT, _) | (_, Code.CANCELLED):
            return LoadSign.IGNORED
        case (Delivery.UNANSWERED, _) | (_, Code.DEADLINE_EXCEEDED):
            return LoadSign.TIMED_OUT
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
        if outcome is _SUCCESS:
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


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an attempt takes without load, and what was seen when that was measured: how many were under way,
    and how many ended per second (by Little's law)."""

    seconds: float
    in_flight: int
    rate_per_s: float
    proven: bool
    """Whether it was tried what a lower limit does."""

    def was_taken_when_full(self, window: Window, mean_s: float) -> bool:
        """Whether many more under way get as much done, and no more."""
        if self.proven:
            return False
        more = window.peak_in_flight >= 1.5 * self.in_flight
        # Far fewer would mean that the service has changed since.
        return more and 0.8 * self.rate_per_s < window.peak_in_flight / mean_s < 1.2 * self.rate_per_s


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
        elif window.peak_in_flight >= USED_SHARE * self._limit:
            self._limit += 1.0
        self._limit = min(self._policy.max, max(self._policy.min, self._limit))


class GradientLimit:
    """As many as the service takes before it only queues them.

    ``limit x baseline / latency`` attempts would be under way if none queued in the service; to that, a
    tolerance and the square root of the limit are added, so that there is always a little to do and the
    limit keeps trying upwards (after the gradient of Netflix/concurrency-limits). While nothing is slow or
    lost the limit doubles from window to window.

    Latency alone cannot tell a service that is overloaded from one that takes its time, so the baseline is
    tried against throughput, by comparing two limits:

    - Half the limit and attempts take as long: they do by nature. The limit was not to blame; it comes
      back at once, and the baseline is what they take.
    - Half as many again and no more of them end per second than when the baseline was measured: the service
      was full even then. The baseline is forgotten, and the limit halved until that makes nothing faster.

    State: the limit, the baseline with the throughput and the number under way that belong to it, how many
    windows in a row saw no queue, and where the present descent began.
    """

    __slots__ = ("_baseline", "_clear_windows", "_descent", "_limit", "_policy", "_sampler", "_slow_windows")

    def __init__(self, policy: LimitPolicy, now: float) -> None:
        self._policy = policy
        self._limit = float(policy.initial)
        self._sampler = Sampler(now)
        self._baseline: Baseline | None = None
        self._clear_windows = CLEAR_WINDOWS
        self._slow_windows = 0
        self._descent: tuple[float, float] | None = None

    @property
    def limit(self) -> int:
        """See `ConcurrencyLimit.limit`."""
        return int(self._limit)

    @property
    def baseline_s(self) -> float:
        """See `ConcurrencyLimit.baseline_s`."""
        return 0.0 if self._baseline is None else self._baseline.seconds

    def record(self, outcome: LoadSign, held_s: float, in_flight: int, now: float) -> None:
        """See `ConcurrencyLimit.record`."""
        if outcome is _IGNORED:
            return
        if outcome is LoadSign.TIMED_OUT and held_s < TOLERANCE * self.baseline_s:
            return  # it was given less time than an attempt needs: that is its caller's doing
        window = self._sampler.add(outcome, held_s, in_flight, now, self._limit)
        if window is not None:
            self._follow(window)

    def _follow(self, window: Window) -> None:
        lossy = window.loss_share > LOSS_TOLERATED
        gradient = 1.0 - window.loss_share if lossy else 1.0
        limit = self._limit
        in_use = window.peak_in_flight >= USED_SHARE * limit
        if window.mean_s is None:
            self._clear_windows = 0
        else:
            limit = self._learn(window, window.mean_s, in_use=in_use)
            gradient *= min(1.0, TOLERANCE * self.baseline_s / window.mean_s)
            self._count_clear(window.mean_s, lossy=lossy, gradient=gradient)
            if not lossy and self._latency_says_nothing(window, gradient):
                return
        limit *= max(0.5, gradient)
        if in_use and window.mean_s is not None and gradient >= CLEAR_STEP:
            limit += limit if self._clear_windows >= CLEAR_WINDOWS else math.sqrt(limit)
        self._limit = min(self._policy.max, max(self._policy.min, limit))

    def _latency_says_nothing(self, window: Window, gradient: float) -> bool:
        """Whether attempts are slow, but that is not (yet) a reason to lower the limit."""
        known = self._baseline is not None
        sudden = known and self._slow_windows == 1 and gradient < CLEAR_STEP
        return sudden or (gradient < 1.0 and window.peak_in_flight <= SMALL_LIMIT)

    def _count_clear(self, mean_s: float, *, lossy: bool, gradient: float) -> None:
        """Count the windows in which nothing was slow; far below the tolerance there is no queue at all."""
        if lossy or gradient < 1.0:
            self._clear_windows = 0
        elif self._clear_windows < CLEAR_WINDOWS:
            no_queue = mean_s <= NO_QUEUE * self.baseline_s
            self._clear_windows = self._clear_windows + 1 if no_queue else 0

    def _learn(self, window: Window, mean_s: float, *, in_use: bool) -> float:
        """Move the baseline: down freely, up only when the load cannot be what makes attempts slow. The
        result is the limit as it was, or the one to return to if it was lowered in vain."""
        if self._baseline is None and self._slow_windows == 0:
            self._baseline = self._measured(window, mean_s, proven=False)
        elif mean_s > TOLERANCE * self.baseline_s:
            if self._baseline is not None and self._baseline.was_taken_when_full(window, mean_s):
                self._baseline = None
                self._forget_descent()
            return self._judge_descent(window, mean_s)
        else:
            self._forget_descent()
            if mean_s < self.baseline_s or not in_use:
                self._drift_towards(mean_s)
        return self._limit

    def _judge_descent(self, window: Window, mean_s: float) -> float:
        """See whether a lower limit has made attempts faster; if not, they are slow by nature."""
        if window.peak_in_flight <= max(SMALL_LIMIT, self._policy.min):
            if self._baseline is None:
                self._baseline = self._measured(window, mean_s, proven=True)
            self._drift_towards(mean_s, SMALL_DRIFT)
        self._slow_windows += 1
        if self._slow_windows < SETTLED_AFTER:
            return self._limit
        began = self._descent
        if began is None:
            self._descent = self._limit, mean_s
        elif self._limit <= 0.5 * began[0]:
            if mean_s > self._no_difference * began[1] and self._capped(mean_s) == mean_s:
                self._baseline = self._measured(window, mean_s, proven=True)
                self._forget_descent()
                self._clear_windows = CLEAR_WINDOWS - 2  # this window and one at the old limit
                return began[0]
            self._descent = self._limit, mean_s
        elif mean_s > 1.05 * began[1]:
            # Still getting slower: only what follows the worst can show what a lower limit does.
            self._descent = self._limit, mean_s
        return self._limit

    def _forget_descent(self) -> None:
        self._slow_windows = 0
        self._descent = None

    @property
    def _no_difference(self) -> float:
        """Half the limit is half the queue. Between "as slow" and "twice as fast" the line is drawn near the
        former where a baseline is known: one that is raised by mistake would let the queue in."""
        return 0.75 if self._baseline is None else 0.85

    def _drift_towards(self, mean_s: float, share: float = DRIFT) -> None:
        if self._baseline is not None:
            seconds = self._baseline.seconds + share * (mean_s - self._baseline.seconds)
            self._baseline = replace(self._baseline, seconds=self._capped(seconds))

    def _measured(self, window: Window, mean_s: float, *, proven: bool) -> Baseline:
        rate_per_s = window.peak_in_flight / mean_s
        return Baseline(self._capped(mean_s), window.peak_in_flight, rate_per_s, proven)

    def _capped(self, seconds: float) -> float:
        objective_s = self._policy.latency_objective_s
        return seconds if objective_s is None else min(seconds, objective_s)
