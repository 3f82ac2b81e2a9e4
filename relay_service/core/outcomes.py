"""How attempts ended lately: counts over a sliding window, in memory that never grows."""

BUCKETS = 10
"""Slices of the window; what is counted leaves it at most a tenth of its length late."""


class OutcomeWindow:
    """Attempts, failures and slow attempts of the last ``window_s``, summed as they come and go.

    A ring of buckets, so counting is O(1) and a pause of any length is O(`BUCKETS`). The window slides by
    whole buckets: it covers between nine and ten tenths of ``window_s``.
    """

    __slots__ = ("_bucket_s", "_failures", "_head", "_slow", "_total", "calls", "failures", "slow")

    def __init__(self, window_s: float, now: float) -> None:
        self._bucket_s = window_s / BUCKETS
        self._head = int(now / self._bucket_s)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._total = [0] * BUCKETS
        self._failures = [0] * BUCKETS
        self._slow = [0] * BUCKETS
        self.calls = 0
        self.failures = 0
        self.slow = 0

    def count(self, now: float, *, failed: bool, slow: bool) -> None:
        """One more attempt, that may have failed, been slow, or both."""
        if int(now / self._bucket_s) != self._head:
            self.slide(now)
        index = self._head % BUCKETS
        self._total[index] += 1
        self.calls += 1
        if failed:
            self._failures[index] += 1
            self.failures += 1
        if slow:
            self._slow[index] += 1
            self.slow += 1

    def slide(self, now: float) -> None:
        """Drop what is too old."""
        head = int(now / self._bucket_s)
        for bucket in range(max(self._head, head - BUCKETS) + 1, head + 1):
            index = bucket % BUCKETS
            self.calls -= self._total[index]
            self.failures -= self._failures[index]
            self.slow -= self._slow[index]
            self._total[index] = self._failures[index] = self._slow[index] = 0
        self._head = max(self._head, head)
