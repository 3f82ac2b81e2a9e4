"""I6: when the fault ends, service returns by itself, soon, and stays."""

import math
from collections.abc import Collection
from itertools import islice

from chaos.findings import Finding, Verdict, offender
from chaos.history import CallRecord
from chaos.selection import chosen

WINDOW_S = 0.25
MINIMUM_CALLS = 20


def recovers(
    calls: Collection[CallRecord],
    *,
    healed_s: float,
    within_s: float,
    until_s: float,
    share: float,
    minimum: int = MINIMUM_CALLS,
) -> Finding:
    """I6: of the calls meant for ``healed_s + within_s`` to ``until_s``, at least ``share`` succeed.

    ``measured`` is how long after the healing the last bad window of `WINDOW_S` ended, in seconds.
    """
    statement = f"{share:.0%} succeed again {within_s:g} s after the fault"
    settled = chosen(calls, lambda call: healed_s + within_s <= call.intended_s < until_s)
    if len(settled) < minimum:
        detail = f"only {len(settled)} calls after that time, {minimum} are needed"
        return Finding("I6", statement, Verdict.COULD_NOT_TELL, detail)
    failed = chosen(settled, lambda call: not call.ok)
    good = 1 - len(failed) / len(settled)
    took_s = time_to_recover(calls, healed_s, until_s, share)
    detail = f"{good:.2%} of {len(settled):,} calls; back after {took_s:.2f} s"
    if good >= share:
        return Finding("I6", statement, Verdict.HELD, detail, measured=took_s, expected=within_s, unit="s")
    shown = tuple(offender(call, f"{call.code} {call.reason or ''}".strip()) for call in islice(failed, 20))
    return Finding(
        "I6",
        statement,
        Verdict.BROKEN,
        detail,
        shown,
        len(failed),
        measured=took_s,
        expected=within_s,
        unit="s",
    )


def stays_down(calls: Collection[CallRecord], *, healed_s: float, until_s: float, share: float) -> Finding:
    """A control: without the patterns at most ``share`` succeed, also after the fault."""
    statement = f"without the patterns it stays down: at most {share:.0%} succeed after the fault"
    after = chosen(calls, lambda call: healed_s <= call.intended_s < until_s)
    if len(after) < MINIMUM_CALLS:
        return Finding("control", statement, Verdict.COULD_NOT_TELL, f"only {len(after)} calls")
    good = sum(call.ok for call in after) / len(after)
    verdict = Verdict.HELD if good <= share else Verdict.COULD_NOT_TELL
    return Finding("control", statement, verdict, f"{good:.2%} of {len(after):,} calls", measured=good)


def time_to_recover(calls: Collection[CallRecord], healed_s: float, until_s: float, share: float) -> float:
    """When the last window in which too few succeeded was over, since the healing."""
    count = max(1, math.ceil((until_s - healed_s) / WINDOW_S))
    seen, good = [0] * count, [0] * count
    for call in calls:
        number = math.floor((call.intended_s - healed_s) / WINDOW_S)
        if 0 <= number < count and call.intended_s < until_s:
            seen[number] += 1
            good[number] += call.ok
    bad = [number for number in range(count) if seen[number] and good[number] < share * seen[number]]
    return (bad[-1] + 1) * WINDOW_S if bad else 0.0
