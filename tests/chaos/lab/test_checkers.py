"""The checkers checked: planted breaches are reported as broken, with the right call named."""

from dataclasses import replace

import pytest

from chaos import invariants
from chaos.findings import Verdict
from chaos.history import (
    CallRecord,
    FaultWindow,
    LedgerEntry,
    LoadSample,
    Outcome,
    RelaySample,
    since_start,
)
from chaos.observe import cpu_waited_s
from chaos.traces import SpanRecord, failures_are_traced, traces_are_whole

COUNT = 400
RATE = 100.0


def call(number, **changes):
    at_s = number / RATE
    sound = CallRecord(
        id=number,
        phase="fault",
        operation=f"op-{number}",
        method="downstream.v1.PaymentService/Charge",
        intended_s=at_s,
        sent_s=at_s,
        done_s=at_s + 0.01,
        timeout_s=1.0,
        code="OK",
        outcome=Outcome.EXECUTED,
        trace_id=f"{number:032x}",
        attempts=1,
        origin="upstream",
    )
    return replace(sound, **changes)


def failed(number, **changes):
    return call(
        number, **({"code": "UNAVAILABLE", "outcome": Outcome.UNKNOWN, "reason": "BREAKER_OPEN"} | changes)
    )


CALLS = [call(number) for number in range(COUNT)]
LEDGER = [LedgerEntry(number, f"c{number}", f"op-{number}") for number in range(COUNT)]


def look(at_s, **changes):
    sound = RelaySample(
        at_s, at_s, 10, 8, 1, 1, 0, 0, queue_length=0, workers_busy=0, workers=10, attempts=9, retries=0
    )
    return replace(sound, **changes)


def load(at_s, calls, effects=0, wasted=0):
    return LoadSample(at_s, calls, effects, 0, 0, 0, wasted)


def test_a_doubled_effect_names_the_call_and_its_trace():
    finding = invariants.at_most_one_effect([*LEDGER, LedgerEntry(COUNT, "again", "op-7")], CALLS)
    assert finding.verdict is Verdict.BROKEN
    (offender,) = finding.offenders
    assert (offender.call_id, offender.trace_id) == (7, CALLS[7].trace_id)


def test_reads_and_streams_need_not_be_in_the_ledger():
    read = call(COUNT, method="downstream.v1.PaymentService/ListCharges", operation="read")
    assert invariants.answers_match_ledger([*CALLS, read], LEDGER).verdict is Verdict.HELD


def test_a_storm_in_one_second_is_found_and_its_calls_are_named():
    """Over the whole run the retries would pass for 20 %: only the window shows them."""
    storm = [call(number, attempts=2) if 100 <= number < 160 else call(number) for number in range(COUNT)]
    assert invariants.retries_within_budget(COUNT + 60, COUNT, 0.2, 10).verdict is Verdict.HELD
    finding = invariants.no_storm(storm, 0.2, 10)
    assert finding.verdict is Verdict.BROKEN
    assert 100 <= finding.offenders[0].call_id < 160
    assert finding.offenders[0].what == "2 attempts"


def test_retries_within_ratio_and_burst_are_no_storm():
    calm = [call(number, attempts=2 if number % 5 == 0 else 1) for number in range(COUNT)]
    assert invariants.no_storm(calm, 0.2, 10).verdict is Verdict.HELD


def test_attempts_that_arrive_are_counted_across_a_restart():
    samples = [load(0, 100), load(1, 300), load(2, 50), load(3, 450)]
    finding = invariants.amplification_at_most(samples, CALLS, 1.2, 0, 10)
    assert (finding.verdict, finding.measured) == (Verdict.BROKEN, pytest.approx(650 / COUNT))


def test_a_system_that_does_not_return_is_broken_and_one_that_does_says_how_soon():
    down = [call(n) if n < 100 or n >= 200 else failed(n) for n in range(COUNT)]
    back = invariants.recovers(down, healed_s=1.5, within_s=1.0, until_s=4.0, share=0.95)
    assert (back.verdict, back.measured) == (Verdict.HELD, 0.5)
    gone = invariants.recovers(down[:200], healed_s=1.0, within_s=0.5, until_s=2.0, share=0.95)
    assert gone.verdict is Verdict.BROKEN
    assert gone.offenders[0].call_id == 150


