"""The call machine: what is tried again, when, and what the caller is told."""

from dataclasses import replace
from random import Random

import pytest

from relay_service.core.budget import RetryGate
from relay_service.core.call import Call, State
from relay_service.core.events import (
    Aborted,
    AttemptDone,
    BackoffElapsed,
    Begin,
    CancelAttempt,
    Cancelled,
    DeadlinePassed,
    Finish,
    RetryRefused,
    StartAttempt,
    WaitBackoff,
)
from relay_service.core.evidence import Delivery, Evidence, Safety
from relay_service.core.policy import RetryBudgetPolicy, RetryPolicy, RetryThrottling
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict

OK = AttemptDone(Delivery.ANSWERED, Code.OK, "")
UNAVAILABLE = AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "no")
INTERNAL = AttemptDone(Delivery.ANSWERED, Code.INTERNAL, "oops")
NOT_FOUND = AttemptDone(Delivery.ANSWERED, Code.NOT_FOUND, "none")
RESET = AttemptDone(Delivery.UNANSWERED, Code.UNAVAILABLE, "connection lost")
REFUSED_CONNECT = AttemptDone(Delivery.NOT_SENT, Code.UNAVAILABLE, "connection refused")


def make_call(
    *,
    safety: Safety = Safety.NONE,
    has_key: bool = False,
    deadline: float | None = 100.0,
    max_attempts: int = 4,
    attempt_limit_s: float | None = 5.0,
    budget: RetryBudgetPolicy | None = None,
    throttling: RetryThrottling | None = None,
    gate: RetryGate | None = None,
) -> Call:
    return Call(
        RetryPolicy(max_attempts=max_attempts),
        safety=safety,
        has_key=has_key,
        deadline=deadline,
        attempt_limit_s=attempt_limit_s,
        gate=gate or RetryGate(budget, throttling, 0.0),
        rng=Random(1),
    )


def run(call: Call, *ends: AttemptDone, now: float = 0.0) -> Verdict:
    """Feed attempt ends one after the other, waiting out each backoff, up to the verdict."""
    actions = call.handle(Begin(), now)
    for end in ends:
        assert isinstance(actions[0], StartAttempt), actions
        actions = call.handle(replace(end, number=actions[0].number), now)
        if isinstance(actions[0], WaitBackoff):
            now = actions[0].until
            actions = call.handle(BackoffElapsed(), now)
    assert isinstance(actions[0], Finish), actions
    return actions[0].verdict


def test_a_success_is_passed_on() -> None:
    verdict = run(make_call(), OK)
    assert verdict == Verdict(Code.OK, "", Origin.UPSTREAM, Fate.OK, None, Evidence.DEFINITE, 1)
    assert verdict.outcome == "executed"


@pytest.mark.parametrize("end", [UNAVAILABLE, REFUSED_CONNECT])
@pytest.mark.parametrize("safety", list(Safety))
def test_what_was_provably_not_executed_is_retried_for_every_method(end: AttemptDone, safety: Safety) -> None:
    verdict = run(make_call(safety=safety), end, end, OK)
    assert (verdict.code, verdict.attempts) == (Code.OK, 3)


@pytest.mark.parametrize("end", [RESET, INTERNAL])
@pytest.mark.parametrize(
    ("safety", "has_key"),
    [(Safety.NO_SIDE_EFFECTS, False), (Safety.IDEMPOTENT, False), (Safety.KEYED, True)],
)
def test_an_ambiguous_attempt_is_retried_where_a_repeat_is_safe(
    end: AttemptDone, safety: Safety, has_key: bool
) -> None:
    verdict = run(make_call(safety=safety, has_key=has_key), end, OK)
    assert (verdict.code, verdict.attempts) == (Code.OK, 2)


