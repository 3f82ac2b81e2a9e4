"""The judges of an overload: work done too late, goodput stretch by stretch, one client beside the others."""

from itertools import chain

from chaos import invariants
from chaos.evidence import Evidence
from chaos.findings import Verdict
from chaos.history import CallRecord, FaultWindow, History, LedgerEntry, Outcome, Phase, RunHead
from chaos.scenarios.expectations import LIMIT_FOUND_S, clients_served, found_goodput

BEGAN_UNIX_NS = 5 * 10**18
TIMEOUT_S = 1.0


def call(number, at_s, *, ok=True, client=None, reason=None):
    return CallRecord(
        id=number,
        phase="fault",
        operation=f"op-{number}",
        method="s/M",
        intended_s=at_s,
        sent_s=at_s,
        done_s=at_s + 0.01,
        timeout_s=TIMEOUT_S,
        code="OK" if ok else "RESOURCE_EXHAUSTED",
        outcome=Outcome.EXECUTED if ok else Outcome.NOT_EXECUTED,
        trace_id="t",
        client=client,
        reason=reason,
    )


def charge(number, at_s):
    return LedgerEntry(number, f"c{number}", f"op-{number}", None, BEGAN_UNIX_NS + round(at_s * 1e9))


def evidence(calls, *faults):
    head = RunHead("overload", 1, "embedded", BEGAN_UNIX_NS)
    history = History(head, tuple(calls), (Phase("fault", "fault", 0.0, 30.0),), faults)
    return Evidence(history, {}, len(calls), len(faults), 30.0)


def test_work_is_late_when_it_ends_after_the_deadline_of_its_caller():
    calls = [call(number, number * 0.1) for number in range(100)]
    late = [charge(each.id, each.sent_s + TIMEOUT_S + (0.01 if each.id < 2 else -0.01)) for each in calls]
    judged = invariants.little_late_work(calls, late, BEGAN_UNIX_NS, 0.01, 30)
    assert (judged.verdict, judged.measured) == (Verdict.BROKEN, 0.02)
    assert invariants.little_late_work(calls, late, BEGAN_UNIX_NS, 0.03, 30).verdict is Verdict.HELD
    assert (
        invariants.little_late_work(calls, late[:9], BEGAN_UNIX_NS, 0.03, 30).verdict
        is Verdict.COULD_NOT_TELL
    )


FLOOD = FaultWindow("fault-0", "5 times the usual traffic", 0.0, 30.0)
DROP = FaultWindow("fault-1", "capacity 30 calls/s", 10.0, 20.0)


def steady(since_s, until_s, per_s):
    count = round((until_s - since_s) * per_s)
    return [since_s + (number + 0.5) / per_s for number in range(count)]


def calls_at(*times):
    return [call(number, at_s) for number, at_s in enumerate(chain(*times))]


def test_goodput_is_held_against_the_capacity_of_the_moment():
    judge = found_goodput(90.0, 0.95, 30.0).judge
    good = calls_at(steady(0, 10, 90), steady(10, 20, 30), steady(20, 30, 90))
    assert judge(evidence(good, FLOOD, DROP)).verdict is Verdict.HELD
    for spoiled in (
        calls_at(steady(0, 10, 80), steady(10, 20, 30), steady(20, 30, 90)),
        calls_at(steady(0, 10, 90), steady(10, 20, 26), steady(20, 30, 90)),
        calls_at(steady(0, 10, 90), steady(10, 20, 30), steady(20, 30, 80)),
    ):
        assert judge(evidence(spoiled, FLOOD, DROP)).verdict is Verdict.BROKEN


def test_a_limit_has_two_seconds_to_be_found_and_no_more():
    judge = found_goodput(90.0, 0.95, 30.0).judge
    later = [10.0 + LIMIT_FOUND_S, 20.0 + LIMIT_FOUND_S]
    found = calls_at(steady(2, 10, 90), steady(later[0], 20, 30), steady(later[1], 30, 90))
    assert judge(evidence(found, FLOOD, DROP)).verdict is Verdict.HELD
    slowly = calls_at(steady(2, 10, 90), steady(later[0] + 1, 20, 30), steady(later[1], 30, 90))
    assert judge(evidence(slowly, FLOOD, DROP)).verdict is Verdict.BROKEN


def test_a_noisy_client_is_judged_by_what_it_costs_the_others():
    noisy = [call(number, 1.0, ok=False, client="noisy", reason="CLIENT_QUOTA") for number in range(500)]
    shop = [call(500 + number, 1.0, ok=number >= 4, client="shop") for number in range(100)]
    assert clients_served("noisy", 0.95).judge(evidence([*noisy, *shop], FLOOD)).verdict is Verdict.HELD
    assert clients_served("noisy", 0.97).judge(evidence([*noisy, *shop], FLOOD)).verdict is Verdict.BROKEN
