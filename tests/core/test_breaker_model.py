"""The breaker against a naive one that remembers everything and counts anew each time."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from relay_service.core.breaker import BreakerState, CircuitBreaker, Outcome, Permit, Work
from relay_service.core.policy import BreakerPolicy

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def limits(values: list[float]) -> st.SearchStrategy[float | None]:
    return st.sampled_from([None, *values])


# Everything is a multiple of an eighth, so that the sums below are exact.
policies = st.builds(
    BreakerPolicy,
    consecutive_failures=limits([1, 3]),
    failure_ratio=limits([0.5, 1.0]),
    slow_ratio=st.just(0.5),
    slow_call_s=limits([0.5]),
    stuck_call_s=limits([0.25, 2.0]),
    window_s=st.sampled_from([1.25, 10.0]),
    min_calls=st.integers(1, 5),
    open_s=st.sampled_from([0.5, 3.0]),
    probes=st.integers(1, 3),
    probe_successes=st.integers(1, 3),
    probe_timeout_s=st.sampled_from([0.5, 4.0]),
    ramp_s=st.none(),
)


@dataclass(eq=False)
class Attempt:
    """What the naive breaker knows of one attempt; ``judged`` once nothing it says counts any more."""

    started_at: float
    work: Work
    judged: bool = False


class Naive:
    """No ring, no epochs, no queues: lists, searched through."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.state = CLOSED
        self.attempts: list[Attempt] = []
        self.history: list[tuple[float, bool, bool]] = []
        self.open_until = 0.0
        self.proven = 0

    def step(self, now: float) -> None:
        """Whatever was due, in the order in which it was."""
        while (due := min(self._due(), default=None)) is not None and due <= now:
            if self.state is OPEN:
                self._change(HALF_OPEN, due)
            elif self.state is HALF_OPEN:
                self._change(OPEN, due)
            else:
                stuck = min((a for a in self.attempts if self._may_stick(a)), key=lambda a: a.started_at)
                stuck.judged = True
                self._count(due, True, self._slow(stuck, due))

    def _due(self) -> list[float]:
        live = [attempt for attempt in self.attempts if not attempt.judged]
        match self.state:
            case BreakerState.OPEN:
                return [self.open_until]
            case BreakerState.HALF_OPEN:
                return [attempt.started_at + self.policy.probe_timeout_s for attempt in live]
            case BreakerState.CLOSED:
                limit_s = self.policy.stuck_call_s or 0.0
                return [attempt.started_at + limit_s for attempt in live if self._may_stick(attempt)]

    def _may_stick(self, attempt: Attempt) -> bool:
        return not attempt.judged and attempt.work is Work.CALL and self.policy.stuck_call_s is not None

    def _slow(self, attempt: Attempt, now: float) -> bool:
        limit_s = self.policy.slow_call_s
        return limit_s is not None and attempt.work is Work.CALL and now - attempt.started_at >= limit_s

    def _change(self, state: BreakerState, at: float) -> None:
        self.state, self.proven = state, 0
        for attempt in self.attempts:
            attempt.judged = True
        if state is OPEN:
            self.open_until = at + self.policy.open_s
        if state is CLOSED:
            self.history.clear()

    def _count(self, now: float, failed: bool, slow: bool) -> None:
        self.history.append((now, failed, slow))
        row = 0
        for _, was_failed, _ in reversed(self.history):
            if not was_failed:
                break
            row += 1
        bucket_s = self.policy.window_s / 10
        recent = [entry for entry in self.history if int(entry[0] / bucket_s) > int(now / bucket_s) - 10]
        enough = len(recent) >= self.policy.min_calls
        failures, slows = sum(entry[1] for entry in recent), sum(entry[2] for entry in recent)
        in_a_row, ratio = self.policy.consecutive_failures, self.policy.failure_ratio
        if (
            (in_a_row is not None and row >= in_a_row)
            or (enough and ratio is not None and failures >= ratio * len(recent))
            or (enough and self.policy.slow_call_s and slows >= self.policy.slow_ratio * len(recent))
        ):
            self._change(OPEN, now)

    def enter(self, work: Work, now: float) -> Attempt | None:
        probing = sum(not attempt.judged for attempt in self.attempts)
        if self.state is OPEN or (self.state is HALF_OPEN and probing >= self.policy.probes):
            return None
        self.attempts.append(Attempt(now, work))
        return self.attempts[-1]

    def settle(self, attempt: Attempt, outcome: Outcome, now: float) -> None:
        if attempt.judged:
            return
        attempt.judged = True
        if self.state is CLOSED:
            if outcome is not Outcome.IGNORED:
                self._count(now, outcome is Outcome.FAILURE, self._slow(attempt, now))
        elif outcome is Outcome.FAILURE or (outcome is Outcome.SUCCESS and self._slow(attempt, now)):
            self._change(OPEN, now)
        elif outcome is Outcome.SUCCESS:
            self.proven += 1
            if self.proven >= self.policy.probe_successes:
                self._change(CLOSED, now)


class BreakerComparison(RuleBasedStateMachine):
    """Both are told the same; both must let the same through and stand at the same place."""

    @initialize(policy=policies)
    def make(self, policy: BreakerPolicy) -> None:
        self.now = 1000.0
        self.real = CircuitBreaker(policy, self.now)
        self.naive = Naive(policy)
        self.under_way: list[tuple[Permit, Attempt]] = []

    @rule(eighths=st.sampled_from([1, 2, 4, 8, 40, 200]))
    def time_passes(self, eighths: int) -> None:
        self.now += eighths / 8

    @rule(work=st.sampled_from(Work))
    def someone_asks(self, work: Work) -> None:
        self.naive.step(self.now)
        permit, attempt = self.real.enter(work, self.now), self.naive.enter(work, self.now)
        assert (permit is None) == (attempt is None)
        if permit is not None and attempt is not None:
            self.under_way.append((permit, attempt))

    @rule(which=st.integers(0, 20), outcome=st.sampled_from(Outcome))
    def an_attempt_ends(self, which: int, outcome: Outcome) -> None:
        if self.under_way:
            self.naive.step(self.now)
            permit, attempt = self.under_way.pop(which % len(self.under_way))
            self.real.settle(permit, outcome, self.now)
            self.naive.settle(attempt, outcome, self.now)

    @rule()
    def everything_fails(self) -> None:
        for _ in range(len(self.under_way)):
            self.an_attempt_ends(0, Outcome.FAILURE)

    @invariant()
    def both_stand_at_the_same_place(self) -> None:
        if hasattr(self, "real"):
            self.naive.step(self.now)
            assert self.real.status(self.now).state is self.naive.state

    @invariant()
    def nothing_is_refused_longer_than_a_lease_or_the_open_time(self) -> None:
        if hasattr(self, "real"):
            policy = self.naive.policy
            status = self.real.status(self.now)
            assert self.real.wait_s(self.now) <= policy.open_s
            assert status.probes <= policy.probes
            assert (status.share == 0.0) == (status.state is not CLOSED)


TestBreakerComparison = BreakerComparison.TestCase
TestBreakerComparison.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