@pytest.mark.parametrize(
    ("safety", "has_key"), [(Safety.NONE, False), (Safety.NONE, True), (Safety.KEYED, False)]
)
def test_an_unanswered_attempt_is_never_repeated_where_that_is_not_safe(
    safety: Safety, has_key: bool
) -> None:
    verdict = run(make_call(safety=safety, has_key=has_key), RESET)
    assert (verdict.code, verdict.reason, verdict.attempts) == (Code.UNKNOWN, Reason.OUTCOME_UNKNOWN, 1)
    assert verdict.origin is Origin.RELAY
    assert verdict.outcome == "unknown"


def test_an_upstreams_own_ambiguous_status_is_passed_on_unchanged() -> None:
    verdict = run(make_call(), INTERNAL)
    assert (verdict.code, verdict.message, verdict.origin) == (Code.INTERNAL, "oops", Origin.UPSTREAM)
    assert verdict.outcome == "unknown"


@pytest.mark.parametrize("later", [UNAVAILABLE, REFUSED_CONNECT])
def test_a_later_refusal_does_not_unsay_an_ambiguous_attempt(later: AttemptDone) -> None:
    call = make_call(safety=Safety.KEYED, has_key=True, max_attempts=2)
    verdict = run(call, RESET, later)
    assert (verdict.code, verdict.reason) == (Code.UNKNOWN, Reason.OUTCOME_UNKNOWN)


def test_a_definite_answer_settles_an_ambiguous_attempt_of_a_keyed_method() -> None:
    verdict = run(make_call(safety=Safety.KEYED, has_key=True), RESET, NOT_FOUND)
    assert (verdict.code, verdict.origin, verdict.outcome) == (
        Code.NOT_FOUND,
        Origin.UPSTREAM,
        "not-executed",
    )


def test_a_method_safe_by_itself_is_told_the_last_status_rather_than_unknown() -> None:
    verdict = run(make_call(safety=Safety.IDEMPOTENT, max_attempts=2), RESET, UNAVAILABLE)
    assert (verdict.code, verdict.reason) == (Code.UNAVAILABLE, Reason.RETRIES_EXHAUSTED)


def test_a_definite_error_is_not_retried() -> None:
    verdict = run(make_call(safety=Safety.IDEMPOTENT), NOT_FOUND)
    assert (verdict.code, verdict.reason, verdict.attempts) == (Code.NOT_FOUND, None, 1)


def test_attempts_end_with_the_last_status_and_the_reason() -> None:
    verdict = run(make_call(), *[UNAVAILABLE] * 4)
    assert (verdict.code, verdict.reason, verdict.attempts) == (Code.UNAVAILABLE, Reason.RETRIES_EXHAUSTED, 4)
    assert verdict.origin is Origin.UPSTREAM


def test_more_attempts_than_grpcs_five_can_be_asked_for() -> None:
    assert run(make_call(max_attempts=9), *[UNAVAILABLE] * 8, OK).attempts == 9


@pytest.mark.parametrize("end", [Cancelled(), DeadlinePassed(), RetryRefused(), Aborted(Reason.DRAINING)])
def test_a_retry_that_is_not_made_is_given_back_to_the_budget(end: object) -> None:
    gate = RetryGate(RetryBudgetPolicy(ratio=0.0, burst=1.0), None, 0.0)
    call = make_call(gate=gate)
    call.handle(Begin(), 0.0)
    call.handle(UNAVAILABLE, 0.0)
    assert (gate.state().tokens, gate.state().granted) == (0.0, 1)
    call.handle(end, 0.0)  # type: ignore[arg-type]
    assert call.state is State.DONE
    assert (gate.state().tokens, gate.state().granted) == (1.0, 0)


@pytest.mark.parametrize("end", [OK, UNAVAILABLE, NOT_FOUND])
def test_a_retry_that_was_made_is_paid_for_whatever_comes_of_it(end: AttemptDone) -> None:
    gate = RetryGate(RetryBudgetPolicy(ratio=0.0, burst=1.0), None, 0.0)
    run(make_call(gate=gate), UNAVAILABLE, replace(end, number=2))
    assert (gate.state().tokens, gate.state().granted) == (0.0, 1)


