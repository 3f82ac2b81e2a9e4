"""The adaptive throttle's arithmetic, and what a retry hears of it."""

from random import Random

import pytest

from relay_service.core.budget import RetryGate
from relay_service.core.call import Call
from relay_service.core.events import AttemptDone, BackoffElapsed, Begin, Finish, WaitBackoff
from relay_service.core.evidence import Delivery, Safety
from relay_service.core.policy import RetryPolicy, ThrottlePolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.throttle import AdaptiveThrottle
from relay_service.core.verdict import Origin, Verdict

POLICY = ThrottlePolicy(k=2.0, window_s=10.0, min_calls=10, max_rejection=0.9)


class Always(Random):
    """Draws the same every time."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def random(self) -> float:
        return self._value


def throttle_after(accepted: int, refused: int, policy: ThrottlePolicy = POLICY) -> AdaptiveThrottle:
    throttle = AdaptiveThrottle(policy, 0.0)
    for _ in range(accepted):
        throttle.ended(Delivery.ANSWERED, Code.OK, 0.0)
    for _ in range(refused):
        throttle.ended(Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, 0.0)
    return throttle


@pytest.mark.parametrize(
    ("accepted", "refused", "rejection"),
    [
        (0, 0, 0.0),
        (0, 9, 0.0),
        (10, 10, 0.0),
        (5, 15, 10 / 21),
        (0, 10, 0.9),
        (1, 99, 0.9),
        (20, 80, 60 / 101),
    ],
)
def test_the_probability_is_that_of_the_formula_above_the_least_number_and_below_the_cap(
    accepted: int, refused: int, rejection: float
) -> None:
    throttle = throttle_after(accepted, refused)
    assert throttle.state(0.0).rejection == pytest.approx(rejection)
    assert throttle.refuses(0.0, Always(rejection - 1e-9)) is (rejection > 0)
    assert throttle.refuses(0.0, Always(0.95)) is False


@pytest.mark.parametrize(
    ("delivery", "code", "requests", "accepts"),
    [
        (Delivery.ANSWERED, Code.OK, 1, 1),
        (Delivery.ANSWERED, Code.INVALID_ARGUMENT, 1, 1),
        (Delivery.ANSWERED, Code.INTERNAL, 1, 1),
        (Delivery.ANSWERED, Code.UNAVAILABLE, 1, 0),
        (Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, 1, 0),
        (Delivery.UNANSWERED, Code.UNAVAILABLE, 0, 0),
        (Delivery.UNANSWERED, Code.CANCELLED, 0, 0),
        (Delivery.NOT_SENT, Code.UNAVAILABLE, 0, 0),
    ],
)
def test_only_an_answer_counts_and_two_codes_say_that_it_was_not_taken(
    delivery: Delivery, code: Code, requests: int, accepts: int
) -> None:
    throttle = AdaptiveThrottle(POLICY, 0.0)
    throttle.ended(delivery, code, 0.0)
    state = throttle.state(0.0)
    assert (state.requests, state.accepts) == (requests, accepts)


def test_what_it_refuses_counts_as_asked_and_everything_is_forgotten_after_the_window() -> None:
    throttle = throttle_after(5, 15)
    assert throttle.refuses(0.0, Always(0.0))
    state = throttle.state(0.0)
    assert (state.requests, state.accepts, state.refused) == (21, 5, 1)
    state = throttle.state(11.0)
    assert (state.requests, state.rejection, state.refused) == (0, 0.0, 1)


def test_pushback_grows_with_what_is_held_back_and_is_spread() -> None:
    throttle = throttle_after(0, 100)
    told = [throttle.pushback_s(0.0, Random(seed)) for seed in range(100)]
    assert 4.5 <= min(told) < 6
    assert 12 < max(told) <= 13.5
    assert throttle_after(5, 5).pushback_s(0.0, Random(1)) == 0.01


def call_with(throttle: AdaptiveThrottle, safety: Safety = Safety.IDEMPOTENT) -> Call:
    retry = RetryPolicy(max_attempts=4, retryable_codes=frozenset({Code.UNAVAILABLE}))
    return Call(
        retry,
        safety=safety,
        has_key=True,
        deadline=None,
        attempt_limit_s=None,
        gate=RetryGate(None, None, 0.0),
        rng=Always(0.5),
        throttle=throttle,
    )


def verdict_of(actions: object) -> Verdict:
    match actions:
        case (Finish(verdict),):
            return verdict
    raise AssertionError(actions)


def test_a_retry_that_is_held_back_ends_its_call_before_it_is_paid_for() -> None:
    call = call_with(throttle_after(0, 20))
    call.handle(Begin(), 0.0)
    verdict = verdict_of(call.handle(AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "busy"), 1.0))
    assert (verdict.code, verdict.reason, verdict.origin, verdict.attempts) == (
        Code.RESOURCE_EXHAUSTED,
        Reason.ADAPTIVE_THROTTLE,
        Origin.RELAY,
        1,
    )
    assert verdict.pushback_s is not None


def test_what_an_earlier_attempt_left_open_goes_before_it() -> None:
    throttle = throttle_after(11, 9)
    call = call_with(throttle, Safety.KEYED)
    call.handle(Begin(), 0.0)
    assert isinstance(
        call.handle(AttemptDone(Delivery.UNANSWERED, Code.UNAVAILABLE, "gone"), 0.0)[0], WaitBackoff
    )
    for _ in range(30):
        throttle.ended(Delivery.ANSWERED, Code.UNAVAILABLE, 0.5)
    call.handle(BackoffElapsed(), 1.0)
    verdict = verdict_of(call.handle(AttemptDone(Delivery.ANSWERED, Code.UNAVAILABLE, "busy", number=2), 1.0))
    assert (verdict.code, verdict.reason) == (Code.UNKNOWN, Reason.OUTCOME_UNKNOWN)