def test_too_few_calls_after_the_fault_are_no_proof_of_recovery():
    finding = invariants.recovers(CALLS, healed_s=3.85, within_s=0.0, until_s=4.0, share=0.95)
    assert finding.verdict is Verdict.COULD_NOT_TELL


def test_books_that_do_not_balance_are_found():
    finding = invariants.books_balance([look(1.0), look(2.0, ok=9)])
    assert finding.verdict is Verdict.BROKEN
    assert "at 2.00 s" in finding.offenders[0].what


@pytest.mark.parametrize("held", [{"in_flight": 1}, {"queue_length": 2}, {"workers_busy": 1}])
def test_work_left_in_the_relay_after_the_last_answer_is_found(held):
    assert invariants.nothing_left_in_flight([look(5.0, **held)], 4.0).verdict is Verdict.BROKEN
    assert invariants.nothing_left_in_flight([look(5.0)], 4.0).verdict is Verdict.HELD
    assert invariants.nothing_left_in_flight([look(3.0)], 4.0).verdict is Verdict.COULD_NOT_TELL


def test_a_torn_stream_that_ended_ok_is_named():
    torn = call(3, messages=4, messages_due=5)
    finding = invariants.streams_are_whole([call(1, messages=5, messages_due=5), torn])
    assert (finding.verdict, finding.offenders[0].call_id) == (Verdict.BROKEN, 3)


def test_goodput_counts_answers_in_time_against_the_capacity():
    half = [call(n) if n % 2 else failed(n) for n in range(COUNT)]
    options = {"begin_s": 0.0, "end_s": 4.0, "capacity_per_s": 100.0, "minimum": 10}
    assert invariants.goodput_at_least(half, share=0.9, **options).verdict is Verdict.BROKEN
    assert invariants.goodput_at_least(half, share=0.45, **options).verdict is Verdict.HELD


def test_a_starved_class_is_found():
    mixed = [
        call(n, criticality="SHEDDABLE") if n % 2 else failed(n, criticality="CRITICAL") for n in range(COUNT)
    ]
    assert invariants.class_is_served(mixed, "CRITICAL", 0.99, 10).verdict is Verdict.BROKEN
    assert invariants.class_is_served(mixed, "SHEDDABLE", 0.99, 10).verdict is Verdict.HELD


def test_work_for_nobody_is_a_share_of_all_work():
    samples = [load(0, 0), load(1, 100, effects=100, wasted=30)]
    assert invariants.little_work_wasted(samples, 0.1, 10).verdict is Verdict.BROKEN
    assert invariants.little_work_wasted(samples, 0.4, 10).verdict is Verdict.HELD


def attempt(trace, number, begin_ms, end_ms):
    return SpanRecord(
        trace, f"{trace}-{number}", "", "Charge", "relay", "CLIENT", begin_ms * 10**6, end_ms * 10**6, False
    )


def test_retries_that_come_back_in_a_wave_are_told_from_spread_ones():
    wave = {f"t{n}": [attempt(f"t{n}", 1, 0, 10), attempt(f"t{n}", 2, 60, 70)] for n in range(20)}
    spread = {f"t{n}": [attempt(f"t{n}", 1, 0, 10), attempt(f"t{n}", 2, 10 + 5 * n, 200)] for n in range(20)}
    assert invariants.retries_are_spread(wave, 0.25, 8).verdict is Verdict.BROKEN
    assert invariants.retries_are_spread(spread, 0.25, 8).verdict is Verdict.HELD


def test_a_missing_trace_names_the_call_unless_its_process_was_killed_with_it():
    traced = [call(n, traced=True) for n in range(3)]
    finding = traces_are_whole(traced, {})
    assert finding.verdict is Verdict.BROKEN
    assert [offender.call_id for offender in finding.offenders] == [0, 1, 2]
    assert traces_are_whole(traced, {}, lost_between=[(0.0, 1.0)]).verdict is Verdict.COULD_NOT_TELL


def test_an_answer_of_the_upstream_without_a_span_of_the_upstream_is_a_gap():
    trace = CALLS[1].trace_id
    root = SpanRecord(trace, "a", "", "Charge", "chaos-client", "CLIENT", 0, 1, False)
    server = SpanRecord(trace, "b", "a", "Charge", "relay", "SERVER", 0, 1, False)
    finding = traces_are_whole([call(1, traced=True)], {trace: [root, server]})
    assert "ends at the relay" in finding.offenders[0].what


