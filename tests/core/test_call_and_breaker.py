"""What a call asks of the breaker before each attempt, and what it tells it after."""

from random import Random

import pytest

from relay_service.core.breaker import BreakerState, CircuitBreaker, Outcome, Work
from relay_service.core.budget import RetryGate
from relay_service.core.call import DEADLINE_RACE_S, Call
from relay_service.core.events import (
    Aborted,
    Actions,
    AnswerBegan,
    AttemptDone,
    BackoffElapsed,
    Begin,
    Cancelled,
    DeadlinePassed,
    Event,
    Finish,
    StartAttempt,
    WaitBackoff,
)
from relay_service.core.evidence import Delivery, Evidence, Safety
from relay_service.core.policy import BreakerPolicy, RetryBudgetPolicy, RetryPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict

OK = AttemptDone(Delivery.ANSWERED, Code.OK, "")
UNAVAILABLE = AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "no")
RESET = AttemptDone(Delivery.UNANSWERED, Code.UNAVAILABLE, "connection lost")
TIMED_OUT = AttemptDone(Delivery.UNANSWERED, Code.UNAVAILABLE, "the attempt took too long")
GIVEN_UP = AttemptDone(Delivery.UNANSWERED, Code.CANCELLED, "given up")


def make(limit: int = 1, open_s: float = 60.0) -> CircuitBreaker:
    return CircuitBreaker(BreakerPolicy(consecutive_failures=limit, open_s=open_s, ramp_s=None), 0.0)


def make_call(
    breaker: CircuitBreaker,
    safety: Safety = Safety.NONE,
    gate: RetryGate | None = None,
    *,
    streaming: bool = False,
) -> Call:
    return Call(
        RetryPolicy(max_attempts=4, initial_backoff_s=1.0),
        safety=safety,
        has_key=False,
        deadline=100.0,
        attempt_limit_s=5.0,
        gate=gate or RetryGate(None, None, 0.0),
        rng=Random(1),
        breaker=breaker,
        streaming=streaming,
    )


def verdict_in(actions: Actions) -> Verdict:
    assert isinstance(actions[0], Finish), actions
    return actions[0].verdict


def test_an_open_breaker_refuses_the_first_attempt_and_says_when_to_return() -> None:
    breaker = make()
    breaker.settle(breaker.enter(Work.CALL, 0.0), Outcome.FAILURE, 0.0)
    verdict = verdict_in(make_call(breaker).handle(Begin(), 0.0))
    assert (verdict.code, verdict.reason, verdict.fate) == (
        Code.UNAVAILABLE,
        Reason.BREAKER_OPEN,
        Fate.REFUSED,
    )
    assert (verdict.origin, verdict.evidence, verdict.attempts) == (Origin.RELAY, None, 0)
    assert verdict.outcome == "not-executed"
    assert verdict.pushback_s is not None
    assert 60 <= verdict.pushback_s <= 96


def test_a_call_that_was_refused_earns_no_retries_for_others() -> None:
    breaker = make()
    breaker.settle(breaker.enter(Work.CALL, 0.0), Outcome.FAILURE, 0.0)
    gate = RetryGate(RetryBudgetPolicy(ratio=1.0, burst=5.0), None, 0.0)
    for _ in range(5):
        assert gate.allow_retry(0.0)
    for _ in range(5):
        make_call(breaker, gate=gate).handle(Begin(), 0.0)
    assert gate.state().tokens == 0.0


def test_a_retry_that_would_find_it_open_ends_the_call_at_once_and_costs_no_budget() -> None:
    gate = RetryGate(RetryBudgetPolicy(), None, 0.0)
    call = make_call(make(), gate=gate)
    call.handle(Begin(), 0.0)
    verdict = verdict_in(call.handle(UNAVAILABLE, 1.0))
    assert (verdict.code, verdict.reason, verdict.fate) == (Code.UNAVAILABLE, Reason.BREAKER_OPEN, Fate.ERROR)
    assert (verdict.evidence, verdict.outcome, verdict.attempts) == (Evidence.REFUSED, "not-executed", 1)
    assert gate.state().granted == 0


def test_a_retry_meets_a_breaker_that_others_opened_while_it_waited() -> None:
    breaker = make(limit=2)
    call = make_call(breaker)
    call.handle(Begin(), 0.0)
    (wait,) = call.handle(UNAVAILABLE, 0.0)
    assert isinstance(wait, WaitBackoff)
    breaker.settle(breaker.enter(Work.CALL, 0.0), Outcome.FAILURE, 0.0)
    verdict = verdict_in(call.handle(BackoffElapsed(), wait.until))
    assert (verdict.reason, verdict.fate, verdict.attempts) == (Reason.BREAKER_OPEN, Fate.ERROR, 1)


