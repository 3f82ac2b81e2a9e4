"""An upstream that pays for refusing is asked less; and throttles that are broken on purpose are caught."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from throttle_checks import CHECKS, THROTTLE, WINDOW_S, goodput_at

from relay_service.core.criticality import Criticality
from relay_service.core.evidence import Delivery
from relay_service.core.outcomes import OutcomeWindow
from relay_service.core.policy import ThrottlePolicy
from relay_service.core.status import Code
from relay_service.core.throttle import AdaptiveThrottle, Throttles

Patch = pytest.MonkeyPatch
SEEDS = 2


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_relay_that_throttles(check: Callable[[int], None], seed: int) -> None:
    check(seed)


def test_what_k_trades_at_six_times_the_capacity() -> None:
    """A refusal costs a third of serving: of 1 + (k - 1) / 3 units of work one is useful."""
    seed = 1
    by_k = {k: goodput_at(seed, 6.0, ThrottlePolicy(k=k, window_s=WINDOW_S)) for k in (1.1, 2.0, 4.0)}
    without = goodput_at(seed, 6.0, None)
    print(f"seed {seed}: goodput without {without:.3f}, by k {by_k}")
    assert without < 0.05, "all work is refusing"
    assert by_k[1.1] > by_k[2.0] > by_k[4.0] > 0.4, seed
    for k, goodput in by_k.items():
        assert abs(goodput - 1 / (1 + (k - 1) / 3)) < 0.12, (seed, k)


def with_policy(**changes: Any) -> Callable[[Patch], None]:
    """A throttle that does not heed a part of its policy."""

    def mutate(patch: Patch) -> None:
        make = AdaptiveThrottle.__init__

        def made(self: AdaptiveThrottle, policy: ThrottlePolicy, now: float) -> None:
            make(self, replace(policy, **changes), now)

        patch.setattr(AdaptiveThrottle, "__init__", made)

    return mutate


def its_own_refusals_do_not_count(patch: Patch) -> None:
    def refuses(self: AdaptiveThrottle, now: float, rng: Random) -> bool:
        return rng.random() < self._rejection(now)

    patch.setattr(AdaptiveThrottle, "refuses", refuses)


def it_never_forgets(patch: Patch) -> None:
    patch.setattr(OutcomeWindow, "slide", lambda _self, _now: None)


def all_classes_have_one_account(patch: Patch) -> None:
    patch.setattr(Throttles, "of", lambda self, _: self._by_class[Criticality.CRITICAL])


def an_attempt_without_an_answer_counts_as_refused(patch: Patch) -> None:
    def ended(self: AdaptiveThrottle, delivery: Delivery, code: Code, now: float) -> None:
        self._window.count(now, failed=code is not Code.OK, slow=False)

    patch.setattr(AdaptiveThrottle, "ended", ended)


def it_lets_nothing_through(patch: Patch) -> None:
    """No cap: with no accepts next to nothing finds out that the upstream is well."""
    patch.setattr(ThrottlePolicy, "__post_init__", lambda _: None)  # which would not let it be made
    with_policy(max_rejection=1.0)(patch)


MUTANTS: dict[str, tuple[Callable[[Patch], None], str]] = {
    "never refuses": (with_policy(min_calls=10**9), "useful_work_comes_back"),
    "its own refusals do not count": (its_own_refusals_do_not_count, "useful_work_comes_back"),
    "k is one": (with_policy(k=1.0), "a_flaky_upstream_is_not_held_back"),
    "it never forgets": (it_never_forgets, "service_is_whole_soon_after_everything_was_refused"),
    "it lets nothing through": (
        it_lets_nothing_through,
        "service_is_whole_soon_after_everything_was_refused",
    ),
    "the window is ten times as long": (
        with_policy(window_s=10 * WINDOW_S),
        "service_is_whole_soon_after_the_end_of_an_overload",
    ),
    "all classes have one account": (
        all_classes_have_one_account,
        "a_class_that_is_shed_does_not_cost_the_others",
    ),
    "no answer counts as a refusal": (
        an_attempt_without_an_answer_counts_as_refused,
        "callers_that_leave_say_nothing",
    ),
    "one refusal is enough": (with_policy(min_calls=1), "a_few_refusals_hold_nothing_back"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str, monkeypatch: Patch) -> None:
    mutate, check = MUTANTS[name]
    mutate(monkeypatch)
    for seed in range(SEEDS):
        with pytest.raises(AssertionError):
            next(one for one in CHECKS if one.__name__ == check)(seed)


def test_every_check_catches_a_mutant() -> None:
    assert {check for _, check in MUTANTS.values()} == {check.__name__ for check in CHECKS}


def test_the_policy_of_these_tests_differs_from_the_default_in_its_window_alone() -> None:
    assert replace(THROTTLE, window_s=ThrottlePolicy().window_s) == ThrottlePolicy()
