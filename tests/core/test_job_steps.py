"""What becomes of a job after a run: the tables, row by row."""

from random import Random

import pytest

from relay_service.core.evidence import Delivery, Evidence
from relay_service.core.jitter import Jitter
from relay_service.core.job import Cause, Job, JobState, Work
from relay_service.core.job_policy import JobPolicy, JobRetryPolicy
from relay_service.core.job_step import Bury, Complete, HandBack, RetryLater, Run, after_run, before_run
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict

POLICY = JobPolicy(retry=JobRetryPolicy(max_attempts=3))
LAST = 3


def job(attempts: int = 1, *, lost_leases: int = 0, replays: str = "") -> Job:
    return Job(
        "job",
        Work("", "S/M", b""),
        JobState.RUNNING,
        0.0,
        0.0,
        1e9,
        attempts=attempts,
        lost_leases=lost_leases,
        dead_letter_id=replays,
    )


def run(
    code: Code, evidence: Evidence | None, reason: Reason | None = None, pushback_s: float | None = None
) -> Run:
    fate = Fate.OK if code is Code.OK else Fate.REFUSED if evidence is None else Fate.ERROR
    attempts = 0 if evidence is None else 1
    verdict = Verdict(code, "", Origin.UPSTREAM, fate, reason, evidence, attempts, pushback_s)
    return Run(verdict, Delivery.ANSWERED, b"answer")


@pytest.mark.parametrize(
    ("ended", "attempts", "repeatable", "step"),
    [
        (run(Code.OK, Evidence.DEFINITE), 1, False, Complete(b"answer")),
        (run(Code.INVALID_ARGUMENT, Evidence.DEFINITE), 1, True, Bury(Cause.NON_RETRYABLE)),
        (run(Code.UNAVAILABLE, Evidence.AMBIGUOUS), 1, False, Bury(Cause.AMBIGUOUS)),
        (run(Code.UNAVAILABLE, Evidence.AMBIGUOUS), LAST, True, Bury(Cause.RETRIES_EXHAUSTED)),
        (run(Code.DEADLINE_EXCEEDED, Evidence.AMBIGUOUS), LAST, True, Bury(Cause.DEADLINE)),
        (run(Code.UNAVAILABLE, Evidence.REFUSED), LAST, False, Bury(Cause.RETRIES_EXHAUSTED)),
        (run(Code.UNIMPLEMENTED, None, Reason.NO_ROUTE), 1, True, Bury(Cause.NON_RETRYABLE)),
        (run(Code.RESOURCE_EXHAUSTED, None, Reason.MESSAGE_TOO_LARGE), 1, True, Bury(Cause.NON_RETRYABLE)),
    ],
)
def test_each_end_has_its_step(ended: Run, attempts: int, repeatable: bool, step: object) -> None:
    assert after_run(ended, job(attempts), POLICY, Random(1), repeatable=repeatable) == step


@pytest.mark.parametrize("evidence", [Evidence.NOT_SENT, Evidence.REFUSED, Evidence.AMBIGUOUS])
def test_what_another_run_may_repair_is_run_again_after_the_backoff(evidence: Evidence) -> None:
    step = after_run(run(Code.UNAVAILABLE, evidence), job(2), POLICY, Random(1), repeatable=True)
    assert isinstance(step, RetryLater)
    assert 30 <= step.delay_s <= 60


@pytest.mark.parametrize("reason", [Reason.QUEUE_FULL, Reason.BREAKER_OPEN, Reason.DRAINING])
def test_what_the_relays_own_limits_turn_away_counts_as_nothing_however_often(reason: Reason) -> None:
    refused = run(reason.code or Code.UNKNOWN, None, reason, pushback_s=2.0)
    step = after_run(refused, job(100), POLICY, Random(1), repeatable=False)
    assert isinstance(step, HandBack)
    assert 2.0 <= step.delay_s <= 3.0


@pytest.mark.parametrize(("told", "least"), [(None, 1.0), (-1.0, 10.0)])
def test_a_job_that_has_no_turn_comes_back_after_all_that_have_one(told: float | None, least: float) -> None:
    refused = run(Code.RESOURCE_EXHAUSTED, None, Reason.QUEUE_FULL, pushback_s=told)
    step = after_run(refused, job(), POLICY, Random(1), repeatable=False)
    assert isinstance(step, HandBack)
    assert least <= step.delay_s <= 1.5 * least


def test_a_replay_has_one_run() -> None:
    failed = run(Code.UNAVAILABLE, Evidence.REFUSED)
    step = after_run(failed, job(1, replays="letter"), POLICY, Random(1), repeatable=True)
    assert step == Bury(Cause.RETRIES_EXHAUSTED)


@pytest.mark.parametrize(
    ("lost", "repeatable", "step"),
    [
        (0, False, None),
        (1, False, Bury(Cause.AMBIGUOUS)),
        (2, True, None),
        (3, True, Bury(Cause.POISON)),
    ],
)
def test_what_a_lost_worker_leaves_is_run_again_only_where_that_is_harmless(
    lost: int, repeatable: bool, step: Bury | None
) -> None:
    assert before_run(job(lost_leases=lost), POLICY, repeatable=repeatable) == step


def test_the_backoff_is_30_60_120_240_with_jitter_and_never_overflows() -> None:
    none = JobRetryPolicy(jitter=Jitter.NONE)
    assert [none.backoff_s(n, Random(1)) for n in (1, 2, 3, 4, 5, 900)] == [30, 60, 120, 240, 240, 240]
    equal = [JobRetryPolicy().backoff_s(1, Random(seed)) for seed in range(200)]
    assert 15 <= min(equal) < 17
    assert 28 < max(equal) <= 30
    full = [JobRetryPolicy(jitter=Jitter.FULL).backoff_s(1, Random(seed)) for seed in range(200)]
    assert min(full) < 2
    with pytest.raises(ValueError, match="jitter"):
        JobRetryPolicy(jitter=Jitter.DECORRELATED)