def server_span(trace, afterwards):
    told = {"relay.sampled_afterwards": True} if afterwards else {}
    return SpanRecord(trace, "b", "a", "Charge", "relay", "SERVER", 0, 1, True, told)


def unsampled_failures():
    return [failed(n) if n % 4 == 0 else call(n) for n in range(COUNT)]


def test_a_failure_of_an_unsampled_trace_without_a_span_afterwards_is_named():
    calls = unsampled_failures()
    traces = {each.trace_id: [server_span(each.trace_id, True)] for each in calls if not each.ok}
    assert failures_are_traced(calls, traces).verdict is Verdict.HELD
    del traces[calls[8].trace_id]
    finding = failures_are_traced(calls, traces)
    assert finding.verdict is Verdict.BROKEN
    assert [offender.call_id for offender in finding.offenders] == [8]
    assert failures_are_traced(calls, traces, lost_between=[(0.0, 0.1)]).verdict is Verdict.HELD


def test_a_span_that_others_made_is_none_of_the_relays_afterwards():
    calls = unsampled_failures()
    traces = {each.trace_id: [server_span(each.trace_id, False)] for each in calls if not each.ok}
    assert failures_are_traced(calls, traces).verdict is Verdict.BROKEN


def test_failures_that_the_relay_counted_as_left_out_are_excused_and_no_more():
    calls = unsampled_failures()
    count = sum(not each.ok for each in calls)
    assert failures_are_traced(calls, {}, excused_count=count).verdict is Verdict.HELD
    assert failures_are_traced(calls, {}, excused_count=count - 1).offender_count == 1


def test_a_counter_is_added_up_over_the_starts_of_a_process():
    looks = [look(at, uptime_s=up, spans_suppressed=n) for at, up, n in ((1, 1, 5), (2, 2, 9), (3, 0.5, 2))]
    assert since_start(looks, "spans_suppressed") == 11


def test_a_generator_that_lagged_can_tell_nothing():
    lagging = [call(n, sent_s=n / RATE + 0.5) for n in range(COUNT)]
    assert invariants.generator_kept_up(lagging).verdict is Verdict.COULD_NOT_TELL
    assert invariants.generator_kept_up(CALLS).verdict is Verdict.HELD


def test_a_fault_that_was_not_set_and_a_quiet_phase_can_tell_nothing():
    windows = [FaultWindow("f", "fault", 0, 1)]
    assert invariants.faults_were_set(windows, 2).verdict is Verdict.COULD_NOT_TELL
    assert invariants.enough_traffic({"steady": 100, "fault": 3}, 12).verdict is Verdict.COULD_NOT_TELL


def test_a_machine_without_room_excuses_what_hangs_on_time_and_no_doubled_effect():
    slow = [LoadSample(n / 10, 0, 0, 0, 0, 0, took_s=0.3) for n in range(20)]
    quick = [LoadSample(n / 10, 0, 0, 0, 0, 0, took_s=0.01) for n in range(20)]
    assert invariants.machine_kept_up(slow, []).verdict is Verdict.COULD_NOT_TELL
    assert invariants.machine_kept_up(quick, []).verdict is Verdict.HELD
    stopped = [FaultWindow("f", "downstream stopped (SIGSTOP)", 0.0, 1.0)]
    mixed = [*slow[:10], *quick[11:]]
    assert invariants.machine_kept_up(mixed, stopped).verdict is Verdict.HELD


def test_only_a_machine_that_is_full_nearly_all_the_time_is_called_so():
    def run(share):
        return [LoadSample(n / 10, 0, 0, 0, 0, 0, cpu_waited_s=100.0 + share * n / 10) for n in range(20)]

    assert invariants.machine_was_full(run(0.95)) == pytest.approx(0.95)
    assert invariants.machine_was_full(run(0.6)) is None
    assert invariants.machine_was_full([replace(each, cpu_waited_s=0.0) for each in run(0.95)]) is None


def test_pressure_is_read_where_the_machine_tells_it(tmp_path):
    told = tmp_path / "cpu"
    told.write_text("some avg10=1.00 avg60=2.00 avg300=3.00 total=2500000\nfull avg10=0.00 total=0\n")
    assert cpu_waited_s(told) == 2.5
    assert cpu_waited_s(tmp_path / "none") == 0.0


