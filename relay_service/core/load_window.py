"""What the attempts that ended say about load: one by one, and over a window."""

import math
from dataclasses import dataclass
from enum import Enum

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code

WINDOW_MIN_S = 0.1
SAMPLES_MIN = 20
SHRINKS = 0.75
"""After the limit was lowered a window may be shorter by so much: what attempts took before held a queue."""

USED_SHARE = 0.8
"""The limit is what holds the load when so much of it is in use."""
LOSS_TOLERATED = 0.05
"""Networks lose a little whatever the load."""


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
_SUCCESS, _TIMED_OUT, _REFUSED = LoadSign.SUCCESS, LoadSign.TIMED_OUT, LoadSign.REFUSED


def load_sign_of(delivery: Delivery, code: Code, *, given_up: bool = False) -> LoadSign:
    """What an attempt that ended like this says about load.

    Failures that come fast say nothing, and nor does a connection that broke: only who was waited for, until
    the relay gave it up, took too long.
    """
    if code is _OK and delivery is _ANSWERED:
        return _SUCCESS
    match delivery, code:
        case (Delivery.NOT_SENT, _) | (_, Code.CANCELLED):
            return LoadSign.IGNORED
        case Delivery.UNANSWERED, _:
            return LoadSign.TIMED_OUT if given_up else LoadSign.IGNORED
        case _, Code.DEADLINE_EXCEEDED:
            return LoadSign.TIMED_OUT
        case _, Code.RESOURCE_EXHAUSTED:
            return LoadSign.REFUSED
        case _:
            return LoadSign.IGNORED


@dataclass(frozen=True, slots=True)
class Window:
    """What a limit led to."""

    mean_s: float | None
    """The mean time of those that succeeded; None without any."""
    loss_share: float
    peak_in_flight: int
    """The most that were under way."""
    rate_per_s: float = 0.0
    """Successes per second."""
    lost_after_s: float = 0.0
    """How long those that timed out were under way, on average; 0 without any."""


class Sampler:
    """Cuts the stream of ended attempts into windows.

    A window begins when no more are under way than the limit allows, and a success counts only if it began
    inside the window: so it is this limit that is judged, and not the one that it was lowered from. A window
    ends once it holds enough and has lasted twice as long as attempts take: a shorter one would see
    only the fast ones. With a limit below `SAMPLES_MIN` / 2 twice as many samples as the limit are enough, so
    that a small limit is not a slow one.
    """

    __slots__ = (
        "_ended",
        "_last_limit",
        "_last_mean_s",
        "_lost",
        "_lost_after_s",
        "_peak",
        "_since",
        "_succeeded",
        "_sum_s",
        "_timed_out",
        "alarm_s",
    )

    def __init__(self, now: float) -> None:
        self.alarm_s = math.inf
        """A higher mean completes a window before its time: what it still misses is slower still."""
        self._last_mean_s = 0.0
        self._last_limit = 1.0
        self._restart(now)

    def _restart(self, now: float) -> None:
        self._since = now
        self._ended = 0
        self._succeeded = 0
        self._lost = 0
        self._timed_out = 0
        self._sum_s = 0.0
        self._lost_after_s = 0.0
        self._peak = 0

    def add(
        self, outcome: LoadSign, held_s: float, in_flight: int, now: float, limit: float
    ) -> Window | None:
        """Count one attempt; the window that it completes, if it does."""
        if in_flight > limit and outcome is not _REFUSED:
            self._restart(now)
            return None
        if outcome is _SUCCESS:
            self._ended += 1
            if now - held_s < self._since:
                return None
            self._succeeded += 1
            self._sum_s += held_s
        else:
            self._lost += 1
            if outcome is _TIMED_OUT:
                self._timed_out += 1
                self._lost_after_s += held_s
        self._peak = max(self._peak, in_flight)
        samples = self._succeeded + self._lost
        if samples < SAMPLES_MIN and samples < 2 * limit:
            return None
        return self._completed(samples, now, limit)

    def _completed(self, samples: int, now: float, limit: float) -> Window | None:
        """The window, unless it has to last longer."""
        lasted_s = now - self._since
        if lasted_s < WINDOW_MIN_S or lasted_s < self._least_s(limit):
            return None
        window = self._window(samples, lasted_s)
        if window.mean_s is not None:
            self._last_mean_s, self._last_limit = window.mean_s, limit
        self._restart(now)
        return window

    def _least_s(self, limit: float) -> float:
        """How long the window has to be. After the limit was lowered attempts may be faster, or may not."""
        mean_s = self._sum_s / self._succeeded if self._succeeded else 0.0
        if self._lost > self._succeeded or mean_s > self.alarm_s:
            return WINDOW_MIN_S  # no measurement says more than that
        expected_s = self._last_mean_s * min(1.0, max(SHRINKS, limit / self._last_limit))
        return 2 * max(mean_s, expected_s)

    def _window(self, samples: int, lasted_s: float) -> Window:
        return Window(
            self._sum_s / self._succeeded if self._succeeded else None,
            self._lost / samples,
            self._peak,
            self._ended / lasted_s,
            self._lost_after_s / self._timed_out if self._timed_out else 0.0,
        )
