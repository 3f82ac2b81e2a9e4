"""Backoff and budget, each held to its formula."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_service.core.backoff import Backoff
from relay_service.core.budget import RetryBudget, RetryGate, RetryThrottle
from relay_service.core.evidence import Delivery, Ending, Evidence, Judgement, Repeat, judge
from relay_service.core.jitter import Jitter
from relay_service.core.policy import RetryBudgetPolicy, RetryPolicy, RetryThrottling
from relay_service.core.status import Code

POLICY = RetryPolicy(initial_backoff_s=0.1, max_backoff_s=1.0, backoff_multiplier=2.0)


def delays(jitter: Jitter, count: int, seed: int = 1) -> list[float]:
    backoff = Backoff(RetryPolicy(initial_backoff_s=0.1, max_backoff_s=1.0, jitter=jitter))
    rng = Random(seed)
    return [backoff.next_s(rng) for _ in range(count)]


def test_without_jitter_the_delays_double_up_to_the_cap() -> None:
    assert delays(Jitter.NONE, 6) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(("jitter", "low", "mean"), [(Jitter.FULL, 0.0, 0.5), (Jitter.EQUAL, 0.5, 0.75)])
def test_jitter_spreads_as_its_name_says(jitter: Jitter, low: float, mean: float) -> None:
    capped = delays(jitter, 5000)[10:]
    assert low <= min(capped) < low + 0.02
    assert 0.98 < max(capped) <= 1.0
    assert sum(capped) / len(capped) == pytest.approx(mean, abs=0.02)


def test_decorrelated_jitter_stays_between_the_initial_backoff_and_thrice_the_last() -> None:
    drawn = delays(Jitter.DECORRELATED, 2000)
    for last, following in pairwise(drawn):
        assert 0.1 <= following <= min(1.0, 3 * last) + 1e-12


def test_backoff_survives_a_thousand_attempts() -> None:
    assert max(delays(Jitter.FULL, 2000)) <= 1.0


def test_pushback_resets_the_backoff() -> None:
    backoff = Backoff(RetryPolicy(initial_backoff_s=0.1, jitter=Jitter.NONE))
    rng = Random(1)
    first = [backoff.next_s(rng) for _ in range(3)]
    backoff.reset()
    assert [backoff.next_s(rng) for _ in range(3)] == first


@given(
    ratio=st.floats(0.0, 1.0),
    burst=st.floats(1.0, 20.0),
    floor=st.floats(0.0, 5.0),
    steps=st.lists(st.tuples(st.sampled_from(["first", "retry"]), st.floats(0.0, 0.5)), max_size=200),
)
def test_in_every_window_retries_stay_within_the_budget(
    ratio: float, burst: float, floor: float, steps: list[tuple[str, float]]
) -> None:
    budget = RetryBudget(RetryBudgetPolicy(ratio=ratio, burst=burst, floor_per_s=floor), 0.0)
    now, history = 0.0, []
    for kind, elapsed_s in steps:
        now += elapsed_s
        if kind == "first":
            budget.first_attempt()
            history.append((now, 1, 0))
        elif budget.withdraw(now):
            history.append((now, 0, 1))
    for start in range(len(history)):
        firsts = retries = 0
        for at, first, retry in history[start:]:
            firsts, retries = firsts + first, retries + retry
            allowed = ratio * firsts + floor * (at - history[start][0]) + burst
            # Time between the window's first event and the one before it may have earned tokens too,
            # but never above the burst.
            assert retries <= allowed + 1e-6


def test_a_budget_with_a_floor_recovers_with_time_alone() -> None:
    budget = RetryBudget(RetryBudgetPolicy(ratio=0.0, burst=1.0, floor_per_s=2.0), 0.0)
    assert budget.withdraw(0.0)
    assert not budget.withdraw(0.4)
    assert budget.withdraw(0.6)


def test_throttle_follows_grfc_a6() -> None:
    throttle = RetryThrottle(RetryThrottling(max_tokens=10, token_ratio=0.5))
    for _ in range(4):
        throttle.record(failed=True)
    assert throttle.open  # 6 of 10 left
    throttle.record(failed=True)
    assert not throttle.open  # 5 of 10: not above half
    throttle.record(failed=False)
    assert throttle.open


def test_the_gate_counts_what_it_granted_and_refused() -> None:
    gate = RetryGate(RetryBudgetPolicy(ratio=0.0, burst=1.0), None, 0.0)
    assert [gate.allow_retry(0.0) for _ in range(3)] == [True, False, False]
    assert (gate.state().granted, gate.state().refused) == (1, 2)


ANSWERED, UNANSWERED, NOT_SENT = Delivery.ANSWERED, Delivery.UNANSWERED, Delivery.NOT_SENT


@pytest.mark.parametrize(
    ("ending", "evidence", "repeat"),
    [
        (Ending(NOT_SENT, Code.UNAVAILABLE), Evidence.NOT_SENT, Repeat.ALWAYS),
        (Ending(NOT_SENT, Code.RESOURCE_EXHAUSTED), Evidence.NOT_SENT, Repeat.NEVER),
        (Ending(UNANSWERED, Code.UNAVAILABLE), Evidence.AMBIGUOUS, Repeat.IF_HARMLESS),
        (Ending(ANSWERED, Code.UNAVAILABLE), Evidence.REFUSED, Repeat.ALWAYS),
        (Ending(ANSWERED, Code.UNAVAILABLE, responded=True), Evidence.AMBIGUOUS, Repeat.IF_HARMLESS),
        (Ending(ANSWERED, Code.RESOURCE_EXHAUSTED), Evidence.AMBIGUOUS, Repeat.NEVER),
        (Ending(ANSWERED, Code.RESOURCE_EXHAUSTED, pushback_given=True), Evidence.REFUSED, Repeat.ALWAYS),
        (Ending(ANSWERED, Code.INTERNAL), Evidence.AMBIGUOUS, Repeat.IF_HARMLESS),
        (Ending(ANSWERED, Code.DEADLINE_EXCEEDED), Evidence.AMBIGUOUS, Repeat.IF_HARMLESS),
        (Ending(ANSWERED, Code.UNAUTHENTICATED), Evidence.DEFINITE, Repeat.NEVER),
        (Ending(ANSWERED, Code.NOT_FOUND, streaming=True), Evidence.AMBIGUOUS, Repeat.NEVER),
        (Ending(ANSWERED, Code.NOT_FOUND, responded=True), Evidence.AMBIGUOUS, Repeat.NEVER),
        (Ending(ANSWERED, Code.OK), Evidence.DEFINITE, Repeat.NEVER),
    ],
)
def test_an_ending_is_judged_by_what_it_proves_and_by_what_may_follow(
    ending: Ending, evidence: Evidence, repeat: Repeat
) -> None:
    assert judge(ending, frozenset({Code.UNAVAILABLE})) == Judgement(evidence, repeat)


def test_an_empty_list_of_retryable_codes_makes_unavailable_ambiguous() -> None:
    assert judge(Ending(ANSWERED, Code.UNAVAILABLE), frozenset()).evidence is Evidence.AMBIGUOUS
