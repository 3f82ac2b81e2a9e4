"""What a scenario expects besides what is always promised: small values that turn evidence into a finding."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from chaos import invariants
from chaos.evidence import FAULT, RECOVERY, STEADY, Evidence
from chaos.findings import Finding, Verdict, offender
from chaos.findings import judge as judge_all
from chaos.history import CallRecord
from chaos.plan import LIST, CallKind
from chaos.selection import chosen

MINIMUM_CALLS = 30
READS_MIN = 10
SETTLED = 0.45
"""The share of an overload that a limit is given to find itself."""
LIMIT_FOUND_S = 2.0
"""So long after load or capacity changed the limit is the new one."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """A sentence for people, and its judge."""

    words: str
    judge: Callable[[Evidence], Finding]


def success_during_fault(share: float) -> Expectation:
    """Callers hardly notice the fault."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        calls = evidence.calls_between(window.begin_s, window.end_s)
        return invariants.success_at_least(calls, share, MINIMUM_CALLS, of="calls during the fault")

    return Expectation(f"at least {share:.1%} succeed during the fault", judge)


def success_throughout(share: float) -> Expectation:
    """Of all calls of the run."""

    def judge(evidence: Evidence) -> Finding:
        calls = evidence.calls_in(STEADY, FAULT, RECOVERY)
        return invariants.success_at_least(invariants.final_tries(calls), share, MINIMUM_CALLS)

    return Expectation(f"at least {share:.1%} of all calls succeed", judge)


