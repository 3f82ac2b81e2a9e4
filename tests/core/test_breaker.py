"""The circuit breaker: what moves it, whom it lets through, and what it holds against whom."""

from collections.abc import Callable
from random import Random

import pytest

from relay_service.core.breaker import (
    RAMP_SHARE_MIN,
    TRANSITIONS,
    BreakerState,
    CircuitBreaker,
    Outcome,
    Permit,
    Trigger,
    Work,
)
from relay_service.core.breakers import Breakers
from relay_service.core.policy import BreakerPolicy, RelayPolicy, Route, UpstreamPolicy

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
OK, FAILED, IGNORED = Outcome.SUCCESS, Outcome.FAILURE, Outcome.IGNORED
NOW = 1000.0

IN_A_ROW = BreakerPolicy(consecutive_failures=3, failure_ratio=None, probe_successes=2, ramp_s=None)
BY_RATE = BreakerPolicy(failure_ratio=0.5, min_calls=10, ramp_s=None)
BY_SLOWNESS = BreakerPolicy(failure_ratio=None, slow_call_s=1.0, slow_ratio=0.5, min_calls=4, ramp_s=None)


def entered(breaker: CircuitBreaker, now: float, work: Work = Work.CALL) -> Permit:
    permit = breaker.enter(work, now)
    assert permit is not None, breaker.status(now)
    return permit


def attempt(breaker: CircuitBreaker, outcome: Outcome, now: float, lasting_s: float = 0.0) -> None:
    breaker.settle(entered(breaker, now), outcome, now + lasting_s)


def state(breaker: CircuitBreaker, now: float) -> BreakerState:
    return breaker.status(now).state


def opened(policy: BreakerPolicy = IN_A_ROW) -> CircuitBreaker:
    """A breaker that opened at ``NOW``."""
    breaker = CircuitBreaker(policy, NOW)
    for _ in range(policy.consecutive_failures or policy.min_calls):
        attempt(breaker, FAILED, NOW)
    assert state(breaker, NOW) is OPEN
    return breaker


def half_open(policy: BreakerPolicy = IN_A_ROW) -> tuple[CircuitBreaker, float]:
    """A breaker whose open time is just over, and that time."""
    return opened(policy), NOW + policy.open_s


def by_failures_in_a_row() -> tuple[CircuitBreaker, float]:
    breaker = CircuitBreaker(IN_A_ROW, NOW)
    for outcome in (FAILED, FAILED, OK, FAILED, FAILED, IGNORED):
        attempt(breaker, outcome, NOW)
        assert state(breaker, NOW) is CLOSED, "a success between them starts the count again"
    attempt(breaker, FAILED, NOW)
    return breaker, NOW


def by_failure_ratio() -> tuple[CircuitBreaker, float]:
    breaker = CircuitBreaker(BY_RATE, NOW)
    for outcome in (FAILED,) * 5 + (OK,) * 4:
        attempt(breaker, outcome, NOW)
        assert state(breaker, NOW) is CLOSED, "too few to say anything"
    attempt(breaker, OK, NOW)
    return breaker, NOW


def by_slow_ratio() -> tuple[CircuitBreaker, float]:
    breaker = CircuitBreaker(BY_SLOWNESS, NOW)
    for lasting_s in (0.9, 0.9, 1.0):
        attempt(breaker, OK, NOW, lasting_s)
    assert state(breaker, NOW + 1) is CLOSED
    attempt(breaker, OK, NOW, 1.0)
    return breaker, NOW + 1


def by_open_time() -> tuple[CircuitBreaker, float]:
    breaker, later = opened(), NOW + IN_A_ROW.open_s
    assert breaker.enter(Work.CALL, later - 0.001) is None
    return breaker, later


def by_enough_probes() -> tuple[CircuitBreaker, float]:
    breaker, now = half_open()
    attempt(breaker, OK, now)
    assert state(breaker, now) is HALF_OPEN
    attempt(breaker, OK, now)
    return breaker, now


def by_a_failed_probe() -> tuple[CircuitBreaker, float]:
    breaker, now = half_open()
    attempt(breaker, OK, now)
    attempt(breaker, FAILED, now)
    return breaker, now


def by_a_lost_probe() -> tuple[CircuitBreaker, float]:
    breaker, now = half_open()
    entered(breaker, now)
    assert state(breaker, now + IN_A_ROW.probe_timeout_s - 0.001) is HALF_OPEN
    return breaker, now + IN_A_ROW.probe_timeout_s


