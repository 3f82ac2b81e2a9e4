"""The judges judged: sound histories hold, each planted breach is found, and the right call is named."""

from dataclasses import replace

import pytest

from chaos import invariants
from chaos.findings import OFFENDERS_SHOWN_MAX, Verdict, worst
from chaos.history import CallRecord, LedgerEntry, Outcome


def ok_call(number, **changes):
    call = CallRecord(
        id=number,
        phase="p",
        operation=f"op-{number}",
        method="downstream.v1.PaymentService/Charge",
        intended_s=number * 0.01,
        sent_s=number * 0.01,
        done_s=number * 0.01 + 0.02,
        timeout_s=1.0,
        code="OK",
        outcome=Outcome.EXECUTED,
        trace_id=f"{number:032x}",
        attempts=1,
        origin="upstream",
    )
    return replace(call, **changes)


def refused(number, **changes):
    shed = {
        "code": "RESOURCE_EXHAUSTED",
        "outcome": Outcome.NOT_EXECUTED,
        "origin": "relay",
        "reason": "QUEUE_FULL",
        "pushback_ms": 120,
        "attempts": 0,
    }
    return ok_call(number, **(shed | changes))


def charged(number, sequence=None):
    return LedgerEntry(sequence or number, f"charge-{sequence or number}", f"op-{number}")


CALLS = [ok_call(number) for number in range(1, 51)]
LEDGER = [charged(number) for number in range(1, 51)]


def assert_broken(finding, call, what):
    assert finding.verdict is Verdict.BROKEN
    assert finding.offender_count == 1
    (offender,) = finding.offenders
    assert (offender.call_id, offender.trace_id) == (call.id, call.trace_id)
    assert what in offender.what


def test_a_sound_history_holds_everywhere():
    findings = [
        invariants.answered_in_time(CALLS),
        invariants.at_most_one_effect(LEDGER),
        invariants.answers_match_ledger(CALLS, LEDGER),
        invariants.all_accounted_for(50, CALLS),
        invariants.refusals_are_useful([*CALLS, refused(51)], fast_s=0.1),
        invariants.attempts_agree(CALLS, 50),
        invariants.retries_within_budget(55, 50, ratio=0.1, burst=0),
    ]
    assert {finding.verdict for finding in findings} == {Verdict.HELD}, findings


def test_an_overrun_deadline_is_named():
    late = ok_call(7, done_s=7 * 0.01 + 1.0 + 0.3)
    assert_broken(invariants.answered_in_time([*CALLS[:6], late]), late, "0.300 s after its deadline")


def test_an_answer_within_the_slack_is_in_time():
    assert invariants.answered_in_time([ok_call(1, done_s=0.01 + 1.2)]).verdict is Verdict.HELD


def test_a_duplicate_effect_names_its_operation():
    finding = invariants.at_most_one_effect([*LEDGER, charged(9, sequence=51)])
    assert finding.verdict is Verdict.BROKEN
    assert [offender.operation for offender in finding.offenders] == ["op-9"]


def test_a_success_that_is_not_in_the_ledger_is_named():
    finding = invariants.answers_match_ledger(
        CALLS, [entry for entry in LEDGER if entry.operation != "op-13"]
    )
    assert_broken(finding, CALLS[12], "answered OK and is not in the ledger")


def test_a_refusal_that_is_in_the_ledger_is_named():
    call = refused(51)
    finding = invariants.answers_match_ledger([*CALLS, call], [*LEDGER, charged(51)])
    assert_broken(finding, call, "refused with RESOURCE_EXHAUSTED and is in the ledger")


@pytest.mark.parametrize("in_ledger", [True, False])
def test_an_unknown_outcome_may_go_either_way(in_ledger):
    unknown = ok_call(51, code="UNKNOWN", outcome=Outcome.UNKNOWN)
    ledger = [*LEDGER, charged(51)] if in_ledger else LEDGER
    assert invariants.answers_match_ledger([*CALLS, unknown], ledger).verdict is Verdict.HELD


def test_a_refused_first_try_is_no_lie_when_a_later_try_succeeded():
    tries = [refused(1), ok_call(1, id=99, client_try=2)]
    assert invariants.answers_match_ledger(tries, [charged(1)]).verdict is Verdict.HELD