def test_a_refusal_without_a_reason_is_named_unless_the_client_lost_it_with_its_connection():
    silent = failed(7, origin="relay", reason=None)
    calls = [*CALLS[:7], silent, *CALLS[8:]]
    assert invariants.all_accounted_for(COUNT, calls).offenders[0].call_id == 7
    calls[7] = replace(silent, message="Stream removed (Socket closed)")
    assert invariants.all_accounted_for(COUNT, calls).verdict is Verdict.HELD


@pytest.mark.parametrize("status", ["replayed", "coalesced"])
def test_an_answer_that_was_given_to_another_call_needs_no_attempt_of_its_own(status):
    trace = CALLS[1].trace_id
    root = SpanRecord(trace, "a", "", "Charge", "chaos-client", "CLIENT", 0, 1, False)
    server = SpanRecord(trace, "b", "a", "Charge", "relay", "SERVER", 0, 1, False)
    replayed = call(1, traced=True, idempotency=status)
    assert traces_are_whole([replayed], {trace: [root, server]}).verdict is Verdict.HELD


def arriving(per_second):
    """Looks at a downstream that gets so many attempts in each second, ten looks a second."""
    totals = [0.0]
    for rate in per_second:
        totals += [totals[-1] + (step + 1) * rate / 10 for step in range(10)]
    return [LoadSample(number / 10, round(total), 0, 0, 0, 0) for number, total in enumerate(totals)]


def test_a_second_of_too_many_arrivals_is_found_though_the_whole_run_is_within_bounds():
    calm, stormy = arriving([RATE] * 4), arriving([RATE, 0.5 * RATE, 1.6 * RATE, RATE])
    assert invariants.arrivals_within_budget(calm, CALLS, 0.1, 10, 30).verdict is Verdict.HELD
    finding = invariants.arrivals_within_budget(stormy, CALLS, 0.1, 10, 30)
    assert finding.verdict is Verdict.BROKEN
    assert finding.measured > 1.4
    assert "from 2.00 s on" in finding.detail
    assert invariants.amplification_at_most(stormy, CALLS, 1.1, 10, 30).verdict is Verdict.HELD


def test_a_downstream_that_starts_anew_has_no_storm_and_too_few_calls_tell_nothing():
    before, after = arriving([RATE] * 2), arriving([RATE] * 2)
    restarted = [*before, *(replace(sample, at_s=sample.at_s + 2.1) for sample in after)]
    assert invariants.arrivals_within_budget(restarted, CALLS, 0.1, 10, 30).verdict is Verdict.HELD
    assert invariants.arrivals_within_budget(before, CALLS[:9], 0.1, 10, 30).verdict is Verdict.COULD_NOT_TELL


def test_the_tail_and_the_load_of_hedges_are_held_against_their_bounds():
    slow = [replace(each, done_s=each.intended_s + (0.6 if each.id % 50 == 0 else 0.02)) for each in CALLS]
    assert invariants.tail_at_most(slow, 0.3, 30).verdict is Verdict.BROKEN
    assert invariants.tail_at_most(CALLS, 0.3, 30).verdict is Verdict.HELD
    looks = [look(0.0, received=0, hedges=0), look(4.0, received=400, hedges=22)]
    assert invariants.hedges_at_most(looks, 0.05, 2, 30).verdict is Verdict.HELD
    assert invariants.hedges_at_most(looks, 0.05, 1, 30).verdict is Verdict.BROKEN
    none = [looks[0], replace(looks[1], hedges=0)]
    assert invariants.hedges_at_most(none, 0.05, 2, 30).verdict is Verdict.COULD_NOT_TELL


def test_a_hedge_that_nobody_paid_for_is_noticed():
    out = [look(0.0, budget_tokens=0.5), look(1.0, budget_tokens=0.9, hedges_unpaid=9)]
    assert invariants.no_hedge_without_budget(out, 3.0, 5).verdict is Verdict.HELD
    made = [out[0], replace(out[1], hedges=1)]
    assert invariants.no_hedge_without_budget(made, 3.0, 5).verdict is Verdict.BROKEN
    rich = [out[0], replace(made[1], budget_tokens=3.5)]
    assert invariants.no_hedge_without_budget(rich, 3.0, 5).verdict is Verdict.COULD_NOT_TELL