WAYS: dict[tuple[BreakerState, Trigger], Callable[[], tuple[CircuitBreaker, float]]] = {
    (CLOSED, Trigger.FAILURES_IN_A_ROW): by_failures_in_a_row,
    (CLOSED, Trigger.FAILURE_RATIO): by_failure_ratio,
    (CLOSED, Trigger.SLOW_RATIO): by_slow_ratio,
    (OPEN, Trigger.OPEN_TIME_OVER): by_open_time,
    (HALF_OPEN, Trigger.PROBES_SUCCEEDED): by_enough_probes,
    (HALF_OPEN, Trigger.PROBE_FAILED): by_a_failed_probe,
    (HALF_OPEN, Trigger.PROBE_LOST): by_a_lost_probe,
}


def test_every_row_of_the_table_is_tried() -> None:
    assert set(WAYS) == set(TRANSITIONS)


@pytest.mark.parametrize(("row", "way"), WAYS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_row_of_the_table_happens_as_it_says(row: tuple[BreakerState, Trigger], way) -> None:
    breaker, now = way()
    status = breaker.status(now)
    assert status.state is TRANSITIONS[row]
    if status.state is OPEN:
        assert status.cause is row[1]


def test_from_every_state_there_is_a_way_on_and_every_state_is_reached() -> None:
    assert {before for before, _ in TRANSITIONS} == set(TRANSITIONS.values()) == set(BreakerState)


def test_open_lets_nothing_through_and_says_for_how_long() -> None:
    breaker = opened()
    assert breaker.refuses(NOW + 0.5)
    assert breaker.enter(Work.STREAM, NOW + 0.5) is None
    assert breaker.wait_s(NOW + 0.25) == 0.75
    assert breaker.status(NOW + 0.5).refused == 2


def test_half_open_lets_as_many_probes_through_as_allowed_and_not_one_more() -> None:
    breaker, now = half_open(BreakerPolicy(consecutive_failures=1, probes=2, probe_successes=2))
    probes = [breaker.enter(Work.CALL, now) for _ in range(5)]
    assert [probe is not None for probe in probes] == [True, True, False, False, False]
    assert breaker.refuses(now)
    breaker.settle(probes[0], OK, now)
    assert not breaker.refuses(now)


@pytest.mark.parametrize("late", [OK, FAILED, IGNORED])
def test_what_comes_from_before_it_opened_says_nothing_any_more(late: Outcome) -> None:
    breaker = CircuitBreaker(IN_A_ROW, NOW)
    old = [entered(breaker, NOW) for _ in range(10)]
    for _ in range(3):
        attempt(breaker, FAILED, NOW)
    now = NOW + IN_A_ROW.open_s
    for permit in old[:5]:
        breaker.settle(permit, late, now)
    assert state(breaker, now) is HALF_OPEN, "late answers are no probes"
    attempt(breaker, OK, now)
    attempt(breaker, OK, now)
    for permit in old[5:]:
        breaker.settle(permit, late, now)
    status = breaker.status(now)
    assert (status.state, status.calls, status.late) == (CLOSED, 0, 10)


def test_an_outcome_told_twice_counts_once() -> None:
    breaker = CircuitBreaker(IN_A_ROW, NOW)
    permit = entered(breaker, NOW)
    for _ in range(3):
        breaker.settle(permit, FAILED, NOW)
    assert breaker.status(NOW).consecutive_failures == 1


def test_a_probe_whose_caller_left_makes_room_for_the_next() -> None:
    breaker, now = half_open()
    for _ in range(20):
        attempt(breaker, IGNORED, now)
    attempt(breaker, OK, now)
    attempt(breaker, OK, now)
    assert state(breaker, now) is CLOSED


def test_a_probe_that_comes_back_after_its_lease_says_nothing() -> None:
    breaker, now = half_open()
    probe = entered(breaker, now)
    late = now + IN_A_ROW.probe_timeout_s
    breaker.settle(probe, OK, late)
    status = breaker.status(late)
    assert (status.state, status.cause, status.late, status.probes_lost) == (OPEN, Trigger.PROBE_LOST, 1, 1)


def test_a_slow_probe_proves_nothing_where_slowness_opens() -> None:
    breaker = CircuitBreaker(BY_SLOWNESS, NOW)
    for _ in range(4):
        attempt(breaker, OK, NOW, 1.0)
    now = NOW + 1.0 + BY_SLOWNESS.open_s
    attempt(breaker, OK, now, 1.0)
    assert state(breaker, now + 1.0) is OPEN


def test_attempts_that_hang_open_it_before_any_of_them_ends() -> None:
    breaker = CircuitBreaker(BreakerPolicy(consecutive_failures=3, stuck_call_s=2.0), NOW)
    hanging = [entered(breaker, NOW + n / 10) for n in range(3)]
    assert not breaker.refuses(NOW + 2.1)
    assert breaker.refuses(NOW + 2.2)
    for permit in hanging:
        breaker.settle(permit, FAILED, NOW + 5)
    status = breaker.status(NOW + 2.2)
    assert (status.stuck, status.opened, status.late) == (3, 1, 0), "each is judged once"


def test_a_stream_may_last_without_being_slow_or_stuck() -> None:
    policy = BreakerPolicy(consecutive_failures=1, slow_call_s=0.5, min_calls=1, stuck_call_s=2.0)
    breaker = CircuitBreaker(policy, NOW)
    permit = entered(breaker, NOW, Work.STREAM)
    breaker.settle(permit, OK, NOW + 3600)
    status = breaker.status(NOW + 3600)
    assert (status.state, status.slow, status.stuck) == (CLOSED, 0, 0)


def test_a_stream_that_probes_has_proven_it_when_the_answer_begins() -> None:
    breaker, now = half_open()
    for _ in range(2):
        stream = entered(breaker, now, Work.STREAM)
        breaker.answering(stream, now)
        breaker.answering(stream, now)
    assert state(breaker, now) is CLOSED
    breaker.settle(stream, FAILED, now)
    assert breaker.status(now).calls == 0, "it was judged as a probe"


def test_a_call_that_probes_has_proven_nothing_before_its_end() -> None:
    breaker, now = half_open()
    for permit in (entered(breaker, now),):
        breaker.answering(permit, now)
    assert breaker.status(now).probes == 1


def test_after_closing_the_share_let_through_grows_and_is_kept_exactly() -> None:
    policy = BreakerPolicy(consecutive_failures=1, probe_successes=1, ramp_s=10.0)
    breaker, now = half_open(policy)
    attempt(breaker, OK, now)
    for second in range(12):
        admitted = 0
        for _ in range(100):
            permit = breaker.enter(Work.CALL, now + second)
            if permit is not None:
                admitted += 1
                breaker.settle(permit, OK, now + second)
        share = min(1.0, max(RAMP_SHARE_MIN, second / 10))
        assert breaker.status(now + second).share == pytest.approx(share)
        assert abs(admitted - 100 * share) <= 1, second


def test_what_failed_longer_ago_than_the_window_is_forgotten() -> None:
    breaker = CircuitBreaker(BY_RATE, NOW)
    for _ in range(9):
        attempt(breaker, FAILED, NOW)
    attempt(breaker, FAILED, NOW + BY_RATE.window_s)
    assert breaker.status(NOW + BY_RATE.window_s).calls == 1


def test_memory_is_bounded_by_what_is_under_way() -> None:
    breaker = CircuitBreaker(BreakerPolicy(stuck_call_s=2.0), NOW)
    for n in range(5000):
        attempt(breaker, OK, NOW + n / 100, 0.5)
    assert len(breaker._in_flight) == 0
    assert breaker.status(NOW + 50).calls <= 1000


def test_pushback_is_never_before_the_next_probe_and_spreads_the_callers() -> None:
    breaker, rng = opened(), Random(7)
    drawn = [breaker.pushback_s(NOW, rng) for _ in range(1000)]
    assert min(drawn) >= 1.1
    assert max(drawn) <= 1.6
    assert max(drawn) - min(drawn) > 0.4


POLICY = RelayPolicy(
    "p",
    {"a": UpstreamPolicy("h:1"), "b": UpstreamPolicy("h:2")},
    routes=(Route("s.A", None, "a"), Route("s.A", "X", "b"), Route("s.B", None, "b")),
    breakers={"": BreakerPolicy(), "s.A": BreakerPolicy(), "s.B/Y": BreakerPolicy()},
)


def test_each_upstream_and_each_entry_that_asks_for_it_has_a_breaker_of_its_own() -> None:
    breakers = Breakers(POLICY, NOW)
    own = {(view.upstream, view.methods) for view in breakers.views(NOW)}
    assert own == {("a", ""), ("a", "s.A"), ("b", ""), ("b", "s.A"), ("b", "s.B/Y")}
    same = [("a", "s.A/M"), ("b", "s.A/X"), ("b", "s.B/Y"), ("b", "s.B/Z")]
    assert len({id(breakers.guarding(*call)) for call in same}) == 4
    assert breakers.guarding("b", "s.B/Z") is breakers.guarding("b", "s.C/made-up")


def test_without_breakers_in_the_policy_nothing_is_guarded() -> None:
    breakers = Breakers(RelayPolicy("p", {"a": UpstreamPolicy("h:1")}), NOW)
    assert breakers.guarding("a", "s.A/M") is None
    assert list(breakers.views(NOW)) == []