def test_a_lost_call_breaks_conservation():
    finding = invariants.all_accounted_for(50, CALLS[:-1])
    assert finding.verdict is Verdict.BROKEN
    assert "50 planned, 49 recorded" in finding.detail


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"trace_id": ""}, "no trace id"),
        ({"code": "UNAVAILABLE", "origin": "relay", "reason": None}, "without a reason"),
        ({"outcome": Outcome.UNSENT}, "could not send"),
    ],
)
def test_a_call_that_cannot_be_accounted_for_is_named(changes, what):
    call = ok_call(50, **changes)
    assert_broken(invariants.all_accounted_for(50, [*CALLS[:49], call]), call, what)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"reason": None}, "without a reason"),
        ({"pushback_ms": None}, "without saying when to return"),
        ({"done_s": 5.0}, "refused only after"),
    ],
)
def test_a_useless_refusal_is_named(changes, what):
    call = refused(2, **changes)
    assert_broken(invariants.refusals_are_useful([refused(1), call], fast_s=0.1), call, what)


def test_nothing_shed_proves_nothing():
    assert invariants.refusals_are_useful(CALLS, fast_s=0.1).verdict is Verdict.COULD_NOT_TELL


def failing_share(total, failures):
    return [ok_call(n) if n > failures else ok_call(n, code="UNAVAILABLE") for n in range(1, total + 1)]


@pytest.mark.parametrize(
    ("failures", "verdict"), [(8, Verdict.HELD), (27, Verdict.BROKEN), (0, Verdict.HELD)]
)
def test_success_is_held_against_the_binomial_interval(failures, verdict):
    """Of 1,000 calls at 30 % and four attempts 8 fail; with three attempts it would be 27."""
    finding = invariants.success_as_predicted(failing_share(1000, failures), 0.3, 4, minimum=900)
    assert finding.verdict is verdict, finding
    assert finding.expected == pytest.approx(0.9919)


@pytest.mark.parametrize(
    ("attempts", "verdict"), [(1417, Verdict.HELD), (1000, Verdict.BROKEN), (2000, Verdict.BROKEN)]
)
def test_load_is_held_against_theory_on_both_sides(attempts, verdict):
    assert invariants.load_as_predicted(attempts, 1000, 0.3, 4, minimum=900).verdict is verdict


def test_too_little_traffic_is_could_not_tell_and_never_held():
    findings = [
        invariants.success_as_predicted(CALLS, 0.0, 4, minimum=51),
        invariants.load_as_predicted(50, 50, 0.0, 4, minimum=51),
        invariants.answered_in_time([]),
        invariants.at_most_one_effect([]),
        invariants.answers_match_ledger([], []),
        invariants.all_accounted_for(0, []),
        invariants.retries_within_budget(0, 0, 0.2, 10),
        invariants.retries_within_budget(10, 50, 0.2, 10),
        invariants.attempts_agree([], 0),
        invariants.fault_did_bite("it hurts", 0),
    ]
    assert {finding.verdict for finding in findings} == {Verdict.COULD_NOT_TELL}, findings


def test_a_retry_storm_breaks_the_budget():
    finding = invariants.retries_within_budget(attempts=71, calls_count=50, ratio=0.2, burst=10)
    assert finding.verdict is Verdict.BROKEN
    assert "21 retries for 50 calls, 20 allowed" in finding.detail


def test_attempts_that_arrive_uncounted_are_noticed():
    assert invariants.attempts_agree(CALLS, 51).verdict is Verdict.BROKEN


def test_duplicates_count_charges_beyond_the_first():
    assert invariants.duplicates([charged(1), charged(1, 2), charged(1, 3), charged(4)]) == 2


def test_a_finding_shows_some_offenders_and_counts_all():
    finding = invariants.answers_match_ledger(CALLS, [])
    assert len(finding.offenders) == OFFENDERS_SHOWN_MAX
    assert finding.offender_count == 50


def test_broken_beats_could_not_tell_beats_held_and_nothing_is_no_proof():
    held = invariants.answered_in_time(CALLS)
    unsure = invariants.answered_in_time([])
    broken = invariants.all_accounted_for(51, CALLS)
    assert worst([held, unsure, broken]) is Verdict.BROKEN
    assert worst([held, unsure]) is Verdict.COULD_NOT_TELL
    assert worst([held]) is Verdict.HELD
    assert worst([]) is Verdict.COULD_NOT_TELL
