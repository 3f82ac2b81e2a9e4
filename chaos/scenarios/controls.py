"""Controls: that the fault of a scenario did its harm. Without it, what held beside it proves nothing.

A control that fails is "could not tell" and never "held".
"""

import math

from chaos import invariants
from chaos.evidence import RECOVERY, STEADY, Evidence
from chaos.findings import Finding, Verdict
from chaos.percentile import percentile_of
from chaos.scenarios.expectations import Expectation, settled


def tail_was_there(beyond_s: float, share: float) -> Expectation:
    """Control: but for the hedges that won, the slowest percent would have been slow."""

    def judge(evidence: Evidence) -> Finding:
        begin_s, end_s = settled(evidence)
        calls = evidence.calls_between(begin_s, end_s)
        samples = evidence.relays_between(begin_s, end_s)
        won = samples[-1].hedges_won - samples[0].hedges_won if samples else 0
        slow = sum(call.latency_s > beyond_s for call in calls)
        what = f"calls took longer than {beyond_s:g} s, or were spared it by a hedge"
        return invariants.fault_did_bite(what, slow + won, math.ceil(share * len(calls)))

    return Expectation(f"{share:.0%} of the calls would be slow but for hedges", judge)


def stays_down(share: float) -> Expectation:
    """The control of a protected scenario: bare, the same fault leaves lasting harm."""

    def judge(evidence: Evidence) -> Finding:
        recovery = evidence.phase(RECOVERY)
        return invariants.stays_down(
            evidence.calls, healed_s=evidence.struck.end_s, until_s=recovery.end_s, share=share
        )

    return Expectation(f"bare, at most {share:.0%} succeed even after the fault", judge)


def effects_were_lost_sight_of(minimum: int = 3) -> Expectation:
    """Control: effects and answers were separated; else at most one effect of each proves nothing."""

    def judge(evidence: Evidence) -> Finding:
        repeated = sum((call.attempts or 0) > 1 or call.outcome.value == "unknown" for call in evidence.calls)
        return invariants.fault_did_bite("calls were repeated or left unknown", repeated, minimum)

    return Expectation("the fault did separate effects from answers", judge)


def failures_seen(minimum: int = 5) -> Expectation:
    """Control: the fault did hurt."""

    def judge(evidence: Evidence) -> Finding:
        hurt = sum(not call.ok or (call.attempts or 0) > 1 for call in evidence.calls)
        return invariants.fault_did_bite("calls failed, or needed more than one attempt", hurt, minimum)

    return Expectation("the fault did hurt", judge)


def felt(beyond_s: float = 0.03, minimum: int = 3) -> Expectation:
    """Control: a fault that is waited out cost some calls a wait, if nothing else."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        calls = evidence.calls_between(window.begin_s, window.end_s)
        hurt = sum(not call.ok or (call.attempts or 0) > 1 or call.latency_s > beyond_s for call in calls)
        what = f"calls failed, were retried, or took longer than {beyond_s:g} s"
        return invariants.fault_did_bite(what, hurt, minimum)

    return Expectation("the fault was felt", judge)


def refused_for_want_of_a_store(minimum: int = 10) -> Expectation:
    """Control: the store's fault did bite, and what it cost says so: STORE_UNAVAILABLE, nothing executed.

    That nothing was executed is held against the ledger with all other answers (I2).
    """

    def judge(evidence: Evidence) -> Finding:
        refused = sum(call.reason == "STORE_UNAVAILABLE" for call in evidence.calls)
        return invariants.fault_did_bite("calls were refused as STORE_UNAVAILABLE", refused, minimum)

    return Expectation("what needs the store is refused as STORE_UNAVAILABLE", judge)


def spans_were_dropped() -> Expectation:
    """Control: with the collector down, spans are dropped and counted instead of kept or waited for."""

    def judge(evidence: Evidence) -> Finding:
        dropped = max((sample.spans_dropped for sample in evidence.history.relays), default=0)
        return invariants.fault_did_bite("spans that could not be sent were dropped and counted", dropped)

    return Expectation("spans are dropped and counted", judge)


def slower_by(at_least_ms: float) -> Expectation:
    """Control: a fault that only slows did slow."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        before = [call.latency_s for call in evidence.calls_in(STEADY)]
        struck = [call.latency_s for call in evidence.calls_between(window.begin_s, window.end_s)]
        slower_ms = (percentile_of(struck, 50) - percentile_of(before, 50)) * 1000
        statement = f"the fault slows calls by {at_least_ms:g} ms"
        verdict = Verdict.HELD if slower_ms >= at_least_ms else Verdict.COULD_NOT_TELL
        detail = f"the median by {slower_ms:.1f} ms"
        return Finding(
            "control", statement, verdict, detail, measured=slower_ms, expected=at_least_ms, unit="ms"
        )

    return Expectation(f"calls are slower by {at_least_ms:g} ms", judge)


def slowest_took(at_least_s: float) -> Expectation:
    """Control: while a process was stopped its callers waited."""

    def judge(evidence: Evidence) -> Finding:
        slowest_s = max((call.latency_s for call in evidence.calls), default=0.0)
        statement = f"the slowest call took at least {at_least_s:g} s"
        verdict = Verdict.HELD if slowest_s >= at_least_s else Verdict.COULD_NOT_TELL
        return Finding("control", statement, verdict, f"{slowest_s:.2f} s")

    return Expectation(f"some calls wait for {at_least_s:g} s", judge)
