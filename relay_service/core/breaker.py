"""The circuit breaker: attempts at an upstream that keeps failing stop, and begin again carefully.

All that can happen is in `TRANSITIONS`. CLOSED counts how attempts end; OPEN lets nothing through for a
time; HALF_OPEN lets a few probes through, each with a lease; what they show closes the breaker, which then
lets a growing share through, or opens it again.

Every attempt holds a `Permit` that carries the epoch it was given in, and each transition begins a new
epoch. So an answer that comes late, from before the breaker opened or after a lease ran out, says nothing
about the upstream now and is dropped. Time is brought up to date whenever the breaker is asked anything:
what was due since (a stuck attempt, a lost probe, the end of the open time) happens then as if it had
happened when it was due, and no timer is needed.

Sources: M. Nygard, "Release It!" (2007), ch. 5; the generations of github.com/sony/gobreaker.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from random import Random
from types import MappingProxyType

from relay_service.core.outcomes import OutcomeWindow
from relay_service.core.policy import BreakerPolicy

RAMP_SHARE_MIN = 0.1
"""What is let through at once after closing: enough to see whether the upstream bears it."""

PUSHBACK_MIN_S = 0.01

JUDGED = -1
"""The epoch of a permit whose attempt has said what it had to say."""


class BreakerState(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    """Attempts are let through; after closing, a share of them that grows."""
    OPEN = "open"
    """None is."""
    HALF_OPEN = "half_open"
    """Probes are, a few at once."""


class Trigger(Enum):
    """What moves a breaker."""

    FAILURES_IN_A_ROW = "failures in a row"
    FAILURE_RATIO = "failure ratio"
    SLOW_RATIO = "slow ratio"
    OPEN_TIME_OVER = "open time over"
    PROBES_SUCCEEDED = "enough probes succeeded"
    PROBE_FAILED = "a probe failed"
    PROBE_LOST = "a probe's lease ran out"


TRANSITIONS: Mapping[tuple[BreakerState, Trigger], BreakerState] = MappingProxyType(
    {
        (BreakerState.CLOSED, Trigger.FAILURES_IN_A_ROW): BreakerState.OPEN,
        (BreakerState.CLOSED, Trigger.FAILURE_RATIO): BreakerState.OPEN,
        (BreakerState.CLOSED, Trigger.SLOW_RATIO): BreakerState.OPEN,
        (BreakerState.OPEN, Trigger.OPEN_TIME_OVER): BreakerState.HALF_OPEN,
        (BreakerState.HALF_OPEN, Trigger.PROBES_SUCCEEDED): BreakerState.CLOSED,
        (BreakerState.HALF_OPEN, Trigger.PROBE_FAILED): BreakerState.OPEN,
        (BreakerState.HALF_OPEN, Trigger.PROBE_LOST): BreakerState.OPEN,
    }
)
"""The one table of transitions; the diagram in the docs is drawn from it."""


class Work(Enum):
    """What an attempt carries, which decides whether its length means anything."""

    CALL = "call"
    """One message each way: long means slow, and very long means stuck."""
    STREAM = "stream"
    """A conversation: it may last, and it is alive as soon as the upstream begins to answer."""


class Outcome(Enum):
    """What an attempt's end says of the upstream."""

    SUCCESS = "success"
    """It answers, be it with a refusal that is the caller's own fault."""
    FAILURE = "failure"
    IGNORED = "ignored"
    """Nothing: the attempt was given up for a reason that is not the upstream's."""


_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
_CALL = Work.CALL
_FAILURE, _IGNORED = Outcome.FAILURE, Outcome.IGNORED


class Permit:
    """The right to one attempt, to be given back once with `CircuitBreaker.settle`."""

    __slots__ = ("epoch", "started_at", "work")

    def __init__(self, epoch: int, started_at: float, work: Work) -> None:
        self.epoch = epoch
        self.started_at = started_at
        self.work = work


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """For people and dashboards. Counters run from the start of the process."""

    state: BreakerState
    share: float
    """Of the attempts, how many are let through: 1 when closed, less while that is new, 0 when open."""
    cause: Trigger | None
    """Why it opened last; None when it never did."""
    calls: int
    """Attempts in the window; of these ``failures`` and ``slow``."""
    failures: int
    slow: int
    consecutive_failures: int
    probes: int
    """Probes under way."""
    opened: int
    refused: int
    """Calls and retries that were not let through."""
    probes_lost: int
    stuck: int
    """Attempts that counted as failed before they ended."""
    late: int
    """Outcomes that were dropped because the breaker had moved on."""


