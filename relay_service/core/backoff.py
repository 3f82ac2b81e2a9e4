"""How long to wait before the next attempt."""

from random import Random

from relay_service.core.jitter import Jitter
from relay_service.core.policy import RetryPolicy


class Backoff:
    """The delays of one call: exponential, capped, with the policy's jitter.

    Full jitter draws uniformly from zero to the exponential ceiling, which spreads a herd best for the
    least work (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015); the ceiling is
    that of gRFC A6. State: the number of delays given and, for decorrelated jitter, the last one.
    """

    __slots__ = ("_delays_given", "_last_s", "_policy")

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.reset()

    def reset(self) -> None:
        """Start over, as a server's pushback demands (gRFC A6)."""
        self._delays_given = 0
        self._last_s = self._policy.initial_backoff_s

    def next_s(self, rng: Random) -> float:
        """The next delay in seconds, never above ``max_backoff_s``."""
        policy = self._policy
        # A float power overflows past about 2**1000; the cap is reached long before.
        exponent = min(self._delays_given, 64)
        ceiling_s = min(policy.max_backoff_s, policy.initial_backoff_s * policy.backoff_multiplier**exponent)
        self._delays_given += 1
        match policy.jitter:
            case Jitter.NONE:
                delay_s = ceiling_s
            case Jitter.FULL:
                delay_s = rng.uniform(0.0, ceiling_s)
            case Jitter.EQUAL:
                delay_s = ceiling_s / 2 + rng.uniform(0.0, ceiling_s / 2)
            case Jitter.DECORRELATED:
                upper_s = max(policy.initial_backoff_s, self._last_s * 3)
                delay_s = min(policy.max_backoff_s, rng.uniform(policy.initial_backoff_s, upper_s))
        self._last_s = delay_s
        return delay_s
