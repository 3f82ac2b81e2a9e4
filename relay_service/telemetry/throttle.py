"""A token bucket for what is said about failures: a flood of them stays a trickle of telemetry."""


class TokenBucket:
    """Grants ``burst`` at once and ``rate_per_s`` in the long run.

    State: ``_tokens`` at the monotonic time ``_filled_at``, and the refusals counted since the start.
    """

    __slots__ = ("_burst", "_filled_at", "_rate_per_s", "_tokens", "refused")

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._tokens = self._burst
        self._filled_at = 0.0
        self.refused = 0
        """How often `take` said no."""

    def take(self, now: float) -> bool:
        """Take one token if there is one; ``now`` is in monotonic seconds."""
        elapsed_s = now - self._filled_at
        if elapsed_s > 0.0:
            self._tokens = min(self._burst, self._tokens + elapsed_s * self._rate_per_s)
        self._filled_at = now
        if self._tokens < 1.0:
            self.refused += 1
            return False
        self._tokens -= 1.0
        return True
