"""The verdict of a run: what is always promised, then what the scenario expects. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from chaos import invariants
from chaos.evidence import FAULT, PHASES, RECOVERY, STEADY, Evidence
from chaos.findings import Finding, Verdict, worst
from chaos.history import since_start
from chaos.percentile import percentile_of
from chaos.plan import SUBMIT_METHOD
from chaos.runner.plan import RunConfig
from chaos.traces import failures_are_traced, is_read, traces_are_whole

CALLS_PER_PHASE_MIN = 12
RECOVERY_SHARE = 0.95
STRANGER = "stranger"
"""A tag: what stands in the relay's place keeps no books like a relay's."""
SAFETY = frozenset({"I2", "I3", "I4", "I7"})
"""Promises that no busy machine excuses."""
JOBS_END_S = 15.0
"""How long after the last answer a job may still be under way: a lease to run out, and a few retries."""
SPANS_HELD_S = 2.5
"""How long before its death a killed process may have had spans it had not written yet, and some."""


def judge_run(config: RunConfig, evidence: Evidence) -> tuple[Finding, ...]:
    """Every finding: controls first, then the promises by number, then the scenario's own.

    On a machine that had no room for the run, what hangs on time is no one's fault, and cannot be told.
    """
    room = (
        invariants.generator_kept_up(evidence.calls),
        invariants.machine_kept_up(evidence.history.loads, evidence.history.faults),
    )
    findings = (
        *_controls(evidence),
        *_promises(config, evidence),
        *(expected.judge(evidence) for expected in config.scenario.expects),
    )
    # Of a mutant it is asked whether the lab notices, and not whether the relay is to blame.
    full = None if config.change.name else invariants.machine_was_full(evidence.history.loads)
    if worst(room) is not Verdict.HELD or full is not None:
        share = "" if full is None else f": something waited for a CPU {full:.0%} of the time"
        why = f"the machine was too busy to blame the relay{share}"
        findings = tuple(_excused(finding, why) for finding in findings)
    return (*room, *findings)


def _excused(finding: Finding, why: str) -> Finding:
    if finding.verdict is not Verdict.BROKEN or finding.promise in SAFETY:
        return finding
    detail = f"{finding.detail} ({why})"
    return replace(finding, verdict=Verdict.COULD_NOT_TELL, detail=detail)


def _controls(evidence: Evidence) -> Iterator[Finding]:
    counts = {name: len(evidence.calls_in(name)) for name in PHASES}
    yield invariants.enough_traffic(counts, CALLS_PER_PHASE_MIN)
    yield invariants.faults_were_set(evidence.history.faults, evidence.faults_planned)


def _promises(config: RunConfig, evidence: Evidence) -> Iterator[Finding]:
    scenario, history, calls = config.scenario, evidence.history, evidence.calls
    yield invariants.answered_in_time(calls)
    yield invariants.at_most_one_effect(history.ledger, calls)
    yield invariants.answers_match_ledger(calls, history.ledger)
    if scenario.stack.budget is not None:
        yield invariants.no_storm(calls, *scenario.stack.budget)
    if "bare" not in scenario.tags:
        yield invariants.recovers(
            invariants.final_tries(calls),
            healed_s=evidence.struck.end_s,
            within_s=config.timing.recovers_within_s,
            until_s=evidence.phase(RECOVERY).end_s,
            share=RECOVERY_SHARE,
        )
    yield invariants.all_accounted_for(evidence.planned_count, invariants.final_tries(calls))
    if STRANGER not in scenario.tags:
        yield invariants.books_balance(history.relays)
        yield invariants.nothing_left_in_flight(history.relays, evidence.drained_s)
    if any(call.messages_due is not None for call in calls):
        yield invariants.streams_are_whole(calls)
    if any(call.method == SUBMIT_METHOD for call in calls):
        yield invariants.accepted_jobs_are_kept(calls, history.jobs, history.ledger)
        yield invariants.jobs_add_up(calls, history.jobs, history.ledger)
        yield invariants.jobs_get_done(calls, history.jobs, JOBS_END_S)
    yield _traces(config, evidence)
    if scenario.stack.relays == 1:
        excused = sum(since_start(history.relays, name) for name in ("spans_suppressed", "spans_dropped"))
        deaths = list(_deaths(evidence))
        looked_at = (call for call in calls if is_read(call.trace_id, evidence.traces_one_in))
        yield failures_are_traced(looked_at, evidence.traces, excused, lost_between=deaths)


def _traces(config: RunConfig, evidence: Evidence) -> Finding:
    answered = (
        call
        for call in evidence.calls
        if (call.ok or call.origin is not None) and is_read(call.trace_id, evidence.traces_one_in)
    )
    return traces_are_whole(
        answered,
        evidence.traces,
        lost_between=list(_deaths(evidence)),
        hops=config.scenario.stack.relays,
    )


def _deaths(evidence: Evidence) -> Iterator[tuple[float, float]]:
    """Around each kill -9: whose spans died with the process."""
    for window in evidence.history.faults:
        if window.title.endswith("killed"):
            yield window.begin_s - SPANS_HELD_S, window.end_s


def measures_of(evidence: Evidence) -> dict[str, float]:
    """The run in a few numbers, for programs and for comparing runs."""
    measures: dict[str, float] = {"calls": len(evidence.calls)}
    if evidence.relay_memory_peak_mb is not None:
        measures["relay_memory_peak_mb"] = evidence.relay_memory_peak_mb
    for name in (STEADY, FAULT, RECOVERY):
        calls = evidence.calls_in(name)
        phase = evidence.phase(name)
        latencies_ms = [call.latency_s * 1000 for call in calls if call.ok]
        good = sum(call.ok for call in calls)
        measures |= {
            f"{name}.calls": len(calls),
            f"{name}.success": good / len(calls) if calls else float("nan"),
            f"{name}.goodput_per_s": good / max(phase.end_s - phase.begin_s, 1e-9),
            f"{name}.p50_ms": percentile_of(latencies_ms, 50),
            f"{name}.p99_ms": percentile_of(latencies_ms, 99),
            f"{name}.attempts": sum(call.attempts or 0 for call in calls),
        }
    return {name: round(value, 4) for name, value in measures.items()}