def test_an_empty_budget_ends_the_call_with_the_last_status() -> None:
    call = make_call(budget=RetryBudgetPolicy(ratio=0.0, burst=1.0))
    verdict = run(call, UNAVAILABLE, UNAVAILABLE)
    assert (verdict.code, verdict.reason, verdict.attempts) == (Code.UNAVAILABLE, Reason.BUDGET_EXHAUSTED, 2)


def test_throttling_stops_retries_once_half_of_the_tokens_are_gone() -> None:
    call = make_call(max_attempts=10, throttling=RetryThrottling(max_tokens=4, token_ratio=0.1))
    verdict = run(call, UNAVAILABLE, UNAVAILABLE)
    assert (verdict.reason, verdict.attempts) == (Reason.BUDGET_EXHAUSTED, 2)


def test_resource_exhausted_is_retried_only_when_told_when() -> None:
    silent = AttemptDone(Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, "too big")
    assert run(make_call(), silent).attempts == 1
    told = AttemptDone(Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, "busy", pushback_s=0.5)
    assert run(make_call(), told, OK).attempts == 2


def test_pushback_replaces_the_backoff() -> None:
    call = make_call()
    call.handle(Begin(), 10.0)
    told = AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "", pushback_s=2.5)
    assert call.handle(told, 10.0) == (WaitBackoff(12.5),)


def test_negative_pushback_ends_the_call() -> None:
    told = AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "", pushback_s=-1.0)
    assert run(make_call(), told).reason is Reason.RETRIES_EXHAUSTED


def test_no_retry_is_made_that_could_not_start_before_the_deadline() -> None:
    told = AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "", pushback_s=30.0)
    verdict = run(make_call(deadline=20.0), told)
    assert (verdict.attempts, verdict.reason) == (1, Reason.RETRIES_EXHAUSTED)


def test_what_cannot_be_replayed_is_not_retried() -> None:
    end = AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "", replayable=False)
    assert run(make_call(), end).attempts == 1


def test_an_attempt_gets_its_limit_or_what_is_left_of_the_deadline() -> None:
    assert make_call(deadline=100.0).handle(Begin(), 0.0) == (StartAttempt(1, 5.0),)
    assert make_call(deadline=100.0).handle(Begin(), 98.0) == (StartAttempt(1, 2.0),)
    assert make_call(deadline=None, attempt_limit_s=None).handle(Begin(), 0.0) == (StartAttempt(1, None),)


def test_the_deadline_gives_the_attempt_up_before_the_verdict() -> None:
    call = make_call()
    call.handle(Begin(), 0.0)
    assert call.handle(DeadlinePassed(), 100.0) == (CancelAttempt(1, Code.DEADLINE_EXCEEDED),)
    (finish,) = call.handle(AttemptDone(Delivery.UNANSWERED, Code.CANCELLED, ""), 100.0)
    assert isinstance(finish, Finish)
    assert (finish.verdict.code, finish.verdict.reason) == (Code.DEADLINE_EXCEEDED, Reason.OUTCOME_UNKNOWN)


def test_a_deadline_before_anything_was_sent_says_that_nothing_was_executed() -> None:
    call = make_call()
    call.handle(Begin(), 0.0)
    call.handle(DeadlinePassed(), 100.0)
    (finish,) = call.handle(AttemptDone(Delivery.NOT_SENT, Code.CANCELLED, ""), 100.0)
    assert isinstance(finish, Finish)
    assert (finish.verdict.reason, finish.verdict.outcome) == (Reason.DEADLINE_PASSED, "not-executed")


def test_a_deadline_in_the_queue_is_a_refusal() -> None:
    (finish,) = make_call().handle(DeadlinePassed(), 100.0)
    assert isinstance(finish, Finish)
    assert (finish.verdict.code, finish.verdict.fate) == (Code.DEADLINE_EXCEEDED, Fate.REFUSED)


@pytest.mark.parametrize("state", [State.READY, State.BACKING_OFF])
def test_a_caller_that_leaves_ends_the_call_wherever_it_stands(state: State) -> None:
    call = make_call()
    if state is State.BACKING_OFF:
        call.handle(Begin(), 0.0)
        call.handle(UNAVAILABLE, 0.0)
    assert call.state is state
    (finish,) = call.handle(Cancelled(), 1.0)
    assert isinstance(finish, Finish)
    assert finish.verdict.fate is Fate.CANCELLED


