"""What one way made of the traffic, in the numbers of the table. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from chaos import invariants
from chaos.evidence import RECOVERY, STEADY, Evidence
from chaos.findings import Finding, Verdict
from chaos.history import CallRecord
from chaos.invariants.recovery import time_to_recover
from chaos.invariants.second_attempts import seconds
from chaos.percentile import percentile_of
from chaos.runner.judge import RECOVERY_SHARE
from chaos.scenarios.expectations import settled

CLEAN_S = 1.0
"""What is bad so shortly before the end has not come back."""
CALLS_IN_A_SECOND_MIN = 10
"""A second with fewer calls says nothing of attempts per call."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A column. None: it could not be told."""

    goodput_per_s: float
    """Calls answered OK in time, in the later part of the fault."""
    success: float
    """The share of operations that succeeded in the end, of those begun during the fault."""
    p99_ms: float | None
    """Of the calls that were answered OK during the fault."""
    attempts_per_call: float | None
    """What arrived at the downstream for each call offered during the fault."""
    attempts_worst_second: float | None
    """The same in the worst second."""
    attempts_per_first: float | None
    """By what stands before the downstream: all attempts over first attempts, during the fault."""
    late_work: float | None
    """The share of the downstream's work, from the fault on, whose caller was gone or too late."""
    recovery_s: float | None
    """From the end of the fault until the last quarter of a second with too few successes; None: not back."""
    goodput_after: float | None
    """Goodput for each operation offered, after the time given for recovery, over that before the fault."""
    critical: float | None
    """The success of calls of class CRITICAL during the fault; None where classes play no part."""
    held: int
    broken: tuple[str, ...]
    """Statements with their numbers."""
    untold: tuple[str, ...]
    """Controls that did not hold: with one of them, what hangs on time is nobody's fault."""


def measure(evidence: Evidence, findings: Sequence[Finding], within_s: float) -> Measured:
    """The numbers of one run; ``within_s`` is how long its recovery may take."""
    struck = evidence.struck
    until_s = evidence.phase(RECOVERY).end_s
    begin_s, end_s = settled(evidence)
    during = evidence.calls_between(struck.begin_s, struck.end_s)
    after_s = struck.end_s + within_s
    before = evidence.phase(STEADY)
    return Measured(
        goodput_per_s=_goodput(evidence, begin_s, end_s),
        success=_share(invariants.final_tries(during)),
        p99_ms=_p99_ms(during),
        attempts_per_call=_attempts_per_call(evidence, during),
        attempts_worst_second=_worst_second(evidence),
        attempts_per_first=_attempts_per_first(evidence),
        late_work=_late_work(evidence, struck.begin_s, until_s),
        recovery_s=_recovery_s(evidence, until_s),
        goodput_after=_ratio(
            _yield(evidence, after_s, until_s), _yield(evidence, before.begin_s, before.end_s)
        ),
        critical=_critical(during),
        held=sum(finding.verdict is Verdict.HELD for finding in findings),
        broken=tuple(
            f"{finding.promise} {finding.statement}: {finding.detail}"
            for finding in findings
            if finding.verdict is Verdict.BROKEN
        ),
        untold=tuple(
            f"{finding.statement}: {finding.detail}"
            for finding in findings
            if finding.promise == "control" and finding.verdict is Verdict.COULD_NOT_TELL
        ),
    )


def _goodput(evidence: Evidence, begin_s: float, end_s: float) -> float:
    good = sum(call.ok and begin_s <= call.done_s < end_s for call in evidence.calls)
    return good / max(end_s - begin_s, 1e-9)


def _yield(evidence: Evidence, begin_s: float, end_s: float) -> float:
    """What was answered OK in the window for each operation begun in it."""
    offered = sum(call.client_try == 1 for call in evidence.calls_between(begin_s, end_s))
    return _goodput(evidence, begin_s, end_s) * (end_s - begin_s) / offered if offered else 0.0


def _share(calls: Collection[CallRecord]) -> float:
    return sum(call.ok for call in calls) / len(calls) if calls else 0.0


def _critical(calls: Collection[CallRecord]) -> float | None:
    classes = {call.criticality for call in calls}
    return _share([call for call in calls if call.criticality == "CRITICAL"]) if len(classes) > 1 else None


def _p99_ms(calls: Collection[CallRecord]) -> float | None:
    answered = [call.latency_s * 1000 for call in calls if call.ok]
    return percentile_of(answered, 99) if answered else None


def _attempts_per_call(evidence: Evidence, during: Collection[CallRecord]) -> float | None:
    samples = evidence.loads_between(evidence.struck.begin_s, evidence.struck.end_s)
    if len(samples) < 2:
        return None
    return _ratio(samples[-1].calls - samples[0].calls, sum(call.sent_s is not None for call in during))


def _worst_second(evidence: Evidence) -> float | None:
    samples = evidence.loads_between(evidence.struck.begin_s, evidence.struck.end_s)
    found = [each for each in seconds(samples, evidence.calls) if each.calls >= CALLS_IN_A_SECOND_MIN]
    return max((each.arrived / each.calls for each in found), default=None)


def _attempts_per_first(evidence: Evidence) -> float | None:
    samples = evidence.relays_between(evidence.struck.begin_s, evidence.struck.end_s)
    if len(samples) < 2:
        return None
    first, last = samples[0], samples[-1]
    attempts = last.attempts - first.attempts
    again = last.retries - first.retries + last.hedges - first.hedges
    return _ratio(attempts, attempts - again)


def _late_work(evidence: Evidence, begin_s: float, end_s: float) -> float | None:
    """Of what was done, each success being one piece of it."""
    samples = evidence.loads_between(begin_s, end_s)
    if len(samples) < 2:
        return None
    wasted = samples[-1].wasted - samples[0].wasted
    return _ratio(wasted, wasted + sum(call.ok and begin_s <= call.done_s < end_s for call in evidence.calls))


def _recovery_s(evidence: Evidence, until_s: float) -> float | None:
    healed_s = evidence.struck.end_s
    took_s = time_to_recover(invariants.final_tries(evidence.calls), healed_s, until_s, RECOVERY_SHARE)
    return took_s if took_s < until_s - healed_s - CLEAN_S else None


def _ratio(above: float, below: float) -> float | None:
    return above / below if below > 0 else None