def goodput(capacity_per_s: float, share: float, settled: float = SETTLED) -> Expectation:
    """Goodput near capacity in the fault, ``settled`` of its time given for the limit to be found."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        begin_s = window.begin_s + settled * (window.end_s - window.begin_s)
        return invariants.goodput_at_least(
            evidence.calls,
            begin_s=begin_s,
            end_s=window.end_s,
            capacity_per_s=capacity_per_s,
            share=share,
            minimum=MINIMUM_CALLS,
        )

    return Expectation(f"goodput of at least {share:.0%} of {capacity_per_s:g} calls/s", judge)


def settled(evidence: Evidence) -> tuple[float, float]:
    """From when to when a fault is judged that a limit or an estimate must first get to know."""
    window = evidence.struck
    return window.begin_s + SETTLED * (window.end_s - window.begin_s), window.end_s


def found_goodput(capacity_per_s: float, share: float, lowered_per_s: float = 0.0) -> Expectation:
    """Goodput near capacity under a flood, from `LIMIT_FOUND_S` after each change on; while a fault of the
    capacity lasts, that is ``lowered_per_s``. Of the stretches between two changes the worst is told."""

    def judge(evidence: Evidence) -> Finding:
        findings = [
            invariants.goodput_at_least(
                evidence.calls,
                begin_s=begin_s + LIMIT_FOUND_S,
                end_s=end_s,
                capacity_per_s=able_per_s,
                share=share,
                minimum=MINIMUM_CALLS,
            )
            for begin_s, end_s, able_per_s in _stretches(evidence, capacity_per_s, lowered_per_s)
        ]
        return max(findings, key=lambda found: (BADNESS.index(found.verdict), -(found.measured or 0.0)))

    words = f"goodput of at least {share:.0%} of the capacity, {LIMIT_FOUND_S:g} s after each change of it"
    return Expectation(words, judge)


BADNESS = (Verdict.HELD, Verdict.COULD_NOT_TELL, Verdict.BROKEN)


def _stretches(
    evidence: Evidence, usual_per_s: float, lowered_per_s: float
) -> Iterator[tuple[float, float, float]]:
    """When the flood began, until the capacity changed, until it changed again, until the flood ended; and
    the capacity meanwhile."""
    windows = evidence.history.faults
    flood = next(window for window in windows if "usual traffic" in window.title)
    lowered = next((window for window in windows if window is not flood), None)
    if lowered is None:
        yield flood.begin_s, flood.end_s, usual_per_s
    else:
        yield flood.begin_s, lowered.begin_s, usual_per_s
        yield lowered.begin_s, lowered.end_s, lowered_per_s
        yield lowered.end_s, flood.end_s, usual_per_s


def little_late_work(share: float) -> Expectation:
    """The downstream works for those who still wait, in the whole run."""

    def judge(evidence: Evidence) -> Finding:
        history = evidence.history
        return invariants.little_late_work(
            evidence.calls, history.ledger, history.head.began_unix_ns, share, MINIMUM_CALLS
        )

    return Expectation(f"less than {share:.0%} of the work ends after its caller's deadline", judge)


def clients_served(noisy: str, share: float) -> Expectation:
    """What one client does costs the others next to nothing, and is told to stop itself."""

    def judge(evidence: Evidence) -> Finding:
        calls = evidence.calls_in(FAULT)
        others = [call for call in calls if call.client != noisy]
        found = invariants.success_at_least(
            others, share, MINIMUM_CALLS, of="the other clients' calls", promise="I5"
        )
        refused = sum(call.reason == "CLIENT_QUOTA" for call in calls if call.client == noisy)
        return replace(found, detail=f"{found.detail}; of {noisy} {refused:,} refused for its quota")

    return Expectation(f"at least {share:.1%} of the other clients' calls succeed", judge)


def class_served(criticality: str, share: float) -> Expectation:
    """A class keeps its service in the flood."""

    def judge(evidence: Evidence) -> Finding:
        calls = evidence.calls_in(FAULT)
        return invariants.class_is_served(calls, criticality, share, MINIMUM_CALLS)

    return Expectation(f"at least {share:.1%} of {criticality} calls succeed", judge)


def method_served(kind: CallKind, share: float) -> Expectation:
    """A method keeps its service while another one has trouble."""
    name = kind.method.rpartition("/")[2]

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        calls = [
            call
            for call in evidence.calls_between(window.begin_s, window.end_s)
            if call.method == kind.method
        ]
        return invariants.success_at_least(calls, share, MINIMUM_CALLS, of=f"{name} calls", promise="C19")

    return Expectation(f"at least {share:.1%} of {name} calls succeed during the fault", judge)


def useful_refusals(fast_s: float) -> Expectation:
    """What is refused is told why and when to return, at once."""

    def judge(evidence: Evidence) -> Finding:
        return invariants.refusals_are_useful(evidence.calls, fast_s, minimum=10)

    return Expectation(f"refusals are typed, timed and come within {fast_s:g} s", judge)


def fast_refusals(within_s: float, share: float = 0.9) -> Expectation:
    """Most of what is refused is refused at the door, and not after a wait."""

    def judge(evidence: Evidence) -> Finding:
        refused = chosen(evidence.calls, lambda call: call.code == "RESOURCE_EXHAUSTED")
        statement = f"{share:.0%} of refusals come within {within_s:g} s"
        return _ended_within("I5", statement, refused, within_s, share, what="refusals")

    return Expectation(f"{share:.0%} of refusals come within {within_s:g} s", judge)


def amplification(ratio: float, burst: float = 20) -> Expectation:
    """Attempts that arrive for each call, over the run."""

    def judge(evidence: Evidence) -> Finding:
        return invariants.amplification_at_most(
            evidence.history.loads, evidence.calls, ratio, burst, MINIMUM_CALLS
        )

    return Expectation(f"at most {ratio:g} attempts arrive for each call", judge)


def arrivals_bounded(ratio: float, burst: float) -> Expectation:
    """What arrives during the fault stays in proportion in every second of it, and not only on average."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        samples = evidence.loads_between(window.begin_s, window.end_s)
        return invariants.arrivals_within_budget(samples, evidence.calls, ratio, burst, MINIMUM_CALLS)

    return Expectation(f"in every second at most {1 + ratio:g} attempts arrive for each call", judge)


def tail_within(within_s: float) -> Expectation:
    """The slowest percent of the calls, once the relay has learned what is slow."""

    def judge(evidence: Evidence) -> Finding:
        begin_s, end_s = settled(evidence)
        return invariants.tail_at_most(evidence.calls_between(begin_s, end_s), within_s, MINIMUM_CALLS)

    return Expectation(f"p99 is at most {within_s * 1000:g} ms during the fault", judge)


def hedges_pay(share: float, burst: float) -> Expectation:
    """The load that hedges add, by the relay's own count."""

    def judge(evidence: Evidence) -> Finding:
        samples = evidence.relays_between(*settled(evidence))
        return invariants.hedges_at_most(samples, share, burst, MINIMUM_CALLS)

    return Expectation(f"hedges add at most {share:.0%} to the load", judge)


def no_hedge_unpaid(tokens_out: float) -> Expectation:
    """Hedges end where the budget does."""

    def judge(evidence: Evidence) -> Finding:
        samples = evidence.relays_between(*settled(evidence))
        return invariants.no_hedge_without_budget(samples, tokens_out, minimum=2)

    return Expectation("no hedge is made while the budget is out", judge)