def test_a_full_queue_at_the_retry_ends_with_the_last_status() -> None:
    call = make_call()
    call.handle(Begin(), 0.0)
    call.handle(UNAVAILABLE, 0.0)
    (finish,) = call.handle(RetryRefused(), 1.0)
    assert isinstance(finish, Finish)
    assert (finish.verdict.code, finish.verdict.reason) == (Code.UNAVAILABLE, Reason.RETRIES_EXHAUSTED)


def test_an_abort_carries_its_reason_and_pushback() -> None:
    (finish,) = make_call().handle(Aborted(Reason.QUEUE_FULL, 0.25), 1.0)
    assert isinstance(finish, Finish)
    assert (finish.verdict.code, finish.verdict.pushback_s) == (Code.RESOURCE_EXHAUSTED, 0.25)
    assert finish.verdict.fate is Fate.REFUSED


def test_nothing_happens_after_the_end() -> None:
    call = make_call()
    run(call, OK)
    for event in (OK, Begin(), BackoffElapsed(), DeadlinePassed(), Cancelled(), RetryRefused()):
        assert call.handle(event, 1.0) == ()


@pytest.mark.parametrize("code", [Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED])
def test_a_gateways_refusal_does_not_settle_an_ambiguous_attempt(code: Code) -> None:
    refusal = AttemptDone(Delivery.ANSWERED, code, "not you")
    verdict = run(make_call(safety=Safety.KEYED, has_key=True), RESET, refusal)
    assert (verdict.code, verdict.reason, verdict.outcome) == (
        Code.UNKNOWN,
        Reason.OUTCOME_UNKNOWN,
        "unknown",
    )


def test_an_answer_too_large_to_send_is_not_called_unexecuted_nor_asked_for_again() -> None:
    too_large = AttemptDone(Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, "too large")
    verdict = run(make_call(safety=Safety.IDEMPOTENT), too_large)
    assert (verdict.code, verdict.attempts, verdict.outcome) == (Code.RESOURCE_EXHAUSTED, 1, "unknown")


def test_a_failure_after_a_response_is_not_repeated_where_that_is_not_safe() -> None:
    end = AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "late", responded=True)
    verdict = run(make_call(), end)
    assert (verdict.code, verdict.attempts, verdict.outcome) == (Code.UNAVAILABLE, 1, "unknown")


def test_what_could_not_be_sent_for_its_size_is_not_tried_again() -> None:
    unsendable = AttemptDone(Delivery.NOT_SENT, Code.RESOURCE_EXHAUSTED, "headers too large")
    verdict = run(make_call(), unsendable)
    assert (verdict.attempts, verdict.reason, verdict.outcome) == (
        1,
        Reason.MESSAGE_TOO_LARGE,
        "not-executed",
    )


def test_no_attempt_begins_after_the_deadline() -> None:
    (finish,) = make_call(deadline=100.0).handle(Begin(), 100.0)
    assert isinstance(finish, Finish)
    assert (finish.verdict.attempts, finish.verdict.outcome) == (0, "not-executed")
    assert finish.verdict.reason is Reason.DEADLINE_PASSED


def test_a_caller_that_leaves_is_no_failure_of_the_upstream() -> None:
    gate = RetryGate(None, RetryThrottling(max_tokens=2, token_ratio=0.1), 0.0)
    for _ in range(5):
        call = Call(
            RetryPolicy(),
            safety=Safety.NONE,
            has_key=False,
            deadline=None,
            attempt_limit_s=None,
            gate=gate,
            rng=Random(1),
        )
        call.handle(Begin(), 0.0)
        call.handle(Cancelled(), 0.0)
        call.handle(AttemptDone(Delivery.UNANSWERED, Code.CANCELLED, ""), 0.0)
    assert gate.allow_retry(0.0)
