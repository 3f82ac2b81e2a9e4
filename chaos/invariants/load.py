"""What the relay adds to the load (I4), and how it bears more than fits (I5)."""

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import islice, pairwise

from chaos.findings import OFFENDERS_SHOWN_MAX, Finding, Verdict, offender
from chaos.history import CallRecord, LedgerEntry, LoadSample
from chaos.selection import chosen
from chaos.traces import SpanRecord, Traces
from chaos.tracing import CLIENT_SERVICE_NAME

STORM_WINDOW_S = 1.0
Calls = Collection[CallRecord]


def no_storm(calls: Calls, ratio: float, burst: float, window_s: float = STORM_WINDOW_S) -> Finding:
    """I4: in every window, retries are at most ``ratio`` for each first attempt there, and ``burst``.

    Judged from the callers' side by what must lie in a window for certain: all retries of a call that began
    and ended in it, against every call that can have made its first attempt in it.
    """
    sent = [(call.sent_s, call.done_s, call.attempts or 0) for call in calls if call.sent_s is not None]
    statement = f"in every {window_s:g} s retries stay within {ratio:.0%} of first attempts and {burst:g}"
    begun, ended = sorted(each[0] for each in sent), sorted(each[1] for each in sent)
    retried = sorted((done_s, sent_s, made - 1) for sent_s, done_s, made in sent if made > 1)
    worst_over, worst = 0.0, None
    for low in begun[:: max(1, len(begun) // 2000)]:
        high = low + window_s
        inside = retried[bisect_left(retried, (low,)) : bisect_right(retried, (high, high, 0))]
        retries = sum(more for _, sent_s, more in inside if sent_s >= low)
        # Those that began before the window ends, less those that had ended before it began.
        overlapping = bisect_right(begun, high) - bisect_left(ended, low)
        over = retries - ratio * overlapping - burst
        if over > worst_over:
            worst_over, worst = over, (low, retries, overlapping)
    if worst is None:
        detail = f"{sum(made for _, _, made in sent):,} attempts for {len(sent):,} calls"
        return Finding("I4", statement, Verdict.HELD if sent else Verdict.COULD_NOT_TELL, detail)
    low, retries, overlapping = worst
    guilty = chosen(calls, lambda call: low <= (call.sent_s or 0.0) and call.done_s <= low + window_s)
    most = nlargest(OFFENDERS_SHOWN_MAX, guilty, key=lambda call: call.attempts or 0)
    shown = tuple(offender(call, f"{call.attempts} attempts") for call in most)
    detail = f"{retries} retries for {overlapping} calls in the second from {low:.2f} s on"
    return Finding("I4", statement, Verdict.BROKEN, detail, shown, len(guilty))


def amplification_at_most(
    samples: Sequence[LoadSample], calls: Calls, ratio: float, burst: float, minimum: int
) -> Finding:
    """I4: over the run, at most ``ratio`` attempts arrive at the downstream for each call, and ``burst``."""
    arrived = sum(
        after.calls - before.calls if after.calls >= before.calls else after.calls
        for before, after in pairwise(samples)
    )
    sent = sum(call.sent_s is not None for call in calls)
    statement = f"at most {ratio:g} attempts arrive for each call"
    if sent < minimum or not samples:
        return Finding("I4", statement, Verdict.COULD_NOT_TELL, f"only {sent:,} calls were sent")
    factor = arrived / sent
    verdict = Verdict.HELD if arrived <= ratio * sent + burst else Verdict.BROKEN
    detail = f"{arrived:,} attempts for {sent:,} calls: \N{MULTIPLICATION SIGN}{factor:.3f}"
    return Finding("I4", statement, verdict, detail, measured=factor, expected=ratio, unit="x")


def success_at_least(
    calls: Calls, share: float, minimum: int, of: str = "calls", promise: str = "C01"
) -> Finding:
    """At least ``share`` of the calls succeed; the failed ones are named."""
    statement = f"at least {share:.1%} of {of} succeed"
    if len(calls) < minimum:
        return _too_few(promise, statement, len(calls), minimum)
    failed = chosen(calls, lambda call: not call.ok)
    good = 1 - len(failed) / len(calls)
    detail = f"{good:.2%} of {len(calls):,}"
    if good >= share:
        return Finding(promise, statement, Verdict.HELD, detail, measured=good, expected=share, unit="%")
    shown = tuple(
        offender(call, f"{call.code} {call.reason or ''}".strip())
        for call in islice(failed, OFFENDERS_SHOWN_MAX)
    )
    return Finding(
        promise,
        statement,
        Verdict.BROKEN,
        detail,
        shown,
        len(failed),
        measured=good,
        expected=share,
        unit="%",
    )


def goodput_at_least(
    calls: Calls, *, begin_s: float, end_s: float, capacity_per_s: float, share: float, minimum: int
) -> Finding:
    """I5: answers that came in time, per second from ``begin_s`` to ``end_s``, against the capacity."""
    statement = f"goodput is at least {share:.0%} of the capacity of {capacity_per_s:g} calls/s"
    offered = sum(begin_s <= call.intended_s < end_s for call in calls)
    if offered < minimum:
        return _too_few("I5", statement, offered, minimum)
    good = sum(call.ok and begin_s <= call.done_s < end_s for call in calls)
    goodput = good / (end_s - begin_s)
    part = goodput / capacity_per_s
    detail = f"{goodput:.1f} calls/s ({part:.0%}) of {offered / (end_s - begin_s):.0f} offered"
    verdict = Verdict.HELD if part >= share else Verdict.BROKEN
    return Finding("I5", statement, verdict, detail, measured=part, expected=share, unit="%")


def class_is_served(calls: Calls, criticality: str, share: float, minimum: int) -> Finding:
    """I5: of the calls of one class at least ``share`` succeed, whatever the others do."""
    served = chosen(calls, lambda call: call.criticality == criticality)
    return success_at_least(served, share, minimum, of=f"{criticality} calls", promise="I5")


def little_work_wasted(samples: Sequence[LoadSample], share: float, minimum: int) -> Finding:
    """I5: at most ``share`` of the downstream's work is for callers who are gone or past their deadline."""
    done = sum(max(0, after.effects - before.effects) for before, after in pairwise(samples))
    wasted = sum(max(0, after.wasted - before.wasted) for before, after in pairwise(samples))
    statement = f"at most {share:.0%} of the downstream's work is for nobody"
    if done < minimum:
        return Finding("I5", statement, Verdict.COULD_NOT_TELL, f"only {done:,} pieces of work")
    part = wasted / done
    verdict = Verdict.HELD if part <= share else Verdict.BROKEN
    return Finding(
        "I5", statement, verdict, f"{wasted:,} of {done:,}", measured=part, expected=share, unit="%"
    )


def little_late_work(
    calls: Calls, ledger: Iterable[LedgerEntry], began_unix_ns: int, share: float, minimum: int
) -> Finding:
    """I5: at most ``share`` of the work that was done was done after its caller's last deadline."""
    deadlines: dict[str, float] = {}
    for call in calls:
        if call.sent_s is not None and call.timeout_s is not None:
            latest_s = max(deadlines.get(call.operation, 0.0), call.sent_s + call.timeout_s)
            deadlines[call.operation] = latest_s
    done = late = 0
    for entry in ledger:
        if (deadline_s := deadlines.get(entry.operation)) is not None:
            done += 1
            late += (entry.at_unix_ns - began_unix_ns) / 1e9 > deadline_s
    statement = f"less than {share:.0%} of the downstream's work ends after its caller's deadline"
    if done < minimum:
        return Finding("I5", statement, Verdict.COULD_NOT_TELL, f"only {done:,} pieces of work")
    part = late / done
    verdict = Verdict.HELD if part < share else Verdict.BROKEN
    return Finding("I5", statement, verdict, f"{late:,} of {done:,}", measured=part, expected=share)


def pushback_worked(calls: Calls, share: float, minimum: int) -> Finding:
    """I5: of the tries made when the relay said to, at least ``share`` succeed."""
    told = chosen(calls, lambda call: call.client_try > 1)
    return success_at_least(told, share, minimum, of="retries made as told", promise="I5")


def retries_are_spread(traces: Traces, variation: float, minimum: int) -> Finding:
    """C03: the waits before first retries differ, so that failed calls do not return all at once.

    Full jitter draws them uniformly, whose coefficient of variation is 0.58; without jitter it is nearly 0.
    """
    waits = [wait_s for spans in traces.values() for wait_s in _first_wait(spans)]
    statement = f"waits before a retry vary by at least {variation:.0%} of their mean"
    if len(waits) < minimum:
        return _too_few("C03", statement, len(waits), minimum, "retried traces")
    spread = statistics.pstdev(waits) / (statistics.fmean(waits) or 1.0)
    verdict = Verdict.HELD if spread >= variation else Verdict.BROKEN
    detail = f"{spread:.0%} over {len(waits):,} waits of {statistics.fmean(waits) * 1000:.0f} ms on average"
    return Finding("C03", statement, verdict, detail, measured=spread, expected=variation, unit="%")


def _first_wait(spans: Iterable[SpanRecord]) -> Iterator[float]:
    attempts = sorted(
        (span for span in spans if span.kind == "CLIENT" and span.service != CLIENT_SERVICE_NAME),
        key=lambda span: span.begin_unix_ns,
    )
    if len(attempts) > 1:
        yield max(0, attempts[1].begin_unix_ns - attempts[0].end_unix_ns) / 1e9


def _too_few(promise: str, statement: str, seen: int, minimum: int, what: str = "calls") -> Finding:
    return Finding(
        promise, statement, Verdict.COULD_NOT_TELL, f"only {seen:,} {what}, {minimum:,} are needed"
    )
