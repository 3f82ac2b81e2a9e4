"""Hedging in a whole relay over modelled networks, and relays that hedge wrongly, which must be caught."""

from collections.abc import Callable
from typing import Any

import pytest
from hedging_checks import CHECKS

from relay_service.core.admission import Admission
from relay_service.core.breaker import Outcome
from relay_service.core.budget import RetryGate
from relay_service.core.call import Call
from relay_service.core.events import WaitHedge
from relay_service.core.hedge import Hedging, MethodLatency
from relay_service.core.hedged import Hedges
from relay_service.relay import Relay

Patch = pytest.MonkeyPatch
SEEDS = 2


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("check", CHECKS)
def test_the_promise_holds(check: str, seed: int) -> None:
    CHECKS[check](seed)


def every_call_is_hedged_whatever_its_safety(patch: Patch) -> None:
    make = Call.__init__

    def made(self: Call, *args: Any, **given: Any) -> None:
        make(self, *args, **given)
        self._hedges = given["hedges"]

    patch.setattr(Call, "__init__", made)


def hedges_are_not_paid_for(patch: Patch) -> None:
    patch.setattr(RetryGate, "allow_hedge", lambda _self, _now: True)


def losers_run_on(patch: Patch) -> None:
    def answered(self: Call, done: Any, _now: float) -> Any:
        self._last = done
        return self._conclude(done)

    patch.setattr(Call, "_answered", answered)


def a_loser_counts_as_failure(patch: Patch) -> None:
    settle = Call._settle

    def settled(self: Call, permit: Any, outcome: Outcome, now: float) -> None:
        settle(self, permit, Outcome.FAILURE if outcome is Outcome.IGNORED else outcome, now)

    patch.setattr(Call, "_settle", settled)


def hedges_share_the_connection(patch: Patch) -> None:
    make = Relay.__init__

    def made(self: Relay, policy: Any, upstreams: Any, *args: Any, **given: Any) -> None:
        make(self, policy, upstreams, *args, **(given | {"hedge_upstreams": upstreams}))

    patch.setattr(Relay, "__init__", made)


def a_hedge_goes_before_the_queue(patch: Patch) -> None:
    def take_spare(self: Admission[Any]) -> bool:
        self._busy += 1
        return True

    patch.setattr(Admission, "take_spare", take_spare)


def hedges_are_made_at_once(patch: Patch) -> None:
    begin = Hedges.main_started

    def began(self: Hedges, attempts: int, now: float) -> Any:
        begin(self, attempts, now)
        return (WaitHedge(now),)

    patch.setattr(Hedges, "main_started", began)


def losers_are_left_out_of_what_is_learned(patch: Patch) -> None:
    patch.setattr(MethodLatency, "unanswered", lambda _self, _lasted_s, _estimate_s: None)


def nothing_is_hedged(patch: Patch) -> None:
    patch.setattr(Hedging, "latency_s", lambda _self, _method: None)


MUTANTS: dict[str, tuple[Callable[[Patch], None], str]] = {
    mutant.__name__: (mutant, check)
    for mutant, check in (
        (every_call_is_hedged_whatever_its_safety, "a_call_that_may_not_be_executed_twice_is_not"),
        (hedges_are_not_paid_for, "no_hedge_is_made_when_the_budget_is_out"),
        (losers_run_on, "nothing_of_a_call_is_under_way_when_it_is_answered"),
        (a_loser_counts_as_failure, "losers_do_not_open_the_breaker"),
        (hedges_share_the_connection, "a_connection_that_stalls_is_answered_around"),
        (a_hedge_goes_before_the_queue, "no_hedge_takes_the_worker_of_a_call_that_waits"),
        (hedges_are_made_at_once, "the_tail_is_cut_for_a_twentieth_more_attempts"),
        (losers_are_left_out_of_what_is_learned, "the_tail_is_cut_for_a_twentieth_more_attempts"),
        (nothing_is_hedged, "the_tail_is_cut_for_a_twentieth_more_attempts"),
    )
} | {
    "hedges_are_not_paid_for, in a window": (
        hedges_are_not_paid_for,
        "retries_and_hedges_stay_within_the_budget_in_every_window",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, check = MUTANTS[name]
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check](0)


def test_every_check_catches_a_mutant() -> None:
    assert {check for _, check in MUTANTS.values()} == set(CHECKS)
