"""The call machine with several attempts under way: when a hedge is made, who wins, what is known after."""

from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest

from relay_service.core.breaker import CircuitBreaker, Outcome, Work
from relay_service.core.budget import RetryGate
from relay_service.core.call import Call, State
from relay_service.core.events import (
    Actions,
    AttemptDone,
    BackoffElapsed,
    Begin,
    CancelAttempt,
    Cancelled,
    DeadlinePassed,
    Finish,
    HedgeDue,
    HedgeUnserved,
    StartAttempt,
    StartHedge,
    WaitBackoff,
    WaitHedge,
)
from relay_service.core.evidence import Delivery, Evidence, Safety
from relay_service.core.hedge import Hedging, HeldBack
from relay_service.core.hedged import Hedges
from relay_service.core.policy import (
    BreakerPolicy,
    HedgePolicy,
    RetryBudgetPolicy,
    RetryPolicy,
    RetryThrottling,
)
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Origin, Verdict

OK = AttemptDone(Delivery.ANSWERED, Code.OK, "")
BUSY = AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "busy")
INTERNAL = AttemptDone(Delivery.ANSWERED, Code.INTERNAL, "oops")
NOT_FOUND = AttemptDone(Delivery.ANSWERED, Code.NOT_FOUND, "none")
TOO_LARGE = AttemptDone(Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, "shed, or too large")
RESET = AttemptDone(Delivery.UNANSWERED, Code.UNAVAILABLE, "connection lost")
LOST = AttemptDone(Delivery.UNANSWERED, Code.CANCELLED, "given up")
UNSENT = AttemptDone(Delivery.NOT_SENT, Code.CANCELLED, "given up")

WAIT_S = 0.5
FIXED = HedgePolicy(quantile=None, min_delay_s=WAIT_S)


