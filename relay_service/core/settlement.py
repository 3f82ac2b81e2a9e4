"""What becomes of a key when the call that claimed it is over: one pure table.

Kept is what a repetition would get again; released is what provably had no effect; everything else is kept
as what it is, an outcome nobody knows, until somebody settles it.
"""

from dataclasses import dataclass

from relay_service.core.evidence import Evidence
from relay_service.core.idempotency import Afterwards
from relay_service.core.job import Cause
from relay_service.core.key_policy import IdempotencyPolicy
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Verdict

KEPT_ERRORS = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
    }
)
"""Definite errors that are the answer to this request. UNAUTHENTICATED is one about its sender."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Store the answer and replay it for so long."""

    keep_s: float
    then: Afterwards
    """An effect is remembered longer than its answer; that there was none is not."""


@dataclass(frozen=True, slots=True)
class Release:
    """Nothing was executed: the key is free."""


@dataclass(frozen=True, slots=True)
class LeaveAmbiguous:
    """There may be an effect."""


@dataclass(frozen=True, slots=True)
class Bury:
    """The call becomes a dead letter, which owns the key from now on."""

    cause: Cause


Settlement = Keep | Release | LeaveAmbiguous | Bury


def settlement_of(verdict: Verdict, policy: IdempotencyPolicy, letters: LetterPolicy) -> Settlement:
    """What to write for a claim whose call ended so."""
    if verdict.attempts == 0:
        return Release()
    if verdict.evidence is Evidence.DEFINITE:
        if verdict.code is Code.OK:
            return Keep(policy.keep_s, Afterwards.TOMBSTONE)
        if verdict.code in KEPT_ERRORS:
            return Keep(policy.keep_errors_s, Afterwards.FORGOTTEN)
        return Release()
    ambiguous = verdict.evidence is Evidence.AMBIGUOUS
    unwanted = verdict.fate is Fate.CANCELLED and not ambiguous
    if letters.on_exhausted and not unwanted:
        return Bury(_cause(verdict, ambiguous=ambiguous))
    return LeaveAmbiguous() if ambiguous else Release()


def _cause(verdict: Verdict, *, ambiguous: bool) -> Cause:
    if ambiguous:
        return Cause.AMBIGUOUS
    return Cause.DEADLINE if verdict.reason is Reason.DEADLINE_PASSED else Cause.RETRIES_EXHAUSTED
