"""When a queue stands, and when a call has to leave it for that.

A queue that empties again and again evens out bursts. One whose oldest call has always waited longer than
a target stands: it delays everybody and evens out nothing. While it stands, one call after the other is
shed, the sooner the longer it lasts (controlled delay, CoDel: Nichols and Jacobson, 2012, RFC 8289).
"""

import math


class StandingQueue:
    """Judges one queue by how long its oldest call has waited, each time one is about to leave it.

    State: since when the oldest has waited too long without a break (None while it has not), how many were
    shed since the queue began to stand, and when the next one is due.
    """

    __slots__ = ("_above_since", "_due_at", "_interval_s", "_shed", "_target_s", "standing")

    def __init__(self, target_s: float, interval_s: float) -> None:
        self._target_s = target_s
        self._interval_s = interval_s
        self._above_since: float | None = None
        self._shed = 0
        self._due_at = 0.0
        self.standing = False
        """Whether the shortest wait of the last interval was above the target."""

    def observe(self, oldest_wait_s: float, now: float) -> None:
        """The oldest call has waited for so long; 0 when none waits."""
        if oldest_wait_s <= self._target_s:
            self._above_since = None
            self.standing = False
        elif self._above_since is None:
            self._above_since = now
        elif not self.standing and now - self._above_since >= self._interval_s:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self.standing = True
        # A queue that stood a moment ago was not shed from fast enough: go on about where that ended.
        recent = now - self._due_at < 16 * self._interval_s
        self._shed = max(0, self._shed - 2) if recent else 0
        self._due_at = now

    def shed_one(self, now: float) -> bool:
        """Whether a call is due to be shed now; if so it is counted as shed."""
        if not self.standing or now < self._due_at:
            return False
        self._shed += 1
        self._due_at += self._interval_s / math.sqrt(self._shed)
        return True
