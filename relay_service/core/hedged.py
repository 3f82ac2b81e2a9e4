"""One call's hedges: those under way beside its main attempt, and when the next is due."""

import math

from relay_service.core.breaker import CircuitBreaker, Permit
from relay_service.core.budget import RetryGate
from relay_service.core.events import Actions, WaitHedge
from relay_service.core.hedge import Hedging, HeldBack
from relay_service.core.policy import HedgePolicy
from relay_service.core.status import Code


class Hedges:
    """The hedges of one call to ``method``; `relay_service.core.call.Call` asks and tells.

    State: the hedges under way with the permits of the breaker, the numbers of all that were made, when the
    first attempt began and what such attempts were known to take then, the wait that follows, and when the
    upstream told an attempt to come back.
    """

    __slots__ = (
        "_began_at",
        "_hedging",
        "_latency_s",
        "_method",
        "_permits",
        "_policy",
        "_wait_s",
        "come_back_at",
        "numbers",
    )

    def __init__(self, hedging: Hedging, method: str, policy: HedgePolicy) -> None:
        self._hedging = hedging
        self._method = method
        self._policy = policy
        self._permits: dict[int, Permit | None] = {}
        self._latency_s: float | None = None
        self._wait_s: float | None = None
        """None while nothing is known."""
        self._began_at = 0.0
        self.numbers: list[int] = []
        """Of all hedges made, among the call's attempts."""
        self.come_back_at: float | None = None
        """Monotonic seconds, infinite for never; None when nobody was told. After that nothing is hedged."""

    @property
    def under_way(self) -> tuple[int, ...]:
        """Their numbers, oldest first."""
        return tuple(self._permits)

    # When the next is due -----------------------------------------------------------------------

    def main_started(self, attempts: int, now: float) -> Actions:
        """The call's main attempt, its first or a retry, begins."""
        if attempts == 1:
            self._began_at = now
            self._look_up()
        return self.next_after(attempts, now)

    def _look_up(self) -> None:
        policy = self._policy
        if policy.quantile is None:
            self._wait_s = policy.min_delay_s
        else:
            self._latency_s = self._hedging.latency_s(self._method)
            self._wait_s = None if self._latency_s is None else max(policy.min_delay_s, self._latency_s)

    def next_after(self, attempts: int, now: float) -> Actions:
        """When to make the next hedge of a call that has made so many attempts, if any."""
        if self._wait_s is None or attempts >= self._policy.max_attempts:
            return ()
        return (WaitHedge(now + self._wait_s),)

    def at_once(self, attempts: int, now: float) -> Actions:
        """The next, brought forward because one of several attempts has failed (gRFC A6)."""
        if self._wait_s is None or attempts >= self._policy.max_attempts or self.come_back_at is not None:
            return ()
        return (WaitHedge(now),)

    def may_start(
        self, gate: RetryGate, breaker: CircuitBreaker | None, deadline: float | None, now: float
    ) -> bool:
        """Whether the one that is due may be made; True has charged the budget."""
        if self.come_back_at is not None:
            self._hedging.hold_back(HeldBack.PUSHBACK)
            return False
        left_s = math.inf if deadline is None else deadline - now
        return self._hedging.may_start(gate, breaker, left_s, self._wait_s or 0.0, now)

    def unserved(self) -> None:
        """No worker was to be had for the one that is due."""
        self._hedging.hold_back(HeldBack.NO_WORKER)

    # Those under way ----------------------------------------------------------------------------

    def started(self, number: int, permit: Permit | None) -> None:
        """One more is under way."""
        self._permits[number] = permit
        self.numbers.append(number)

    def ended(self, number: int) -> Permit | None:
        """It is no longer; its permit. KeyError when it was not."""
        return self._permits.pop(number)

    # How the call's attempts end ----------------------------------------------------------------

    def answered(self, number: int, now: float) -> None:
        """Attempt ``number``, main or hedge, gave the call its answer."""
        if number == 1:
            took_s = now - self._began_at
            self._hedging.first_answered(self._method, self._policy, took_s, self._latency_s)
        elif number in self.numbers:
            self._hedging.won()

    def failed(self, number: int, pushback_s: float | None, now: float) -> None:
        """It failed; ``pushback_s`` is what the upstream told it, negative for not to come back."""
        if number == 1:
            self._first_unanswered(now)
        if pushback_s is not None:
            self.come_back_at = now + pushback_s if pushback_s >= 0.0 else math.inf

    def given_up(self, number: int, now: float) -> None:
        """It was given up: another was answered, or the call ends."""
        if number == 1:
            self._first_unanswered(now)
        elif number in self.numbers:
            self._hedging.cancelled()

    def _first_unanswered(self, now: float) -> None:
        self._hedging.first_unanswered(self._method, now - self._began_at, self._latency_s)

    def is_fatal(self, code: Code) -> bool:
        """Whether the operator said that an answer with ``code`` ends the call at once."""
        codes = self._policy.non_fatal_codes
        return codes is not None and code not in codes
