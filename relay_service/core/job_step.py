"""What becomes of a job after a run, and whether it may be run at all: two decision tables."""

from dataclasses import dataclass
from random import Random

from relay_service.core.evidence import Delivery, Evidence
from relay_service.core.job import Cause, Job
from relay_service.core.job_policy import JobPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Verdict

REFUSED_WAIT_S = 1.0
"""A job that the relay's own limits turned away comes back after this when they do not say when, ..."""
NO_TURN_WAIT_S = 10.0
"""... and after this when they say not to: others have been given every turn before, and a job has time."""


@dataclass(frozen=True, slots=True)
class Run:
    """How one run of a job ended: a call through the relay, or its share of a batch."""

    verdict: Verdict
    delivery: Delivery
    """The worst of the run's attempts: whether bytes left, and whether an answer came."""
    answer: bytes = b""
    """The response message when the verdict is OK."""
    key_status: str = ""
    """What the upstream says of the key when the verdict is OK: ``replayed`` when the effect was there."""


@dataclass(frozen=True, slots=True)
class Complete:
    """It is done."""

    answer: bytes


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Run it again after ``delay_s``."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class HandBack:
    """It was never dispatched: nothing is known and nothing counts."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Bury:
    """It becomes a dead letter."""

    cause: Cause


Step = Complete | RetryLater | HandBack | Bury

_TURNED_AWAY = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
"""Refusals with these codes pass; one with another code (no route, a malformed key) would come again."""


def before_run(job: Job, policy: JobPolicy, *, repeatable: bool) -> Bury | None:
    """Whether a job just leased must not be run, because of workers that were lost with it.

    A lost worker may have got as far as the upstream; that is harmless only where a second execution is.
    """
    if job.lost_leases and not repeatable:
        return Bury(Cause.AMBIGUOUS)
    if job.lost_leases >= policy.poison_after:
        return Bury(Cause.POISON)
    return None


def after_run(run: Run, job: Job, policy: JobPolicy, rng: Random, *, repeatable: bool) -> Step:
    """What becomes of ``job`` (as it was leased) after ``run``.

    A replay of a dead letter has one run: when it fails the letter is open again, and whoever replayed it
    knows at once.
    """
    verdict = run.verdict
    if verdict.code is Code.OK:
        return Complete(run.answer)
    if verdict.evidence is None:
        return _after_refusal(verdict, rng)
    if verdict.reason is Reason.MESSAGE_TOO_LARGE or verdict.evidence is Evidence.DEFINITE:
        return Bury(Cause.NON_RETRYABLE)
    if verdict.evidence is Evidence.AMBIGUOUS and not repeatable:
        return Bury(Cause.AMBIGUOUS)
    if job.dead_letter_id or job.attempts >= policy.retry.max_attempts:
        late = verdict.code is Code.DEADLINE_EXCEEDED
        return Bury(Cause.DEADLINE if late else Cause.RETRIES_EXHAUSTED)
    delay_s = policy.retry.backoff_s(job.attempts, rng)
    return RetryLater(max(delay_s, verdict.pushback_s or 0.0))


def _after_refusal(verdict: Verdict, rng: Random) -> Step:
    """No attempt was made: the relay's own limits, or something about the job itself."""
    reason = verdict.reason
    if verdict.code not in _TURNED_AWAY or reason is Reason.MESSAGE_TOO_LARGE:
        return Bury(Cause.NON_RETRYABLE)
    pushback_s = verdict.pushback_s
    if pushback_s is None:
        pushback_s = REFUSED_WAIT_S
    elif pushback_s < 0:
        pushback_s = NO_TURN_WAIT_S
    return HandBack(pushback_s * rng.uniform(1.0, 1.5))