class Bench:
    """One call, its hedging, and what it asked for."""

    def __init__(
        self,
        policy: HedgePolicy = FIXED,
        *,
        safety: Safety = Safety.IDEMPOTENT,
        has_key: bool = False,
        deadline: float = 100.0,
        retry: RetryPolicy | None = None,
        budget: RetryBudgetPolicy | None = None,
        throttling: RetryThrottling | None = None,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.hedging = Hedging()
        self.gate = RetryGate(budget, throttling, 0.0)
        self.breaker = breaker
        self.call = Call(
            retry or RetryPolicy(max_attempts=4),
            safety=safety,
            has_key=has_key,
            deadline=deadline,
            attempt_limit_s=5.0,
            gate=self.gate,
            rng=Random(1),
            breaker=breaker,
            hedges=Hedges(self.hedging, "t.S/Unary", policy),
        )

    def hedged(self) -> "Bench":
        """The first attempt has taken too long, and a hedge is under way."""
        self.call.handle(Begin(), 0.0)
        actions = self.call.handle(HedgeDue(), WAIT_S)
        assert isinstance(actions[0], StartHedge), (actions, self.held_back)
        return self

    def end(self, done: AttemptDone, number: int, now: float = 1.0) -> Actions:
        return self.call.handle(replace(done, number=number), now)

    def verdict(self, ends: Iterable[tuple[int, AttemptDone]], now: float = 1.0) -> Verdict:
        """After these attempts have ended, those in the order of being given up."""
        actions: Actions = ()
        for number, done in ends:
            actions = self.end(done, number, now)
        assert isinstance(actions[0], Finish), actions
        return actions[0].verdict

    @property
    def held_back(self) -> dict[HeldBack, int]:
        return {why: count for why, count in self.hedging.state().held_back.items() if count}


# When -----------------------------------------------------------------------------------------------


def test_a_hedge_is_waited_for_from_the_start_of_the_first_attempt() -> None:
    bench = Bench()
    assert bench.call.handle(Begin(), 10.0) == (StartAttempt(1, 5.0), WaitHedge(10.0 + WAIT_S))
    assert bench.call.handle(HedgeDue(), 10.0 + WAIT_S) == (StartHedge(2, 5.0),)


def test_a_hedge_gets_what_is_left_of_the_deadline() -> None:
    bench = Bench(deadline=2.0)
    bench.call.handle(Begin(), 0.0)
    assert bench.call.handle(HedgeDue(), WAIT_S) == (StartHedge(2, 1.5),)


@pytest.mark.parametrize(
    ("safety", "has_key", "hedged"),
    [
        (Safety.NO_SIDE_EFFECTS, False, True),
        (Safety.IDEMPOTENT, False, True),
        (Safety.KEYED, True, True),
        (Safety.KEYED, False, False),
        (Safety.NONE, True, False),
        (Safety.NONE, False, False),
    ],
)
def test_only_a_call_that_may_be_executed_twice_is_hedged(
    safety: Safety, has_key: bool, hedged: bool
) -> None:
    bench = Bench(safety=safety, has_key=has_key)
    asked = bench.call.handle(Begin(), 0.0)
    assert any(isinstance(action, WaitHedge) for action in asked) is hedged
    assert bool(bench.call.handle(HedgeDue(), WAIT_S)) is hedged


def test_no_more_attempts_are_made_than_the_policy_allows() -> None:
    bench = Bench(HedgePolicy(max_attempts=3, quantile=None, min_delay_s=WAIT_S)).hedged()
    assert bench.call.handle(HedgeDue(), 2 * WAIT_S) == (StartHedge(3, 5.0),)
    assert bench.call.attempts == 3


def test_a_call_without_a_spare_worker_goes_on_without_a_hedge() -> None:
    bench = Bench()
    bench.call.handle(Begin(), 0.0)
    assert bench.call.handle(HedgeUnserved(), WAIT_S) == ()
    assert bench.held_back == {HeldBack.NO_WORKER: 1}
    assert bench.verdict([(1, OK)]).attempts == 1


def test_a_hedge_that_would_likely_miss_the_deadline_is_not_made() -> None:
    bench = Bench(deadline=2 * WAIT_S - 0.01)
    bench.call.handle(Begin(), 0.0)
    assert bench.call.handle(HedgeDue(), WAIT_S) == ()
    assert bench.held_back == {HeldBack.DEADLINE: 1}


@pytest.mark.parametrize("state", ["open", "half-open", "ramping"])
def test_a_breaker_that_is_not_closed_and_calm_allows_no_hedge(state: str) -> None:
    breaker = CircuitBreaker(
        BreakerPolicy(consecutive_failures=1, open_s=1.0, probe_successes=1, ramp_s=10.0), 0.0
    )
    bench = Bench(breaker=breaker)
    bench.call.handle(Begin(), 0.0)
    breaker.settle(breaker.enter(Work.CALL, 0.0), Outcome.FAILURE, 0.0)
    now = WAIT_S
    if state != "open":
        now = 1.5
        probe = breaker.enter(Work.CALL, now)
        if state == "ramping":
            breaker.settle(probe, Outcome.SUCCESS, now)
    assert bench.call.handle(HedgeDue(), now) == ()
    assert bench.held_back == {HeldBack.BREAKER: 1}


def test_hedges_leave_half_of_the_budget_to_retries() -> None:
    gate = RetryGate(RetryBudgetPolicy(ratio=0.0, burst=10.0), None, 0.0)
    assert [gate.allow_hedge(0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [gate.allow_retry(0.0) for _ in range(7)] == [True] * 5 + [False] * 2


def test_no_hedge_is_made_once_the_budget_is_low() -> None:
    bench = Bench(budget=RetryBudgetPolicy(ratio=0.0, burst=2.0))
    assert bench.gate.allow_retry(0.0)
    bench.call.handle(Begin(), 0.0)
    assert bench.call.handle(HedgeDue(), WAIT_S) == ()
    assert bench.held_back == {HeldBack.BUDGET: 1}


def test_throttling_stops_hedges_too() -> None:
    bench = Bench(throttling=RetryThrottling(max_tokens=2, token_ratio=0.1))
    bench.gate.record(failed=True)
    bench.call.handle(Begin(), 0.0)
    assert bench.call.handle(HedgeDue(), WAIT_S) == ()


@pytest.mark.parametrize("pushback_s", [3.0, -1.0])
def test_pushback_stops_further_hedges(pushback_s: float) -> None:
    bench = Bench(HedgePolicy(max_attempts=3, quantile=None, min_delay_s=WAIT_S)).hedged()
    assert bench.end(replace(BUSY, pushback_s=pushback_s), 2) == ()
    assert bench.call.handle(HedgeDue(), 2 * WAIT_S) == ()
    assert bench.held_back == {HeldBack.PUSHBACK: 1}


def test_a_failure_beside_another_attempt_brings_the_next_hedge_forward() -> None:
    bench = Bench(HedgePolicy(max_attempts=3, quantile=None, min_delay_s=WAIT_S)).hedged()
    assert bench.end(RESET, 1, 0.6) == (WaitHedge(0.6),)
    assert bench.call.handle(HedgeDue(), 0.6) == (StartHedge(3, 5.0),)


# Who wins -------------------------------------------------------------------------------------------


def test_the_winner_is_told_after_the_loser_was_given_up() -> None:
    bench = Bench().hedged()
    assert bench.end(OK, 2) == (CancelAttempt(1, Code.CANCELLED),)
    assert bench.call.state is State.SETTLING
    verdict = bench.verdict([(1, LOST)])
    assert (verdict.code, verdict.decision, verdict.attempts, verdict.outcome) == (
        Code.OK,
        "HEDGED",
        2,
        "executed",
    )
    state = bench.hedging.state()
    assert (state.started, state.won, state.cancelled) == (1, 1, 0)


def test_a_first_attempt_that_wins_was_only_forwarded() -> None:
    bench = Bench().hedged()
    assert bench.end(OK, 1) == (CancelAttempt(2, Code.CANCELLED),)
    verdict = bench.verdict([(2, LOST)])
    assert (verdict.decision, verdict.attempts, verdict.hedges, verdict.retries) == ("FORWARDED", 2, 1, 0)
    state = bench.hedging.state()
    assert (state.started, state.won, state.cancelled) == (1, 0, 1)


def test_a_definite_error_ends_the_call_like_a_success() -> None:
    bench = Bench(safety=Safety.KEYED, has_key=True).hedged()
    assert bench.end(NOT_FOUND, 1) == (CancelAttempt(2, Code.CANCELLED),)
    verdict = bench.verdict([(2, LOST)])
    assert (verdict.code, verdict.origin, verdict.outcome) == (
        Code.NOT_FOUND,
        Origin.UPSTREAM,
        "not-executed",
    )


@pytest.mark.parametrize("failure", [BUSY, RESET, INTERNAL, TOO_LARGE])
@pytest.mark.parametrize(("fails", "answers"), [(1, 2), (2, 1)])
def test_a_failure_waits_for_the_other_attempt(failure: AttemptDone, fails: int, answers: int) -> None:
    bench = Bench().hedged()
    assert bench.end(failure, fails) == ()
    verdict = bench.verdict([(answers, OK)])
    assert (verdict.code, verdict.attempts) == (Code.OK, 2)


def test_when_all_attempts_under_way_have_failed_the_rules_for_retries_apply() -> None:
    bench = Bench().hedged()
    bench.end(RESET, 1)
    (wait,) = bench.end(BUSY, 2)
    assert isinstance(wait, WaitBackoff)
    assert bench.call.state is State.BACKING_OFF
    assert bench.call.handle(HedgeDue(), wait.until) == (), "a retry and a hedge never both pend"
    assert bench.call.handle(BackoffElapsed(), wait.until) == (StartAttempt(3, 5.0),)
    verdict = bench.verdict([(3, OK)])
    assert (verdict.decision, verdict.hedges, verdict.retries) == ("RETRIED", 1, 1)


def test_a_retry_heeds_what_another_attempt_was_told() -> None:
    bench = Bench().hedged()
    bench.end(replace(BUSY, pushback_s=7.0), 2, 1.0)
    assert bench.end(RESET, 1, 2.0) == (WaitBackoff(8.0),)
    bench = Bench().hedged()
    bench.end(replace(BUSY, pushback_s=-1.0), 2, 1.0)
    assert bench.verdict([(1, RESET)]).reason is Reason.RETRIES_EXHAUSTED


def test_grpcs_fatal_codes_end_the_call_and_its_non_fatal_ones_do_not() -> None:
    policy = replace(FIXED, non_fatal_codes=frozenset({Code.UNAVAILABLE}))
    bench = Bench(policy).hedged()
    assert bench.end(BUSY, 2) == ()
    bench = Bench(policy).hedged()
    assert bench.end(INTERNAL, 2) == (CancelAttempt(1, Code.CANCELLED),)
    verdict = bench.verdict([(1, LOST)])
    assert (verdict.code, verdict.origin) == (Code.INTERNAL, Origin.UPSTREAM)


# What is known after --------------------------------------------------------------------------------


def test_evidence_is_the_worst_of_all_attempts_and_an_answer_from_a_keyed_method_settles_it() -> None:
    keyed = Bench(safety=Safety.KEYED, has_key=True).hedged()
    keyed.end(NOT_FOUND, 2)
    assert keyed.verdict([(1, LOST)]).evidence is Evidence.DEFINITE
    other = Bench(safety=Safety.IDEMPOTENT).hedged()
    other.end(NOT_FOUND, 2)
    assert other.verdict([(1, LOST)]).evidence is Evidence.AMBIGUOUS
    unsent = Bench(safety=Safety.IDEMPOTENT).hedged()
    unsent.end(NOT_FOUND, 2)
    assert unsent.verdict([(1, UNSENT)]).evidence is Evidence.DEFINITE


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_refusal_does_not_unsay_an_ambiguous_attempt_beside_it(order: tuple[int, int]) -> None:
    bench = Bench(safety=Safety.KEYED, has_key=True, retry=RetryPolicy(max_attempts=1)).hedged()
    verdict = bench.verdict(zip(order, (RESET, BUSY), strict=True))
    assert (verdict.code, verdict.reason, verdict.outcome) == (
        Code.UNKNOWN,
        Reason.OUTCOME_UNKNOWN,
        "unknown",
    )


@pytest.mark.parametrize("gives_up", [DeadlinePassed(), Cancelled()])
def test_a_call_that_stops_gives_all_its_attempts_up_first(gives_up: DeadlinePassed | Cancelled) -> None:
    bench = Bench().hedged()
    code = Code.CANCELLED if isinstance(gives_up, Cancelled) else Code.DEADLINE_EXCEEDED
    assert bench.call.handle(gives_up, 50.0) == (CancelAttempt(1, code), CancelAttempt(2, code))
    assert bench.end(replace(LOST, code=code), 1, 50.0) == ()
    assert bench.verdict([(2, replace(LOST, code=code))], 50.0).code is code
    assert bench.hedging.state().cancelled == 1


def test_a_loser_is_no_failure_to_breaker_and_throttling() -> None:
    breaker = CircuitBreaker(BreakerPolicy(consecutive_failures=1, failure_ratio=None), 0.0)
    bench = Bench(breaker=breaker, throttling=RetryThrottling(max_tokens=2, token_ratio=0.1)).hedged()
    bench.end(OK, 2)
    bench.verdict([(1, LOST)])
    status = breaker.status(1.0)
    assert (status.calls, status.failures) == (1, 0)
    assert bench.gate.allow_retry(1.0)


def test_nothing_said_twice_or_of_an_attempt_that_was_not_made_changes_anything() -> None:
    bench = Bench().hedged()
    assert bench.end(OK, 3) == ()
    bench.end(RESET, 2)
    assert bench.end(OK, 2) == ()
    assert bench.verdict([(1, OK)]).attempts == 2