@pytest.mark.parametrize(
    ("safety", "code", "reason"),
    [
        (Safety.IDEMPOTENT, Code.UNAVAILABLE, Reason.BREAKER_OPEN),
        (Safety.NONE, Code.UNKNOWN, Reason.OUTCOME_UNKNOWN),
    ],
)
def test_what_an_attempt_left_open_stays_unknown(safety: Safety, code: Code, reason: Reason) -> None:
    call = make_call(make(), safety=safety)
    call.handle(Begin(), 0.0)
    verdict = verdict_in(call.handle(RESET, 1.0))
    assert (verdict.code, verdict.reason, verdict.outcome) == (code, reason, "unknown")


def test_an_unknown_outcome_of_a_keyed_call_wins_over_the_open_breaker() -> None:
    call = Call(
        RetryPolicy(),
        safety=Safety.KEYED,
        has_key=True,
        deadline=100.0,
        attempt_limit_s=5.0,
        gate=RetryGate(None, None, 0.0),
        rng=Random(1),
        breaker=make(),
    )
    call.handle(Begin(), 0.0)
    verdict = verdict_in(call.handle(RESET, 1.0))
    assert (verdict.code, verdict.reason) == (Code.UNKNOWN, Reason.OUTCOME_UNKNOWN)


@pytest.mark.parametrize(
    ("end", "failures"),
    [
        (OK, 0),
        (AttemptDone(Delivery.ANSWERED, Code.NOT_FOUND, ""), 0),
        (AttemptDone(Delivery.ANSWERED, Code.INVALID_ARGUMENT, ""), 0),
        (AttemptDone(Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, "", pushback_s=1.0), 0),
        (AttemptDone(Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, ""), 0),
        (UNAVAILABLE, 1),
        (AttemptDone(Delivery.ANSWERED, Code.INTERNAL, ""), 1),
        (AttemptDone(Delivery.NOT_SENT, Code.UNAVAILABLE, "connection refused"), 1),
        (RESET, 1),
        (TIMED_OUT, 1),
    ],
)
def test_what_counts_is_whether_the_upstream_did_its_part(end: AttemptDone, failures: int) -> None:
    breaker = make(limit=10)
    call = make_call(breaker)
    call.handle(Begin(), 0.0)
    call.handle(end, 1.0)
    status = breaker.status(1.0)
    assert (status.calls, status.failures) == (1, failures)


def test_a_definite_error_of_a_stream_is_no_failure_though_its_outcome_is_unknown() -> None:
    breaker = make(limit=10)
    stream = make_call(breaker, streaming=True)
    stream.handle(Begin(), 0.0)
    stream.handle(AttemptDone(Delivery.ANSWERED, Code.FAILED_PRECONDITION, ""), 1.0)
    assert (breaker.status(1.0).calls, breaker.status(1.0).failures) == (1, 0)


def test_a_request_too_large_to_be_sent_says_nothing_of_the_upstream() -> None:
    breaker = make(limit=10)
    call = make_call(breaker)
    call.handle(Begin(), 0.0)
    call.handle(AttemptDone(Delivery.NOT_SENT, Code.RESOURCE_EXHAUSTED, ""), 1.0)
    assert breaker.status(1.0).calls == 0


@pytest.mark.parametrize(
    ("why", "at", "counted"),
    [
        (Cancelled(), 50.0, 0),
        (Cancelled(), 100.0 - DEADLINE_RACE_S, 1),
        (DeadlinePassed(), 100.0, 1),
        (Aborted(Reason.MESSAGE_TOO_LARGE), 50.0, 0),
    ],
    ids=["the caller left", "the caller left at its deadline", "deadline", "given up by the relay"],
)
def test_an_attempt_given_up_counts_only_when_its_time_was_up(why: Event, at: float, counted: int) -> None:
    breaker = make(limit=10)
    call = make_call(breaker)
    call.handle(Begin(), 0.0)
    call.handle(why, at)
    assert isinstance(call.handle(GIVEN_UP, at)[0], Finish)
    status = breaker.status(at)
    assert (status.calls, status.failures) == (counted, counted)


def test_a_stream_that_is_answered_closes_the_breaker_while_it_goes_on() -> None:
    breaker = CircuitBreaker(BreakerPolicy(consecutive_failures=1, probe_successes=1), 0.0)
    breaker.settle(breaker.enter(Work.STREAM, 0.0), Outcome.FAILURE, 0.0)
    stream = make_call(breaker, streaming=True)
    assert isinstance(stream.handle(Begin(), 2.0)[0], StartAttempt)
    assert stream.handle(AnswerBegan(), 3.0) == ()
    assert breaker.status(3.0).state is BreakerState.CLOSED
