"""The limit that finds by itself how many a service takes at once."""

import math
from dataclasses import dataclass, replace

from relay_service.core.load_window import LOSS_TOLERATED, USED_SHARE, LoadSign, Sampler, Window
from relay_service.core.policy import LimitPolicy

TOLERANCE = 1.5
"""Attempts count as slow when they take so many times the baseline."""
DRIFT = 0.1
"""How far one window moves the baseline towards what it saw."""
SMALL_DRIFT = 0.5
"""The same while so few are under way that they can hardly be what makes each other slow."""
NO_QUEUE = 1.25
"""Attempts that take hardly more than the baseline did not queue."""
CLEAR_WINDOWS = 3
"""After so many windows without a queue the limit doubles instead of feeling its way."""
CLEAR_STEP = 0.6
"""A limit that has to fall to so little does not try upwards meanwhile: only a clear step down shows whether
the limit is to blame."""
STEP_DOWN = 0.6
"""A limit lowered to so little of what it was can be compared with that."""
ROOM = 1.3
"""More room than this for each one under way is more than noise: they do not queue."""
OTHER_RATE = 1.5
"""A service that does so many times what it did is another one."""
ALL = 0.8
"""Room for so many of those there were is room for all of them."""
FASTER = 0.75
"""Attempts that take so little of the baseline are answered by another service than it was measured of."""
STEADY = 0.6
"""In a steady state as many end as begin: those under way, per time that they take (Little's law)."""
RISING = 1.3
"""Attempts that take so many times what they took in the window before have only begun to be slow."""
SMALL_LIMIT = 5.0
"""Here so few attempts are under way that they can hardly be what makes each other slow."""