def fast_failure(within_s: float, share: float = 0.9) -> Expectation:
    """Callers of a dead upstream are told so soon, instead of waiting for their deadlines."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        middle_s = (window.begin_s + window.end_s) / 2
        failed = chosen(evidence.calls_between(middle_s, window.end_s), lambda call: not call.ok)
        statement = f"{share:.0%} of the failures of a dead upstream are told within {within_s:g} s"
        return _ended_within("C06", statement, failed, within_s, share, what="failures")

    return Expectation(f"{share:.0%} of failures are told within {within_s:g} s", judge)


def quick_during_fault(within_s: float, share: float) -> Expectation:
    """A fault that hangs calls costs callers an attempt's time, and not their deadline."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        calls = evidence.calls_between(window.begin_s, window.end_s)
        statement = f"{share:.1%} of calls during the fault are answered within {within_s:g} s"
        return _ended_within("C03", statement, calls, within_s, share, what="calls")

    return Expectation(f"{share:.1%} are answered within {within_s:g} s during the fault", judge)


def spared(attempts_per_call: float) -> Expectation:
    """A dead upstream is hardly tried any more, once it is known to be dead."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        middle_s = (window.begin_s + window.end_s) / 2
        offered = len(evidence.calls_between(middle_s, window.end_s))
        samples = evidence.loads_between(middle_s, window.end_s)
        statement = f"a dead upstream gets at most {attempts_per_call:g} attempts for each call offered"
        if offered < MINIMUM_CALLS or len(samples) < 2:
            return Finding("C06", statement, Verdict.COULD_NOT_TELL, f"only {offered} calls")
        ratio = (samples[-1].calls - samples[0].calls) / offered
        verdict = Verdict.HELD if ratio <= attempts_per_call else Verdict.BROKEN
        detail = f"{ratio:.2f} for each of {offered:,} calls"
        return Finding(
            "C06", statement, verdict, detail, measured=ratio, expected=attempts_per_call, unit="x"
        )

    return Expectation(f"a dead upstream gets at most {attempts_per_call:g} attempts for each call", judge)


def jittered(variation: float = 0.35) -> Expectation:
    """Those who failed together do not return together."""

    def judge(evidence: Evidence) -> Finding:
        return invariants.retries_are_spread(evidence.traces, variation, minimum=8)

    return Expectation("waits before retries are spread", judge)


def obeyed_pushback(share: float) -> Expectation:
    """Who returns when told to is served."""

    def judge(evidence: Evidence) -> Finding:
        return invariants.pushback_worked(evidence.calls, share, minimum=10)

    return Expectation(f"at least {share:.0%} of retries made as told succeed", judge)


def reads_go_on(share: float = 0.99) -> Expectation:
    """What needs no store does not notice that there is none."""

    def judge(evidence: Evidence) -> Finding:
        window = evidence.struck
        calls = evidence.calls_between(window.begin_s, window.end_s)
        reads = chosen(calls, lambda call: call.method == LIST.method)
        return invariants.success_at_least(reads, share, READS_MIN, of="reads during the fault")

    return Expectation(f"at least {share:.1%} of reads succeed during the fault", judge)


def effects_are_told() -> Expectation:
    """A process that ends in order tells every caller of the work it did."""

    def judge(evidence: Evidence) -> Finding:
        charged = {entry.operation for entry in evidence.history.ledger}
        told = {call.operation for call in evidence.calls if call.ok}
        by_operation = {call.operation: call for call in evidence.calls if call.operation in charged - told}
        untold = (offender(call, f"charged and answered {call.code}") for call in by_operation.values())
        return judge_all("I7", "every effect was told to its caller", len(charged), untold, MINIMUM_CALLS)

    return Expectation("every effect was told to its caller", judge)


def _ended_within(
    invariant: str, statement: str, calls: Collection[CallRecord], within_s: float, share: float, *, what: str
) -> Finding:
    if len(calls) < MINIMUM_CALLS:
        return Finding(invariant, statement, Verdict.COULD_NOT_TELL, f"only {len(calls)} {what}")
    quick = sum(call.latency_s <= within_s for call in calls) / len(calls)
    verdict = Verdict.HELD if quick >= share else Verdict.BROKEN
    detail = f"{quick:.2%} of {len(calls):,}"
    return Finding(invariant, statement, verdict, detail, measured=quick, expected=share, unit="%")
