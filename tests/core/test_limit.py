"""The concurrency limits against services whose latency is a formula of what is under way."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from relay_service.core.admission import Admission, Demand
from relay_service.core.evidence import Delivery
from relay_service.core.gradient_limit import Baseline
from relay_service.core.limit import (
    AimdLimit,
    ConcurrencyLimit,
    FixedLimit,
    GradientLimit,
    LoadSign,
    load_sign_of,
    make_limit,
)
from relay_service.core.policy import AdmissionPolicy, LimitKind, LimitPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code

Latency = Callable[[int], float]


def queueing(base_s: float, capacity_per_s: float) -> Latency:
    """A service that serves so many at once in ``base_s`` and queues the rest."""
    return lambda in_flight: max(base_s, in_flight / capacity_per_s)


def gradient(**fields: float | None) -> GradientLimit:
    return GradientLimit(LimitPolicy(kind=LimitKind.GRADIENT, **fields), 0.0)


def drive(
    limit: ConcurrencyLimit,
    since: float,
    until: float,
    latency: Latency,
    *,
    offered: int = 10_000,
    outcome: Callable[[], LoadSign] = lambda: LoadSign.SUCCESS,
) -> list[int]:
    """As many under way as the limit lets in, one ending after the other; the limits over time."""
    now, seen = since, []
    while now < until:
        in_flight = min(limit.limit, offered)
        took_s = latency(in_flight)
        now += took_s / in_flight
        limit.record(outcome(), took_s, in_flight, now)
        seen.append(limit.limit)
    return seen


HEALTHY = queueing(0.02, 500.0)  # ten at once


def test_the_gradient_finds_what_the_service_takes_at_once() -> None:
    limit = gradient(initial=20)
    settled = drive(limit, 0.0, 20.0, HEALTHY)[-500:]
    assert min(settled) >= 10
    assert max(settled) <= 40


def test_the_gradient_grows_fast_while_nothing_is_slow() -> None:
    limit = gradient(initial=4)
    drive(limit, 0.0, 2.0, queueing(0.02, 20_000.0))
    assert limit.limit >= 400


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limit = gradient(initial=20)
    assert set(drive(limit, 0.0, 10.0, HEALTHY, offered=5)) == {20}


@pytest.mark.parametrize("kind", [LimitKind.AIMD, LimitKind.GRADIENT])
def test_when_everything_times_out_alike_the_limit_falls_to_its_floor(kind: LimitKind) -> None:
    """Netflix/concurrency-limits#137: samples without variance, and the limit grew to its ceiling."""
    limit = make_limit(AdmissionPolicy(limit=LimitPolicy(kind=kind, min=4, initial=20)), 0.0)
    drive(limit, 0.0, 5.0, HEALTHY)
    drive(limit, 5.0, 1000.0, lambda _: 5.0, outcome=lambda: LoadSign.TIMED_OUT)
    assert limit.limit == 4
    drive(limit, 1000.0, 1020.0, HEALTHY)
    assert limit.limit >= 10


def test_the_baseline_does_not_drift_in_ten_minutes_of_overload() -> None:
    """failsafe-go#127: the baseline crept up to what the incident made of it."""
    rng = Random(4)

    def noisy(in_flight: int) -> float:
        return HEALTHY(in_flight) * rng.uniform(0.2, 1.8)

    limit = gradient(initial=20)
    drive(limit, 0.0, 10.0, noisy)
    before = limit.baseline_s
    seen = drive(limit, 10.0, 610.0, noisy)
    assert limit.baseline_s <= 1.2 * before
    assert max(seen) <= 100


def test_what_is_slower_than_the_objective_is_never_normal() -> None:
    """failsafe-go#127 with a service that is slow whatever one does: without an objective the limit must
    not be pinned, with one it must stay low."""
    drowned = {}
    for objective_s in (None, 0.1):
        limit = gradient(initial=20, latency_objective_s=objective_s)
        drive(limit, 0.0, 5.0, HEALTHY)
        drive(limit, 5.0, 125.0, lambda _: 1.0)
        drowned[objective_s] = limit.limit
    assert drowned[0.1] <= 5
    assert drowned[None] >= 50