# Read with every attempt's end, and much faster than off their class (Python 3.11).
_IGNORED, _TIMED_OUT = LoadSign.IGNORED, LoadSign.TIMED_OUT


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an attempt takes without load."""

    seconds: float
    proven_at_per_s: float | None = None
    """How many the service could do per second (infinite when that did not show) when it was tried what a
    lower limit does. A baseline that was only seen (None) may hold a queue; so may one that was proven of a
    service that can do much more now."""

    def is_proven(self, rate_per_s: float) -> bool:
        """Whether it still is, now that so many end per second."""
        return self.proven_at_per_s is not None and rate_per_s <= OTHER_RATE * self.proven_at_per_s


@dataclass(frozen=True, slots=True)
class Before:
    """A limit that was lowered since, as it was enforced, and how long attempts took under it."""

    limit: int
    mean_s: float

    def room_for(self, mean_s: float) -> float:
        """How many fit into the service, now that attempts take ``mean_s`` under a lower limit.

        So many as end in that time at the throughput there was (Little's law). It is as many as there were
        when a lower limit made nothing faster, and as many as there are now when all of them queue.
        """
        return self.rate_per_s * mean_s

    @property
    def rate_per_s(self) -> float:
        """How many ended per second, by Little's law."""
        return self.limit / self.mean_s


class GradientLimit:
    """As many as the service takes before it only queues them.

    ``limit x baseline / latency`` attempts would be under way if none queued in the service; to that, a
    tolerance and the square root of the limit are added, so that there is always a little to do and the
    limit keeps trying upwards (after the gradient of Netflix/concurrency-limits). While nothing is slow or
    lost the limit doubles from window to window.

    Latency alone cannot tell a service that is overloaded from one that takes its time. So when attempts
    become much slower, and when the limit is reached before anything is known, the limit is lowered and the
    two are compared (`Before.room_for`): either that made attempts as much faster, and they still queue, so
    it is lowered again; or they take by nature what they take now. Then this is the baseline, and the limit
    becomes what has room.

    Lost attempts have no latency. They were one too many for the throughput there was, in the time they were
    given; when they are many, the limit falls towards what can end in half of that.

    State: the limit, the baseline, how many windows in a row saw no queue, what there was before the limit
    was lowered, what attempts took in the last window, and whether that was suddenly much more.
    """

    __slots__ = (
        "_baseline",
        "_before",
        "_clear_windows",
        "_is_sudden",
        "_last_mean_s",
        "_limit",
        "_policy",
        "_sampler",
    )

    def __init__(self, policy: LimitPolicy, now: float) -> None:
        self._policy = policy
        self._limit = float(policy.initial)
        self._sampler = Sampler(now)
        self._baseline: Baseline | None = None
        self._clear_windows = CLEAR_WINDOWS
        self._before: Before | None = None
        self._last_mean_s = math.inf
        self._is_sudden = False

    @property
    def limit(self) -> int:
        """See `relay_service.core.limit.ConcurrencyLimit.limit`."""
        return int(self._limit)

    @property
    def baseline_s(self) -> float:
        """See `relay_service.core.limit.ConcurrencyLimit.baseline_s`."""
        return 0.0 if self._baseline is None else self._baseline.seconds

    def record(self, outcome: LoadSign, held_s: float, in_flight: int, now: float) -> None:
        """See `relay_service.core.limit.ConcurrencyLimit.record`."""
        if outcome is _IGNORED:
            return
        if outcome is _TIMED_OUT and held_s < TOLERANCE * self.baseline_s:
            return  # it was given less time than an attempt needs: that is its caller's doing
        window = self._sampler.add(outcome, held_s, in_flight, now, self._limit)
        if window is None:
            return
        if window.mean_s is None or window.loss_share > LOSS_TOLERATED:
            self._give_way(window)
        else:
            self._follow(window, window.mean_s)
        self._last_mean_s = window.mean_s or self._last_mean_s
        self._sampler.alarm_s = self._alarm_s

    @property
    def _alarm_s(self) -> float:
        """Attempts that take longer are much slower than they should be, and than they just were."""
        if self._is_sudden or self._baseline is None:
            return math.inf
        return max(TOLERANCE * self.baseline_s / CLEAR_STEP, RISING * self._last_mean_s)

    def _in_use(self, window: Window) -> bool:
        # Of the limit as it is enforced: of 4, when it is 4.99, five can never be under way.
        return window.peak_in_flight >= USED_SHARE * self.limit

    def _give_way(self, window: Window) -> None:
        """Attempts were lost."""
        self._clear_windows = 0
        self._before = None
        gradient = 1.0 - window.loss_share
        if window.mean_s is not None and self._baseline is not None:
            gradient = min(gradient, self._gradient(window.mean_s))
        gradient = max(0.5, gradient)
        limit = self._limit * gradient
        if gradient >= CLEAR_STEP:
            limit += math.sqrt(limit) if self._in_use(window) else 0.0
        elif window.rate_per_s > 0.0 and window.lost_after_s > 0.0:
            ended_in_time = window.rate_per_s * window.lost_after_s
            limit = min(limit, max(0.5 * limit, 0.5 * ended_in_time))
        self._set(limit)

    def _follow(self, window: Window, mean_s: float) -> None:
        """All is answered, in ``mean_s`` on average."""
        in_use = self._in_use(window)
        if self._baseline is None and self._before is None and not in_use:
            self._baseline = Baseline(self._capped(mean_s))
        self._is_sudden = mean_s > RISING * self._last_mean_s and not self._is_sudden
        slow = mean_s > TOLERANCE * self.baseline_s
        if slow:
            room = self._judge_slowness(window, mean_s, in_use=in_use)
            if room is not None:
                self._set(room + math.sqrt(room))
                return
            if self._is_no_reason(window, mean_s, in_use=in_use):
                return
            if self._is_sudden and self._baseline is not None:
                # Not yet a reason to lower the limit, but one to let no more in than there are.
                self._set(min(self._limit, window.peak_in_flight))
                return
        else:
            self._before = None
            self._learn(mean_s, in_use=in_use)
        self._count_clear(window, mean_s, slow=slow)
        self._step(self._gradient(mean_s), in_use=in_use)

    def _gradient(self, mean_s: float) -> float:
        return min(1.0, TOLERANCE * self.baseline_s / mean_s)

    def _step(self, gradient: float, *, in_use: bool) -> None:
        limit = self._limit * max(0.5, gradient)
        if in_use and gradient >= CLEAR_STEP:
            limit += limit if self._clear_windows >= CLEAR_WINDOWS else math.sqrt(limit)
        self._set(limit)

    def _set(self, limit: float) -> None:
        self._limit = min(self._policy.max, max(self._policy.min, limit))

    def _is_no_reason(self, window: Window, mean_s: float, *, in_use: bool) -> bool:
        """Whether so few are under way that they can hardly be what makes each other slow."""
        if window.peak_in_flight > SMALL_LIMIT or in_use:
            return False
        self._drift_towards(mean_s, SMALL_DRIFT)
        return True

    def _count_clear(self, window: Window, mean_s: float, *, slow: bool) -> None:
        """Count the windows in which nothing was slow; far below the tolerance there is no queue at all. It
        may only not show yet: then more have begun than end."""
        if slow or mean_s > NO_QUEUE * self.baseline_s:
            self._clear_windows = 0
        elif window.rate_per_s < STEADY * window.peak_in_flight / mean_s:
            self._clear_windows = min(self._clear_windows, CLEAR_WINDOWS - 1)
        elif self._clear_windows < CLEAR_WINDOWS:
            self._clear_windows += 1

    def _learn(self, mean_s: float, *, in_use: bool) -> None:
        """Move the baseline: down freely, up only when the load cannot be what makes attempts take longer."""
        if in_use and mean_s < FASTER * self.baseline_s:
            self._baseline = Baseline(mean_s)
        elif mean_s < self.baseline_s or not in_use:
            self._drift_towards(mean_s, DRIFT)

    def _judge_slowness(self, window: Window, mean_s: float, *, in_use: bool) -> float | None:
        """See whether a lower limit has made attempts faster; the room there is when it has not."""
        baseline = self._baseline
        if baseline is not None and self._is_sudden:
            # What made them slow may have happened in the middle of the window.
            self._before = None
            return None
        if baseline is not None and in_use and not baseline.is_proven(window.rate_per_s):
            self._baseline = None
        before = self._before
        if before is not None and self.limit <= STEP_DOWN * before.limit:
            if (room := self._room(before, mean_s)) is not None:
                return room
            self._before = Before(self.limit, mean_s)
        elif before is None or mean_s > 1.05 * before.mean_s:
            # Still getting slower: only what follows the worst can show what a lower limit does.
            self._before = Before(self.limit, mean_s)
        if self._limit <= self._policy.min:
            self._settle(mean_s, math.inf if before is None else before.rate_per_s)
        return None

    def _room(self, before: Before, mean_s: float) -> float | None:
        """How many fit, when a lower limit has shown what attempts take; None while they still queue."""
        room = before.room_for(mean_s)
        rising = mean_s > RISING * before.mean_s or self._capped(mean_s) < mean_s
        if rising or room <= ROOM * self.limit:
            return None
        if room < ALL * before.limit:
            self._settle(mean_s, before.rate_per_s)
            return room
        # The limit was not to blame, and nobody knows what the service can do.
        self._settle(mean_s, math.inf)
        return before.limit

    def _settle(self, mean_s: float, rate_per_s: float) -> None:
        """This is what attempts take, of a service that does so many per second."""
        self._baseline = Baseline(self._capped(mean_s), rate_per_s)
        self._before = None
        self._clear_windows = CLEAR_WINDOWS - 1  # this was one; one more is to follow at the new limit

    def _drift_towards(self, mean_s: float, share: float) -> None:
        if self._baseline is not None:
            seconds = self._baseline.seconds + share * (mean_s - self._baseline.seconds)
            self._baseline = replace(self._baseline, seconds=self._capped(seconds))

    def _capped(self, seconds: float) -> float:
        objective_s = self._policy.latency_objective_s
        return seconds if objective_s is None else min(seconds, objective_s)