class CircuitBreaker:
    """Judges one upstream, or one part of it, by how attempts at it end.

    Every operation is O(1) amortised. Memory is bounded by the attempts under way.

    State: where it stands and since which epoch; the window and the failures in a row (CLOSED); when the
    open time ends (OPEN); the probes under way, oldest first, and how many succeeded (HALF_OPEN); when the
    ramp began and how much of an attempt it has saved up (CLOSED); the attempts that may yet get stuck,
    oldest first (CLOSED); counters.
    """

    __slots__ = (
        "_cause",
        "_consecutive",
        "_epoch",
        "_in_flight",
        "_late",
        "_lost",
        "_open_until",
        "_opened",
        "_policy",
        "_probes",
        "_proven",
        "_ramp_credit",
        "_ramp_from",
        "_refused",
        "_state",
        "_stuck",
        "_window",
    )

    def __init__(self, policy: BreakerPolicy, now: float) -> None:
        self._policy = policy
        self._state = BreakerState.CLOSED
        self._epoch = 0
        self._cause: Trigger | None = None
        self._window = OutcomeWindow(policy.window_s, now)
        self._consecutive = 0
        self._in_flight: dict[Permit, None] = {}
        self._ramp_from: float | None = None
        self._ramp_credit = 0.0
        self._open_until = now
        self._probes: dict[Permit, None] = {}
        self._proven = 0
        self._opened = self._refused = self._lost = self._stuck = self._late = 0

    @property
    def policy(self) -> BreakerPolicy:
        """What it judges by."""
        return self._policy

    # Before an attempt --------------------------------------------------------------------------

    def enter(self, work: Work, now: float) -> Permit | None:
        """The right to make an attempt; None refuses it."""
        self._catch_up(now)
        # Nearly always it is closed, and not since a moment ago.
        if (self._state is not _CLOSED or self._ramp_from is not None) and not self._admits(now):
            self._refused += 1
            return None
        permit = Permit(self._epoch, now, work)
        if self._state is _HALF_OPEN:
            self._probes[permit] = None
        elif self._policy.stuck_call_s is not None and work is _CALL:
            self._in_flight[permit] = None
        return permit

    def refuses(self, now: float) -> bool:
        """Whether an attempt is sure to be refused now. True counts as a refusal.

        For a call at its headers, before anything is spent on it; the ramp is left to `enter`.
        """
        self._catch_up(now)
        if self._state is _CLOSED:
            return False
        refuses = self._state is _OPEN or len(self._probes) >= self._policy.probes
        self._refused += refuses
        return refuses

    def is_calm(self, now: float) -> bool:
        """Whether it is CLOSED and lets all through: what is only a bet may be tried."""
        self._catch_up(now)
        return self._state is BreakerState.CLOSED and self._share(now) >= 1.0

    def wait_s(self, now: float) -> float:
        """For how long every attempt is sure to be refused; 0 when one may be let through."""
        self._catch_up(now)
        return max(0.0, self._open_until - now) if self._state is BreakerState.OPEN else 0.0

    def pushback_s(self, now: float, rng: Random) -> float:
        """When a refused caller should return.

        Not before the next probe is due, and spread over half as long again, so that not all return
        with it; the tenth on top is what rounding to two digits may take away. While a probe is under
        way it counts as failing; while the share grows, returns are spread over what is left of that.
        """
        match self._state:
            case BreakerState.OPEN:
                pushback_s = (self._open_until - now) * rng.uniform(1.1, 1.6)
            case BreakerState.HALF_OPEN:
                pushback_s = self._policy.open_s * rng.uniform(1.1, 1.6)
            case BreakerState.CLOSED:
                pushback_s = self._ramp_left_s(now) * rng.random()
        return max(PUSHBACK_MIN_S, pushback_s)

    # After it -----------------------------------------------------------------------------------

    def answering(self, permit: Permit, now: float) -> None:
        """The upstream began to answer. A stream that probes has proven it then: it may go on for long."""
        self._catch_up(now)
        if permit in self._probes and permit.work is Work.STREAM:
            permit.epoch = JUDGED
            self._probe_ended(permit, Outcome.SUCCESS, now)

    def settle(self, permit: Permit, outcome: Outcome, now: float) -> None:
        """The attempt ended. Once its epoch is over, or it was judged before, this changes nothing."""
        self._catch_up(now)
        if permit.epoch != self._epoch:
            self._late += permit.epoch != JUDGED
            return
        permit.epoch = JUDGED
        if self._in_flight:
            self._in_flight.pop(permit, None)
        slow = self._policy.slow_call_s is not None and self._was_slow(permit, now)
        if self._state is _HALF_OPEN:
            proven = Outcome.FAILURE if slow and outcome is Outcome.SUCCESS else outcome
            self._probe_ended(permit, proven, now)
        elif outcome is not _IGNORED:
            self._count(now, failed=outcome is _FAILURE, slow=slow)

    def status(self, now: float) -> BreakerStatus:
        """The breaker as it stands."""
        self._catch_up(now)
        self._window.slide(now)
        return BreakerStatus(
            state=self._state,
            share=self._share(now) if self._state is BreakerState.CLOSED else 0.0,
            cause=self._cause,
            calls=self._window.calls,
            failures=self._window.failures,
            slow=self._window.slow,
            consecutive_failures=self._consecutive,
            probes=len(self._probes),
            opened=self._opened,
            refused=self._refused,
            probes_lost=self._lost,
            stuck=self._stuck,
            late=self._late,
        )

    # Time ---------------------------------------------------------------------------------------

    def _catch_up(self, now: float) -> None:
        """Let happen what was due by ``now``."""
        if self._in_flight:
            self._count_stuck(now)
        if self._probes:
            lease_end = next(iter(self._probes)).started_at + self._policy.probe_timeout_s
            if lease_end <= now:
                self._lost += 1
                self._move(Trigger.PROBE_LOST, lease_end)
        if self._state is _OPEN and self._open_until <= now:
            self._move(Trigger.OPEN_TIME_OVER, self._open_until)

    def _count_stuck(self, now: float) -> None:
        """Count the attempts that run too long as failed; they come oldest first."""
        stuck_s = self._policy.stuck_call_s
        while stuck_s is not None and self._in_flight:
            oldest = next(iter(self._in_flight))
            due = oldest.started_at + stuck_s
            if due > now:
                return
            del self._in_flight[oldest]
            oldest.epoch = JUDGED
            self._stuck += 1
            self._count(due, failed=True, slow=self._was_slow(oldest, due))

    def _move(self, trigger: Trigger, at: float) -> None:
        """Take the table's step, at the time it was due."""
        self._state = TRANSITIONS[self._state, trigger]
        self._epoch += 1
        self._in_flight.clear()
        self._probes.clear()
        self._proven = 0
        match self._state:
            case BreakerState.OPEN:
                self._cause = trigger
                self._opened += 1
                self._open_until = at + self._policy.open_s
            case BreakerState.CLOSED:
                self._consecutive = 0
                self._window.clear()
                self._ramp_from = at if self._policy.ramp_s is not None else None
                self._ramp_credit = 1.0

    # CLOSED -------------------------------------------------------------------------------------

    def _admits(self, now: float) -> bool:
        match self._state:
            case BreakerState.CLOSED:
                return self._ramp_from is None or self._within_ramp(now)
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return len(self._probes) < self._policy.probes

    def _within_ramp(self, now: float) -> bool:
        """Let the share through exactly: what is short of a whole attempt is saved up, not drawn for."""
        share = self._share(now)
        if share >= 1.0:
            self._ramp_from = None
            return True
        self._ramp_credit += share
        if self._ramp_credit < 1.0:
            return False
        self._ramp_credit -= 1.0
        return True

    def _share(self, now: float) -> float:
        ramp_s = self._policy.ramp_s
        if self._ramp_from is None or ramp_s is None:
            return 1.0
        return min(1.0, max(RAMP_SHARE_MIN, (now - self._ramp_from) / ramp_s))

    def _ramp_left_s(self, now: float) -> float:
        ramp_s = self._policy.ramp_s
        if self._ramp_from is None or ramp_s is None:
            return 0.0
        return max(0.0, self._ramp_from + ramp_s - now)

    def _was_slow(self, permit: Permit, now: float) -> bool:
        slow_s = self._policy.slow_call_s
        return slow_s is not None and permit.work is Work.CALL and now - permit.started_at >= slow_s

    def _count(self, now: float, *, failed: bool, slow: bool) -> None:
        self._window.count(now, failed=failed, slow=slow)
        self._consecutive = self._consecutive + 1 if failed else 0
        if not failed and not slow and not self._window.failures and not self._window.slow:
            return
        trigger = self._tripped()
        if trigger is not None:
            self._move(trigger, now)

    def _tripped(self) -> Trigger | None:
        policy, window = self._policy, self._window
        if policy.consecutive_failures is not None and self._consecutive >= policy.consecutive_failures:
            return Trigger.FAILURES_IN_A_ROW
        if window.calls < policy.min_calls:
            return None
        if policy.failure_ratio is not None and window.failures >= policy.failure_ratio * window.calls:
            return Trigger.FAILURE_RATIO
        if policy.slow_call_s is not None and window.slow >= policy.slow_ratio * window.calls:
            return Trigger.SLOW_RATIO
        return None

    # HALF_OPEN ----------------------------------------------------------------------------------

    def _probe_ended(self, permit: Permit, outcome: Outcome, now: float) -> None:
        """One proof more, or the way back; a probe that says nothing makes room for the next."""
        del self._probes[permit]
        match outcome:
            case Outcome.SUCCESS:
                self._proven += 1
                if self._proven >= self._policy.probe_successes:
                    self._move(Trigger.PROBES_SUCCEEDED, now)
            case Outcome.FAILURE:
                self._move(Trigger.PROBE_FAILED, now)
            case Outcome.IGNORED:
                pass