@pytest.mark.parametrize("seed", range(5))
def test_a_service_that_became_slower_for_good_does_not_pin_the_limit(seed: int) -> None:
    """envoyproxy/envoy#38338: three times slower, with and without a queue; the limit must come back."""
    rng = Random(seed)
    print(f"seed {seed}")
    limit = gradient(initial=20, min=1)
    slower = queueing(0.06, 500.0 / 3)
    drive(limit, 0.0, 10.0, HEALTHY)
    settled = drive(limit, 10.0, 60.0, lambda n: slower(n) * rng.uniform(0.8, 1.2))[-1000:]
    assert sum(settled) / len(settled) >= 8
    assert max(settled) <= 60
    back = drive(limit, 60.0, 70.0, HEALTHY)[-1000:]
    assert min(back) >= 9


def begun_in_an_overload() -> GradientLimit:
    limit = gradient(initial=256)
    drive(limit, 0.0, 20.0, HEALTHY)
    return limit


def begun_in_a_queue() -> GradientLimit:
    """The very first attempts queue, though the limit is not reached; then there are more than it allows."""
    limit = gradient(initial=256)
    drive(limit, 0.0, 2.0, HEALTHY, offered=60)
    drive(limit, 2.0, 20.0, HEALTHY)
    return limit


@pytest.mark.parametrize("begun", [begun_in_an_overload, begun_in_a_queue])
def test_a_baseline_that_was_measured_when_the_service_was_full_is_found_out(
    begun: Callable[[], GradientLimit],
) -> None:
    limit = begun()
    assert limit.baseline_s <= 0.03
    assert 10 <= limit.limit <= 50


def test_a_first_baseline_that_is_believed_whatever_it_is_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Baseline, "is_proven", lambda *_: True)
    assert begun_in_a_queue().limit > 50


@pytest.mark.parametrize("small", [3, 4])
def test_a_small_limit_that_is_not_whole_still_grows(small: int) -> None:
    """Of 3.99 three may be under way: less than four fifths of it, and yet all of it."""
    limit = gradient(initial=small, min=1)
    limit._limit = small + 0.99
    drive(limit, 0.0, 20.0, HEALTHY)
    assert limit.limit >= 10


def test_a_service_that_takes_longer_by_nature_gets_its_limit_back_after_one_step_down() -> None:
    limit = gradient(initial=128)
    drive(limit, 0.0, 2.0, lambda _: 0.005, offered=100)
    seen = drive(limit, 2.0, 40.0, lambda _: 1.0)
    assert min(seen) >= 64
    assert limit.limit == 1000


def test_so_few_that_they_cannot_slow_each_other_down_do_not_lower_the_limit() -> None:
    limit = gradient(initial=128)
    drive(limit, 0.0, 10.0, lambda _: 0.02, offered=2)
    drive(limit, 10.0, 1000.0, lambda _: 2.0, offered=2)
    assert limit.limit == 128


def test_the_smallest_limit_grows_when_all_is_well() -> None:
    limit = gradient(initial=1, min=1)
    drive(limit, 0.0, 20.0, HEALTHY)
    assert limit.limit >= 10


def test_a_little_random_loss_does_not_pin_the_limit() -> None:
    rng = Random(3)

    def outcome() -> LoadSign:
        return LoadSign.TIMED_OUT if rng.random() < 0.02 else LoadSign.SUCCESS

    limit = gradient(initial=20)
    settled = drive(limit, 0.0, 60.0, HEALTHY, outcome=outcome)[-5000:]
    assert sum(settled) / len(settled) >= 10


def test_a_caller_with_too_little_patience_does_not_lower_the_limit() -> None:
    limit = gradient(initial=20)
    drive(limit, 0.0, 5.0, HEALTHY)
    before = limit.limit
    for number in range(1000):
        limit.record(LoadSign.TIMED_OUT, 0.001, 10, 5.0 + number * 0.01)
    assert limit.limit == before


