"""When an attempt has taken so long that a second one beside it is worth making: hedging.

An attempt that is slower than most of its method's is often slow by bad luck (a lost packet, a busy
replica, a pause), and a second one, made on another connection, is likely to be faster. So the wait before
a hedge is a quantile of what the method's first attempts take, learned while they run: with 0.95 about one
call in twenty is hedged, a little less on purpose, whatever the distribution, and also after it changed.

For that bound every first attempt counts that outlived the wait, answered or not. If those that lost
against their hedge were left out, each hedge would make the method look faster, and more be hedged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from relay_service.core.breaker import CircuitBreaker
from relay_service.core.budget import RetryGate
from relay_service.core.pace import LearnedQuantile
from relay_service.core.policy import HedgePolicy

MARGIN = 0.1
"""The share of hedges aimed at is by so much smaller than the policy says, since what is learned sways."""

METHODS_MAX = 200
"""Methods of one upstream whose latency is learned; calls of others are not hedged by a quantile."""


class HeldBack(Enum):
    """Why a hedge that was due was not made."""

    NO_WORKER = "every worker is busy, or calls wait for one"
    PUSHBACK = "another attempt of the call was told to come back later, or not at all"
    DEADLINE = "the deadline leaves less time than nearly all attempts take"
    BREAKER = "the circuit breaker is not closed"
    BUDGET = "what is left of the retry budget is kept for retries"


@dataclass(frozen=True, slots=True)
class HedgedMethod:
    """What was learned of one method."""

    method: str
    samples: int
    quantile_s: float
    """0 while too few samples are there."""


@dataclass(frozen=True, slots=True)
class HedgingState:
    """For people and dashboards. ``started`` = ``won`` + ``cancelled`` + those that failed + under way."""

    started: int
    won: int
    cancelled: int
    """Given up because another attempt was answered first, or the call ended."""
    held_back: Mapping[HeldBack, int]
    methods: tuple[HedgedMethod, ...]


class MethodLatency:
    """How long the first attempts of a method take: exactly for the first ``min_samples``, then learned.

    What is counted then is whether attempts outlive the estimate that stood when they began, so that the
    share of those is what the learning holds: not of those that outlive what it has become since.
    """

    __slots__ = ("_first_s", "_learned", "_min_samples")

    def __init__(self, quantile: float, min_samples: int) -> None:
        self._min_samples = min_samples
        self._first_s: list[float] | None = []
        self._learned = LearnedQuantile(1 - (1 - MARGIN) * (1 - quantile))

    @property
    def samples(self) -> int:
        """Attempts seen."""
        return self._learned.observations if self._first_s is None else len(self._first_s)

    @property
    def quantile_s(self) -> float | None:
        """The quantile; None before ``min_samples``."""
        return self._learned.quantile_s if self._first_s is None else None

    def answered(self, took_s: float, estimate_s: float | None) -> None:
        """Answered after so long; ``estimate_s`` is what `quantile_s` was at its start."""
        if estimate_s is not None:
            self._outlived_or_not(took_s, estimate_s)
        elif self._first_s is not None:
            self._note(self._first_s, took_s)

    def unanswered(self, lasted_s: float, estimate_s: float | None) -> None:
        """A first attempt ended without an answer, which would have taken longer than that."""
        if estimate_s is not None and lasted_s >= estimate_s:
            self._learned.count_above()

    def _outlived_or_not(self, took_s: float, estimate_s: float) -> None:
        if took_s < estimate_s:
            self._learned.count_below()
        else:
            self._learned.count_above()

    def _note(self, first_s: list[float], took_s: float) -> None:
        first_s.append(took_s)
        if len(first_s) >= self._min_samples:
            self._learned.begin_with(first_s)
            self._first_s = None


class Hedging:
    """The hedges of all calls to one upstream: what was learned of its methods, and what became of them.

    A method is remembered with its first answered attempt, so callers that make up names fill nothing.
    """

    __slots__ = ("_cancelled", "_held_back", "_methods", "_started", "_won")

    def __init__(self) -> None:
        self._methods: dict[str, MethodLatency] = {}
        self._started = self._won = self._cancelled = 0
        self._held_back = dict.fromkeys(HeldBack, 0)

    def latency_s(self, method: str) -> float | None:
        """The learned quantile of what the method's first attempts take; None when not enough were seen."""
        latency = self._methods.get(method)
        return None if latency is None else latency.quantile_s

    def first_answered(
        self, method: str, policy: HedgePolicy, took_s: float, estimate_s: float | None
    ) -> None:
        """A call's first attempt was answered, in a way that another would not change.

        ``estimate_s`` is what `latency_s` said when it began.
        """
        if policy.quantile is None:
            return
        latency = self._methods.get(method)
        if latency is None:
            if len(self._methods) >= METHODS_MAX:
                return
            latency = self._methods[method] = MethodLatency(policy.quantile, policy.min_samples)
        latency.answered(took_s, estimate_s)

    def first_unanswered(self, method: str, lasted_s: float, estimate_s: float | None) -> None:
        """A call's first attempt failed, or was given up, after so long."""
        latency = self._methods.get(method)
        if latency is not None:
            latency.unanswered(lasted_s, estimate_s)

    def may_start(
        self, gate: RetryGate, breaker: CircuitBreaker | None, time_left_s: float, needs_s: float, now: float
    ) -> bool:
        """Whether a hedge may be made now, which will likely take ``needs_s``; True charged the budget."""
        obstacle = None
        if time_left_s < needs_s:
            obstacle = HeldBack.DEADLINE
        elif breaker is not None and not breaker.is_calm(now):
            obstacle = HeldBack.BREAKER
        elif not gate.allow_hedge(now):
            obstacle = HeldBack.BUDGET
        if obstacle is not None:
            self.hold_back(obstacle)
            return False
        self._started += 1
        return True

    def hold_back(self, why: HeldBack) -> None:
        """Count a hedge that was due and is not made."""
        self._held_back[why] += 1

    def won(self) -> None:
        """A hedge answered its call."""
        self._won += 1

    def cancelled(self) -> None:
        """A hedge was given up."""
        self._cancelled += 1

    def state(self) -> HedgingState:
        """All that was counted and learned."""
        methods = tuple(
            HedgedMethod(method, latency.samples, latency.quantile_s or 0.0)
            for method, latency in sorted(self._methods.items())
        )
        return HedgingState(self._started, self._won, self._cancelled, dict(self._held_back), methods)
