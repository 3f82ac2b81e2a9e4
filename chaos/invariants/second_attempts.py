"""What retries and hedges cost the downstream, counted where they arrive, and buy the callers (I4, C07)."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from chaos.findings import Finding, Verdict
from chaos.history import CallRecord, LoadSample, RelaySample
from chaos.percentile import percentile_of

WINDOW_S = 1.0
Calls = Collection[CallRecord]


@dataclass(frozen=True, slots=True)
class Second:
    """What arrived in one window, and the calls that were out in it."""

    begin_s: float
    arrived: int
    calls: int


def seconds(samples: Sequence[LoadSample], calls: Calls, window_s: float = WINDOW_S) -> list[Second]:
    """From each look at the downstream on, the shortest window of at least ``window_s`` that looks bound.

    ``calls`` of a window are all that can have made an attempt in it: sent before it ended and not answered
    before it began. Windows in which the downstream started anew are left out.
    """
    out = [call for call in calls if call.sent_s is not None]
    begun = sorted(call.sent_s or 0.0 for call in out)
    ended = sorted(call.done_s for call in out)
    moments = [sample.at_s for sample in samples]
    found = []
    for first in samples:
        last = bisect_left(moments, first.at_s + window_s)
        if last == len(samples):
            break
        arrived = samples[last].calls - first.calls
        if arrived >= 0:
            those = bisect_right(begun, samples[last].at_s) - bisect_left(ended, first.at_s)
            found.append(Second(first.at_s, arrived, those))
    return found


def arrivals_within_budget(
    samples: Sequence[LoadSample], calls: Calls, ratio: float, burst: float, minimum: int
) -> Finding:
    """I4: in every second, at most 1 + ``ratio`` attempts arrive for each call then out, and ``burst``."""
    statement = f"in every second at most {1 + ratio:g} attempts arrive for each call, and {burst:g}"
    found = [each for each in seconds(samples, calls) if each.calls >= minimum]
    if not found:
        return Finding("I4", statement, Verdict.COULD_NOT_TELL, f"no second with {minimum} calls")
    worst = max(found, key=lambda each: each.arrived - (1 + ratio) * each.calls)
    over = worst.arrived > (1 + ratio) * worst.calls + burst
    highest = max(each.arrived / each.calls for each in found)
    detail = (
        f"at worst {worst.arrived} for {worst.calls} calls, from {worst.begin_s:.2f} s on; "
        f"at most \N{MULTIPLICATION SIGN}{highest:.2f}"
    )
    verdict = Verdict.BROKEN if over else Verdict.HELD
    return Finding("I4", statement, verdict, detail, measured=highest, expected=1 + ratio)


def tail_at_most(calls: Calls, within_s: float, minimum: int, percentile: float = 99) -> Finding:
    """C07: the ``percentile`` of the answered calls' latency is at most ``within_s``."""
    statement = f"p{percentile:g} is at most {within_s * 1000:g} ms"
    answered = [call.latency_s for call in calls if call.ok]
    if len(answered) < minimum:
        return Finding("C07", statement, Verdict.COULD_NOT_TELL, f"only {len(answered)} calls")
    measured_ms = percentile_of(answered, percentile) * 1000
    verdict = Verdict.HELD if measured_ms <= within_s * 1000 else Verdict.BROKEN
    detail = f"{measured_ms:.0f} ms over {len(answered):,} calls"
    return Finding("C07", statement, verdict, detail, measured=measured_ms, expected=within_s * 1000)


def hedges_at_most(samples: Sequence[RelaySample], share: float, burst: float, minimum: int) -> Finding:
    """C07: hedges are at most ``share`` of the first attempts, and ``burst``; some there must be."""
    statement = f"hedges add at most {share:.0%} to the load (and {burst:g})"
    if len(samples) < 2:
        return Finding("C07", statement, Verdict.COULD_NOT_TELL, "the relay was not looked at")
    calls = samples[-1].received - samples[0].received
    hedges = samples[-1].hedges - samples[0].hedges
    detail = f"{hedges} hedges for {calls:,} calls"
    if calls < minimum or hedges < 1:
        return Finding("C07", statement, Verdict.COULD_NOT_TELL, detail)
    verdict = Verdict.HELD if hedges <= share * calls + burst else Verdict.BROKEN
    return Finding("C07", statement, verdict, detail, measured=hedges / calls, expected=share)


def no_hedge_without_budget(samples: Sequence[RelaySample], tokens_out: float, minimum: int) -> Finding:
    """I4: while fewer than ``tokens_out`` tokens are left, no hedge is started, though some are due."""
    statement = "no hedge is made while the budget is out"
    unpaid = samples[-1].hedges_unpaid - samples[0].hedges_unpaid if samples else 0
    if unpaid < minimum:
        detail = f"only {unpaid} hedges were due and unpaid, {minimum} are needed"
        return Finding("I4", statement, Verdict.COULD_NOT_TELL, detail)
    most = max(sample.budget_tokens for sample in samples)
    made = samples[-1].hedges - samples[0].hedges
    detail = f"{made} made, {unpaid} held back, at most {most:.1f} tokens left"
    if most >= tokens_out:
        return Finding("I4", statement, Verdict.COULD_NOT_TELL, detail)
    return Finding("I4", statement, Verdict.BROKEN if made else Verdict.HELD, detail, measured=float(made))