def test_callers_that_leave_change_nothing() -> None:
    limit = gradient(initial=20)
    for number in range(1000):
        limit.record(LoadSign.IGNORED, 10.0, 20, number * 0.01)
    assert (limit.limit, limit.baseline_s) == (20, 0.0)


def test_aimd_adds_one_a_window_and_takes_a_tenth_for_loss_or_slowness() -> None:
    limit = AimdLimit(LimitPolicy(kind=LimitKind.AIMD, initial=20, latency_objective_s=0.1), 0.0)
    seen = drive(limit, 0.0, 5.0, HEALTHY)
    assert {after - before for before, after in pairwise(seen)} <= {0, 1, -5, -6, -4}
    assert max(seen) <= 52  # 50 under way take 0.1 s
    limit.record(LoadSign.REFUSED, 0.01, 50, 100.0)
    before = limit.limit
    for _ in range(20):
        limit.record(LoadSign.REFUSED, 0.01, 50, 200.0)
    assert before * 0.7 <= limit.limit < before


def test_a_fixed_limit_stays_what_it_is() -> None:
    limit = FixedLimit(7)
    drive(limit, 0.0, 10.0, HEALTHY)
    assert limit.limit == 7


@pytest.mark.parametrize(
    ("delivery", "code", "given_up", "expected"),
    [
        (Delivery.ANSWERED, Code.OK, False, LoadSign.SUCCESS),
        (Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, False, LoadSign.REFUSED),
        (Delivery.ANSWERED, Code.DEADLINE_EXCEEDED, False, LoadSign.TIMED_OUT),
        (Delivery.ANSWERED, Code.UNAVAILABLE, False, LoadSign.IGNORED),
        (Delivery.ANSWERED, Code.NOT_FOUND, False, LoadSign.IGNORED),
        (Delivery.UNANSWERED, Code.UNAVAILABLE, True, LoadSign.TIMED_OUT),
        (Delivery.UNANSWERED, Code.UNAVAILABLE, False, LoadSign.IGNORED),
        (Delivery.UNANSWERED, Code.DEADLINE_EXCEEDED, True, LoadSign.TIMED_OUT),
        (Delivery.UNANSWERED, Code.CANCELLED, True, LoadSign.IGNORED),
        (Delivery.NOT_SENT, Code.UNAVAILABLE, True, LoadSign.IGNORED),
        (Delivery.NOT_SENT, Code.DEADLINE_EXCEEDED, True, LoadSign.IGNORED),
    ],
)
def test_only_what_says_something_about_load_counts(
    delivery: Delivery, code: Code, given_up: bool, expected: LoadSign
) -> None:
    assert load_sign_of(delivery, code, given_up=given_up) is expected


def test_the_workers_follow_the_limit_up_and_down() -> None:
    policy = AdmissionPolicy(limit=LimitPolicy(kind=LimitKind.GRADIENT, min=4, initial=20))
    gate: Admission[int] = Admission(policy, 0.0)
    for ticket in range(40):
        gate.offer(ticket, Demand(), 0.0)
    assert (gate.workers, gate.busy, gate.queued) == (20, 20, 20)
    for _ in range(4):  # two windows without an answer
        for _ in range(5):
            gate.release(LoadSign.TIMED_OUT, 5.0, 5.0)
        assert gate.grant(5.0) is None or gate.busy <= gate.workers
    assert gate.workers < 20
    assert gate.busy <= gate.workers


def test_without_a_queue_the_adaptive_limit_is_the_reason() -> None:
    policy = AdmissionPolicy(queue_capacity=0, limit=LimitPolicy(kind=LimitKind.AIMD, initial=1, min=1))
    gate: Admission[int] = Admission(policy, 0.0)
    gate.offer(1, Demand(), 0.0)
    assert gate.offer(2, Demand(), 0.0).reason is Reason.CONCURRENCY_LIMIT
