"""The checkers of durable jobs checked: planted breaches are found, and the right call is named."""

from dataclasses import replace

import pytest

from chaos import invariants
from chaos.findings import Verdict
from chaos.history import CallRecord, JobRecord, LedgerEntry, Outcome
from chaos.plan import SUBMIT_METHOD

COUNT = 50


def submission(number, **changes):
    sound = CallRecord(
        id=number,
        phase="fault",
        operation=f"op-{number}",
        method=SUBMIT_METHOD,
        intended_s=number / 10,
        sent_s=number / 10,
        done_s=number / 10 + 0.01,
        timeout_s=1.0,
        code="OK",
        outcome=Outcome.EXECUTED,
        trace_id=f"{number:032x}",
    )
    return replace(sound, **changes)


CALLS = [submission(number) for number in range(COUNT)]
JOBS = [JobRecord(f"job-{number}", f"op-{number}", "completed", runs=1) for number in range(COUNT)]
LEDGER = [LedgerEntry(number, f"c{number}", f"op-{number}") for number in range(COUNT)]


def named(finding):
    assert finding.verdict is Verdict.BROKEN, finding
    (offender,) = finding.offenders
    assert offender.trace_id == CALLS[7].trace_id
    return offender.call_id


def test_sound_books_hold():
    assert invariants.accepted_jobs_are_kept(CALLS, JOBS, LEDGER).verdict is Verdict.HELD
    assert invariants.jobs_add_up(CALLS, JOBS, LEDGER).verdict is Verdict.HELD
    assert invariants.jobs_get_done(CALLS, JOBS, 15).verdict is Verdict.HELD


def test_a_lost_job_names_its_submission():
    assert named(invariants.accepted_jobs_are_kept(CALLS, [*JOBS[:7], *JOBS[8:]], LEDGER)) == 7


def test_a_job_completed_without_its_effect_names_its_submission():
    assert named(invariants.accepted_jobs_are_kept(CALLS, JOBS, [*LEDGER[:7], *LEDGER[8:]])) == 7


@pytest.mark.parametrize("state", ["dead", "cancelled"])
def test_a_job_that_died_or_was_cancelled_is_kept_without_an_effect(state):
    jobs = [replace(job, state=state) if job.operation == "op-7" else job for job in JOBS]
    ledger = [*LEDGER[:7], *LEDGER[8:]]
    assert invariants.accepted_jobs_are_kept(CALLS, jobs, ledger).verdict is Verdict.HELD
    assert invariants.jobs_get_done(CALLS, jobs, 15).verdict is Verdict.HELD


@pytest.mark.parametrize("state", ["pending", "running", "paused"])
def test_a_job_that_does_not_end_names_its_submission(state):
    jobs = [replace(job, state=state) if job.operation == "op-7" else job for job in JOBS]
    assert named(invariants.jobs_get_done(CALLS, jobs, 15)) == 7


def test_a_job_that_is_there_twice_names_its_submission_once_for_each():
    finding = invariants.jobs_add_up(CALLS, [*JOBS, JobRecord("other", "op-7", "completed")], LEDGER)
    assert finding.verdict is Verdict.BROKEN
    assert {offender.call_id for offender in finding.offenders} == {7}


def test_a_job_that_nobody_asked_for_is_found():
    finding = invariants.jobs_add_up(CALLS, [*JOBS, JobRecord("ghost", "op-x", "completed")], LEDGER)
    assert finding.verdict is Verdict.BROKEN
    assert "never asked for" in finding.offenders[0].what


@pytest.mark.parametrize("left", ["job", "charge"])
def test_a_refused_submission_that_left_something_behind_is_named(left):
    refused = replace(CALLS[7], code="UNAVAILABLE", outcome=Outcome.NOT_EXECUTED)
    calls = [*CALLS[:7], refused, *CALLS[8:]]
    jobs = JOBS if left == "job" else [*JOBS[:7], *JOBS[8:]]
    ledger = LEDGER if left == "charge" else [*LEDGER[:7], *LEDGER[8:]]
    assert named(invariants.jobs_add_up(calls, jobs, ledger)) == 7


def test_a_submission_of_unknown_outcome_may_be_a_job_or_none():
    unknown = replace(CALLS[7], code="DEADLINE_EXCEEDED", outcome=Outcome.UNKNOWN)
    calls = [*CALLS[:7], unknown, *CALLS[8:]]
    without = [*JOBS[:7], *JOBS[8:]]
    for jobs, ledger in ((JOBS, LEDGER), (without, [*LEDGER[:7], *LEDGER[8:]])):
        assert invariants.jobs_add_up(calls, jobs, ledger).verdict is Verdict.HELD
        assert invariants.accepted_jobs_are_kept(calls, jobs, ledger).verdict is Verdict.HELD
