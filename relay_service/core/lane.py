"""One upstream as a call's attempts meet it, and when they may go on at another.

A call falls back only while nothing can have been executed: when its upstream's breaker lets no attempt
through, or when an attempt could not even be sent. After an attempt that may have been executed no other
service may be asked, since it knows nothing of that attempt and would make the effect again.

An attempt at a fallback is a first attempt there: it pays into that upstream's budget instead of drawing on
one, and its retries draw on that budget. So the promise holds for each upstream by itself: retries <= ratio x
first attempts + burst.
"""

from typing import NamedTuple

from relay_service.core.breaker import CircuitBreaker
from relay_service.core.budget import RetryGate
from relay_service.core.evidence import Evidence
from relay_service.core.throttle import AdaptiveThrottle

NOTHING_EXECUTED = frozenset({Evidence.NOT_SENT, Evidence.REFUSED})
"""What all attempts of a call must prove for it to fall back."""


class Lane(NamedTuple):
    """What judges attempts at one upstream, and what they draw on."""

    gate: RetryGate
    breaker: CircuitBreaker | None = None
    throttle: AdaptiveThrottle | None = None

    def is_open(self, now: float) -> bool:
        """Whether its breaker is sure to refuse an attempt now; True counts as a refusal."""
        breaker = self.breaker
        return breaker is not None and breaker.refuses(now)
