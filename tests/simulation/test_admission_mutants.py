"""Admissions that are broken on purpose: each must fail the test that is there to catch it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_fairness
import test_limit_in_many_overloads as many_overloads
import test_overload
import test_standing_queue
import test_the_default_limit as default_limit
import test_the_door

from relay_service.core.admission import Admission
from relay_service.core.cohorts import Cohorts
from relay_service.core.fair_queue import FairQueue, Which
from relay_service.core.gradient_limit import Baseline, GradientLimit
from relay_service.core.load_window import LoadSign, Sampler
from relay_service.core.quota import ClientQuotas

Patch = pytest.MonkeyPatch


def no_fairness(patch: Patch) -> None:
    patch.setattr(Cohorts, "of", lambda _self, _client, _now: 0)


def quotas_off(patch: Patch) -> None:
    patch.setattr(ClientQuotas, "take", lambda _self, _client, _now: 0.0)


def pushback_ignores_the_bucket(patch: Patch) -> None:
    take = ClientQuotas.take
    patch.setattr(ClientQuotas, "take", lambda *call: 10.0 if take(*call) else 0.0)


def class_order_reversed(patch: Patch) -> None:
    offer = Admission.offer

    def offered(self: Admission[Any], ticket: Any, demand: Any, now: float) -> Any:
        return offer(
            self, ticket, replace(demand, criticality=type(demand.criticality)(3 - demand.criticality)), now
        )

    patch.setattr(Admission, "offer", offered)


def codel_sheds_the_highest_class(patch: Patch) -> None:
    shed = Admission._shed_standing

    def shed_highest(self: Admission[Any]) -> Any:
        queues = self._queues
        self._queues = tuple(reversed(queues))
        try:
            return shed(self)
        finally:
            self._queues = queues

    patch.setattr(Admission, "_shed_standing", shed_highest)


def fifo_always(patch: Patch) -> None:
    patch.setattr(Admission, "_serves", Which.OLDEST)


def the_door_is_never_shut(patch: Patch) -> None:
    patch.setattr(Admission, "_door_is_shut", lambda *_: False)


def one_longer_cohort_is_never_found(patch: Patch) -> None:
    patch.setattr(FairQueue, "longest", 0)


def timeouts_are_not_counted(patch: Patch) -> None:
    record = GradientLimit.record

    def recorded(self: GradientLimit, outcome: LoadSign, *rest: Any) -> None:
        record(self, LoadSign.IGNORED if outcome is LoadSign.TIMED_OUT else outcome, *rest)

    patch.setattr(GradientLimit, "record", recorded)


def the_baseline_moves_while_overloaded(patch: Patch) -> None:
    judge = GradientLimit._judge_slowness

    def judged(self: GradientLimit, window: Any, mean_s: float, *, in_use: bool) -> float | None:
        room = judge(self, window, mean_s, in_use=in_use)
        self._drift_towards(mean_s, 0.1)
        return room

    patch.setattr(GradientLimit, "_judge_slowness", judged)


def a_limit_lowered_in_vain_stays_low(patch: Patch) -> None:
    patch.setattr(GradientLimit, "_room", lambda _self, _before, _mean_s: None)


def a_few_slow_calls_lower_the_limit(patch: Patch) -> None:
    patch.setattr(GradientLimit, "_is_no_reason", lambda *_call, **_told: False)


def a_part_of_a_permit_counts_as_one(patch: Patch) -> None:
    patch.setattr(GradientLimit, "_in_use", lambda self, window: window.peak_in_flight >= 0.8 * self._limit)


def windows_begin_under_the_old_limit(patch: Patch) -> None:
    add = Sampler.add

    def added(self: Sampler, outcome: Any, held_s: float, in_flight: int, *rest: float) -> Any:
        return add(self, outcome, held_s, min(in_flight, int(rest[-1])), *rest)

    patch.setattr(Sampler, "add", added)


def a_first_baseline_is_believed(patch: Patch) -> None:
    patch.setattr(Baseline, "is_proven", lambda _self, _rate_per_s: True)


def slower_without_a_door() -> None:
    default_limit.test_a_service_that_only_takes_longer_gets_as_many_calls_as_before(default_limit.DOORLESS)


def limits_are_new_in_time() -> None:
    """On these seeds the limit as it is does better than what is promised of all."""
    many_overloads.check_limits(range(5000, 5030), share=0.95)


def a_block_of_overloads() -> None:
    """The same."""
    many_overloads.check_block(0, 3.0, seeds=25, one_run_least=0.8)


MUTANTS: tuple[tuple[Callable[[Patch], None], Callable[[], None]], ...] = (
    (no_fairness, test_fairness.test_without_quotas_a_noisy_client_gets_what_the_others_leave),
    (
        one_longer_cohort_is_never_found,
        test_fairness.test_without_quotas_a_noisy_client_gets_what_the_others_leave,
    ),
    (quotas_off, test_fairness.test_a_client_at_twenty_times_its_quota_costs_the_others_next_to_nothing),
    (
        pushback_ignores_the_bucket,
        test_fairness.test_the_pushback_of_a_used_up_quota_is_when_there_is_a_token,
    ),
    (
        class_order_reversed,
        test_overload.test_when_all_classes_flood_each_is_served_before_the_next_lower_one,
    ),
    (
        codel_sheds_the_highest_class,
        test_standing_queue.test_shedding_and_turning_the_queue_round_take_the_lowest_class_first,
    ),
    (
        fifo_always,
        lambda: test_standing_queue.test_where_infeasible_work_is_not_refused_newest_first_saves_the_goodput(
            3
        ),
    ),
    (
        the_door_is_never_shut,
        lambda: test_the_door.test_whoever_is_refused_is_refused_at_once_and_the_served_wait_about_the_target(
            3, 0.2
        ),
    ),
    (timeouts_are_not_counted, default_limit.test_a_silent_service_gets_the_floor_and_is_found_again),
    (the_baseline_moves_while_overloaded, limits_are_new_in_time),
    (a_part_of_a_permit_counts_as_one, a_block_of_overloads),
    (
        windows_begin_under_the_old_limit,
        slower_without_a_door,
    ),
    (a_first_baseline_is_believed, limits_are_new_in_time),
    (
        a_limit_lowered_in_vain_stays_low,
        slower_without_a_door,
    ),
    (
        a_few_slow_calls_lower_the_limit,
        lambda: default_limit.test_one_call_a_second_keeps_the_limit_able_whatever_it_takes(1.0),
    ),
)


def named(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("mutate", "check"), MUTANTS, ids=named)
def test_every_mutant_is_caught(
    mutate: Callable[[Patch], None], check: Callable[[], None], monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check()
