"""What becomes of a key when its call is over."""

import pytest

from relay_service.core.evidence import Evidence
from relay_service.core.idempotency import Afterwards
from relay_service.core.job import Cause
from relay_service.core.key_policy import IdempotencyPolicy, KeyLimits
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.reason import Reason
from relay_service.core.settlement import (
    KEPT_ERRORS,
    Bury,
    Keep,
    LeaveAmbiguous,
    Release,
    settlement_of,
)
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict

POLICY = IdempotencyPolicy(keep_s=100.0, keep_errors_s=5.0)
NO_LETTERS = LetterPolicy()
LETTERS = LetterPolicy(on_exhausted=True)


def verdict(code: Code, evidence: Evidence | None, attempts: int = 1, fate: Fate = Fate.ERROR) -> Verdict:
    return Verdict(
        code, "", Origin.UPSTREAM, Fate.OK if code is Code.OK else fate, evidence=evidence, attempts=attempts
    )


def test_a_success_is_kept_and_then_remembered() -> None:
    settled = settlement_of(verdict(Code.OK, Evidence.DEFINITE), POLICY, LETTERS)
    assert settled == Keep(100.0, Afterwards.TOMBSTONE)


@pytest.mark.parametrize("code", sorted(KEPT_ERRORS))
def test_a_definite_error_is_kept_briefly_and_then_forgotten(code: Code) -> None:
    settled = settlement_of(verdict(code, Evidence.DEFINITE), POLICY, LETTERS)
    assert settled == Keep(5.0, Afterwards.FORGOTTEN)


def test_an_error_about_the_sender_is_not_kept() -> None:
    assert settlement_of(verdict(Code.UNAUTHENTICATED, Evidence.DEFINITE), POLICY, NO_LETTERS) == Release()


@pytest.mark.parametrize("letters", [NO_LETTERS, LETTERS])
def test_what_was_never_tried_frees_its_key(letters: LetterPolicy) -> None:
    refused = verdict(Code.RESOURCE_EXHAUSTED, None, attempts=0, fate=Fate.REFUSED)
    assert settlement_of(refused, POLICY, letters) == Release()


@pytest.mark.parametrize("evidence", [Evidence.NOT_SENT, Evidence.REFUSED])
def test_what_nobody_executed_frees_its_key_or_becomes_a_dead_letter(evidence: Evidence) -> None:
    exhausted = verdict(Code.UNAVAILABLE, evidence, attempts=4)
    assert settlement_of(exhausted, POLICY, NO_LETTERS) == Release()
    assert settlement_of(exhausted, POLICY, LETTERS) == Bury(Cause.RETRIES_EXHAUSTED)


def test_what_may_have_been_executed_is_never_free() -> None:
    unknown = verdict(Code.UNKNOWN, Evidence.AMBIGUOUS)
    assert settlement_of(unknown, POLICY, NO_LETTERS) == LeaveAmbiguous()
    assert settlement_of(unknown, POLICY, LETTERS) == Bury(Cause.AMBIGUOUS)


def test_what_nobody_wants_any_more_becomes_no_dead_letter_unless_it_may_have_been_executed() -> None:
    unwanted = verdict(Code.CANCELLED, Evidence.REFUSED, fate=Fate.CANCELLED)
    assert settlement_of(unwanted, POLICY, LETTERS) == Release()
    possible = verdict(Code.CANCELLED, Evidence.AMBIGUOUS, fate=Fate.CANCELLED)
    assert settlement_of(possible, POLICY, LETTERS) == Bury(Cause.AMBIGUOUS)


def test_a_letter_says_that_its_time_was_up() -> None:
    late = Verdict(
        Code.DEADLINE_EXCEEDED,
        "",
        Origin.RELAY,
        Fate.ERROR,
        Reason.DEADLINE_PASSED,
        Evidence.REFUSED,
        attempts=2,
    )
    assert settlement_of(late, POLICY, LETTERS) == Bury(Cause.DEADLINE)


@pytest.mark.parametrize(
    "make",
    [
        lambda: IdempotencyPolicy(keep_s=0),
        lambda: IdempotencyPolicy(keep_errors_s=float("inf")),
        lambda: IdempotencyPolicy(settle_s=-1),
        lambda: KeyLimits(lease_s=0),
        lambda: KeyLimits(waiters=0),
        lambda: LetterPolicy(keep_s=-1),
    ],
)
def test_a_value_that_means_nothing_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()  # type: ignore[operator]
