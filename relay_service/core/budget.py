"""What keeps retries and hedges from becoming a storm: each must be paid for by calls that came in.

Two gates that can stand together. `RetryBudget` bounds the load that retries add, whatever fails:
in every window, retries + hedges <= ratio x first attempts + floor x seconds + burst. `RetryThrottle` is
gRFC A6's ``retryThrottling``, which stops retrying while most calls fail.

Hedges come second: a retry answers a failure, a hedge only bets on a faster answer. So a hedge may not
take the budget below `HEDGE_RESERVE`.
"""

from dataclasses import dataclass

from relay_service.core.policy import RetryBudgetPolicy, RetryThrottling

HEDGE_RESERVE = 0.5
"""The share of the burst that hedges leave for retries; gRFC A6 stops at half of its tokens too."""


@dataclass(frozen=True, slots=True)
class BudgetState:
    """For people and dashboards. Without a budget ``tokens`` and ``max_tokens`` are zero."""

    tokens: float
    max_tokens: float
    granted: int
    refused: int


class RetryBudget:
    """A token bucket that first attempts (and slowly, time) fill and retries empty.

    The bucket holds at most ``burst`` tokens, so what it lets through in any window is bounded by what
    flowed in during that window plus the burst.
    """

    __slots__ = ("_filled_at", "_policy", "_tokens")

    def __init__(self, policy: RetryBudgetPolicy, now: float) -> None:
        self._policy = policy
        self._tokens = policy.burst
        self._filled_at = now

    @property
    def tokens(self) -> float:
        """What is left."""
        return self._tokens

    def first_attempt(self) -> None:
        """A call's first attempt pays ``ratio`` tokens in."""
        policy = self._policy
        self._tokens = min(policy.burst, self._tokens + policy.ratio)

    def withdraw(self, now: float, keep: float = 0.0) -> bool:
        """Take one token, if at least ``keep`` are left then."""
        earned = max(0.0, now - self._filled_at) * self._policy.floor_per_s
        self._tokens = min(self._policy.burst, self._tokens + earned)
        self._filled_at = now
        if self._tokens < 1.0 + keep:
            return False
        self._tokens -= 1.0
        return True

    def give_back(self) -> None:
        """The token of a retry that was not made after all."""
        self._tokens = min(self._policy.burst, self._tokens + 1.0)


class RetryThrottle:
    """gRFC A6 ``retryThrottling``: failures take one token, successes give ``token_ratio`` back.

    Retries are allowed while more than half of the tokens are there.
    """

    __slots__ = ("_policy", "_tokens")

    def __init__(self, policy: RetryThrottling) -> None:
        self._policy = policy
        self._tokens = float(policy.max_tokens)

    def record(self, *, failed: bool) -> None:
        """Count one answered attempt. ``failed`` means retryable; other errors count as neither."""
        if failed:
            self._tokens = max(0.0, self._tokens - 1.0)
        else:
            self._tokens = min(self._policy.max_tokens, self._tokens + self._policy.token_ratio)

    @property
    def open(self) -> bool:
        """Whether a retry may be made now."""
        return self._tokens > self._policy.max_tokens / 2


class RetryGate:
    """The one place that every retry and hedge of an upstream must pass; it owns both gates."""

    __slots__ = ("_budget", "_granted", "_hedges_keep", "_max_tokens", "_refused", "_throttle", "policies")

    def __init__(
        self, budget: RetryBudgetPolicy | None, throttling: RetryThrottling | None, now: float
    ) -> None:
        self.policies = (budget, throttling)
        """What it was made from."""
        self._budget = RetryBudget(budget, now) if budget else None
        self._max_tokens = budget.burst if budget else 0.0
        self._hedges_keep = HEDGE_RESERVE * self._max_tokens
        self._throttle = RetryThrottle(throttling) if throttling else None
        self._granted = 0
        self._refused = 0

    def first_attempt(self) -> None:
        """A call's first attempt starts."""
        if self._budget:
            self._budget.first_attempt()

    def record(self, *, failed: bool) -> None:
        """An attempt ended: with a failure that could be retried, or with success."""
        if self._throttle:
            self._throttle.record(failed=failed)

    def allow_retry(self, now: float) -> bool:
        """Charge one retry, before its backoff. False means that the call ends here."""
        return self._charge(now, keep=0.0)

    def refund(self) -> None:
        """A retry that was charged is not made: its caller left in the backoff, or nothing would take it.

        Only such are refunded, and not those that succeed, as in the AWS SDKs' standard mode: a retry that
        was made has been load, whatever came of it, and the bound is on load.
        """
        if self._budget:
            self._budget.give_back()
        self._granted -= 1

    def allow_hedge(self, now: float) -> bool:
        """Charge one hedge. False means that the call goes on without."""
        return self._charge(now, keep=self._hedges_keep)

    def _charge(self, now: float, keep: float) -> bool:
        allowed = (self._throttle is None or self._throttle.open) and (
            self._budget is None or self._budget.withdraw(now, keep)
        )
        if allowed:
            self._granted += 1
        else:
            self._refused += 1
        return allowed

    def state(self) -> BudgetState:
        """The budget as it stands."""
        tokens = self._budget.tokens if self._budget else 0.0
        return BudgetState(tokens, self._max_tokens, self._granted, self._refused)
