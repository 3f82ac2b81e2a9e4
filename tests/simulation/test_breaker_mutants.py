"""Breakers that are broken on purpose: each must fail the check that is there to catch it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from breaker_checks import CHECKS

from relay_service.core.breaker import BreakerState, CircuitBreaker, Outcome, Permit
from relay_service.core.call import Call
from relay_service.core.evidence import Delivery
from relay_service.core.policy import BreakerPolicy
from relay_service.unary import UnaryCall

Patch = pytest.MonkeyPatch
SEEDS = 3


def with_policy(**changes: Any) -> Callable[[Patch], None]:
    """A breaker that does not heed a part of its policy."""

    def mutate(patch: Patch) -> None:
        make = CircuitBreaker.__init__

        def made(self: CircuitBreaker, policy: BreakerPolicy, now: float) -> None:
            make(self, replace(policy, **changes), now)

        patch.setattr(CircuitBreaker, "__init__", made)

    return mutate


def never_closes(patch: Patch) -> None:
    def probe_ended(self: CircuitBreaker, permit: Permit, outcome: Outcome, now: float) -> None:
        del self._probes[permit]

    patch.setattr(CircuitBreaker, "_probe_ended", probe_ended)


def late_results_are_counted(patch: Patch) -> None:
    settle = CircuitBreaker.settle

    def settled(self: CircuitBreaker, permit: Permit, outcome: Outcome, now: float) -> None:
        permit.epoch = self._epoch
        if self._state is BreakerState.HALF_OPEN:
            self._probes[permit] = None
        if self._state is not BreakerState.OPEN:
            settle(self, permit, outcome, now)

    patch.setattr(CircuitBreaker, "settle", settled)


def says(outcome: Outcome, when: Callable[[Call, Any], bool]) -> Callable[[Patch], None]:
    """A call that tells the breaker this instead, when ..."""

    def mutate(patch: Patch) -> None:
        truth = Call._says_of_upstream

        def said(self: Call, done: Any, judgement: Any, now: float) -> Outcome:
            return outcome if when(self, done) else truth(self, done, judgement, now)

        patch.setattr(Call, "_says_of_upstream", said)

    return mutate


def a_cancelled_probe_keeps_its_lease(patch: Patch) -> None:
    ended = CircuitBreaker._probe_ended

    def probe_ended(self: CircuitBreaker, permit: Permit, outcome: Outcome, now: float) -> None:
        if outcome is not Outcome.IGNORED:
            ended(self, permit, outcome, now)

    patch.setattr(CircuitBreaker, "_probe_ended", probe_ended)


def pushback_is_made_up(patch: Patch) -> None:
    patch.setattr(CircuitBreaker, "pushback_s", lambda _self, _now, rng: rng.uniform(0.1, 1.0))


def a_refused_call_keeps_its_worker(patch: Patch) -> None:
    use = UnaryCall._use_worker

    def used(self: UnaryCall, then: Any, now: float) -> bool:
        use(self, then, now)
        return True

    patch.setattr(UnaryCall, "_use_worker", used)


MUTANTS: dict[str, tuple[Callable[[Patch], None], str]] = {
    "never opens": (
        with_policy(consecutive_failures=None, failure_ratio=None),
        "an_outage_opens_it_and_it_closes_by_itself",
    ),
    "never closes": (never_closes, "an_outage_opens_it_and_it_closes_by_itself"),
    "stays open ten times as long": (with_policy(open_s=10.0), "an_outage_opens_it_and_it_closes_by_itself"),
    "every call is a probe": (with_policy(probes=100_000), "a_lost_probe_does_not_hold_it"),
    "late results are counted": (late_results_are_counted, "late_results_are_harmless"),
    "a timeout is not counted": (
        says(Outcome.IGNORED, lambda _, done: done.delivery is Delivery.UNANSWERED),
        "silence_opens_it",
    ),
    "hanging calls wait for their end": (
        with_policy(stuck_call_s=None),
        "hanging_calls_open_it_before_they_end",
    ),
    "a probe's lease never ends": (with_policy(probe_timeout_s=1e6), "a_lost_probe_does_not_hold_it"),
    "a cancelled probe keeps its lease": (
        a_cancelled_probe_keeps_its_lease,
        "a_cancelled_probe_does_not_hold_it",
    ),
    "no ramp": (with_policy(ramp_s=None), "reopening_is_ramped"),
    "a caller that leaves counts as failure": (
        says(Outcome.FAILURE, lambda call, _: call._pending is not None),
        "callers_that_leave_and_callers_in_error_open_nothing",
    ),
    "a definite answer counts as failure": (
        says(Outcome.FAILURE, lambda _, done: done.delivery is Delivery.ANSWERED),
        "callers_that_leave_and_callers_in_error_open_nothing",
    ),
    "pushback is made up": (pushback_is_made_up, "every_refusal_is_typed_and_says_when_to_return"),
    "a refused call keeps its worker": (
        a_refused_call_keeps_its_worker,
        "a_refused_queue_frees_every_worker",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, check = MUTANTS[name]
    mutate(monkeypatch)
    for seed in range(SEEDS):
        with pytest.raises(AssertionError):
            CHECKS[check](seed)


def test_every_check_catches_a_mutant() -> None:
    assert {check for _, check in MUTANTS.values()} == set(CHECKS)
