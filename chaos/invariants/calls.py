"""The promises as pure functions: recorded calls, and the ledger, in; a `Finding` out.

They know nothing of how the load was made or the faults were set. What a call says of itself (its status,
the relay's ``relay-outcome``) is held against the ledger, which is the only witness of effects.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from chaos.findings import Finding, Offender, Verdict, judge, offender
from chaos.history import CallRecord, LedgerEntry, Outcome
from chaos.model import (
    Interval,
    attempts_mean,
    attempts_variance,
    binomial_interval,
    mean_interval,
    success_probability,
)
from chaos.names import Names
from chaos.plan import CHARGE_METHOD
from chaos.selection import chosen

Calls = Collection[CallRecord]
Ledger = Collection[LedgerEntry]

DEADLINE_SLACK_S = 0.25
"""How long after its deadline a call may be answered: a client's own timer and a loaded machine."""


def answered_in_time(calls: Calls, slack_s: float = DEADLINE_SLACK_S) -> Finding:
    """I1: a call is answered by its deadline, plus ``slack_s``."""

    def late() -> Iterator[Offender]:
        for call in calls:
            if call.sent_s is None or call.timeout_s is None:
                continue
            over_s = call.done_s - call.sent_s - call.timeout_s
            if over_s > slack_s:
                yield offender(call, f"answered {over_s:.3f} s after its deadline")

    return judge("I1", f"every call is answered by its deadline (+{slack_s:g} s)", len(calls), late())


def at_most_one_effect(ledger: Ledger, calls: Calls = ()) -> Finding:
    """I2: whatever failed, and however often it was tried, an operation is in the ledger at most once.

    With the ``calls``, an offender carries the id and the trace of the call that was paid for twice.
    """
    repeated = Names(entry.operation for entry in ledger).repeated()
    entries = Counter(entry.operation for entry in ledger if entry.operation in repeated) if repeated else {}
    doubled = {operation: count for operation, count in entries.items() if count > 1}
    made_by = {call.operation: call for call in calls if call.operation in doubled} if doubled else {}

    def offenders() -> Iterator[Offender]:
        for operation, count in doubled.items():
            what = f"{operation} was charged {count} times"
            call = made_by.get(operation)
            yield offender(call, what) if call is not None else Offender(None, operation, "", what)

    return judge("I2", "no operation was charged twice", len(ledger), offenders())


def answers_match_ledger(
    calls: Calls, ledger: Ledger, methods: Collection[str] = frozenset({CHARGE_METHOD})
) -> Finding:
    """I2: OK means the effect exists, and a definite refusal of every try means it does not.

    Only calls of ``methods`` are judged, the others have no effect that the ledger could witness. Calls
    whose outcome is unknown may go either way. Operations with tries of both kinds are judged by the OK
    alone.
    """
    charged = Names(entry.operation for entry in ledger)
    # Looked for among those refused and charged, which are few: all that were executed would be many.
    suspects: set[str] = set()
    decided = 0
    for call in calls:
        if call.method in methods:
            decided += call.outcome in (Outcome.EXECUTED, Outcome.NOT_EXECUTED)
            if call.outcome in (Outcome.NOT_EXECUTED, Outcome.UNSENT) and call.operation in charged:
                suspects.add(call.operation)
    may_be_there = (Outcome.EXECUTED, Outcome.UNKNOWN)
    excused = {
        call.operation
        for call in (calls if suspects else ())
        if call.operation in suspects and call.outcome in may_be_there and call.method in methods
    }
    denied = suspects - excused

    def lies() -> Iterator[Offender]:
        for call in calls:
            if call.method not in methods:
                continue
            match call.outcome:
                case Outcome.EXECUTED if call.operation not in charged:
                    yield offender(
                        call, f"{call.operation} was answered {call.code} and is not in the ledger"
                    )
                case Outcome.NOT_EXECUTED | Outcome.UNSENT if call.operation in denied:
                    yield offender(
                        call, f"{call.operation} was refused with {call.code} and is in the ledger"
                    )
                case _:
                    pass

    return judge("I2", "OK is in the ledger, a definite refusal is not", decided, lies())


def all_accounted_for(planned_count: int, calls: Calls) -> Finding:
    """I7: every planned call ended, once, with a trace id, and every refusal has a reason."""

    def gaps() -> Iterator[Offender]:
        if (missing := planned_count - len(calls)) != 0:
            yield Offender(
                None, "", "", f"{planned_count:,} planned, {len(calls):,} recorded: {missing:,} lost"
            )
        for call in calls:
            if call.outcome is Outcome.UNSENT:
                yield offender(call, "the generator could not send it")
            elif not call.trace_id:
                yield offender(call, "no trace id")
            elif call.origin == "relay" and not call.ok and not call.reason and not _cut_short(call):
                yield offender(call, f"{call.code} made by the relay, without a reason")

    statement = "no call is lost: planned = OK + errors + refusals"
    return judge("I7", statement, planned_count, gaps())


def _cut_short(call: CallRecord) -> bool:
    """Whether its connection went while its end was being read: gRPC's core then makes a status of its own
    and drops the details, where the reason is, though it passes on the trailers it came with."""
    return (call.message or "").startswith("Stream removed")


def refusals_are_useful(calls: Calls, fast_s: float, minimum: int = 1) -> Finding:
    """I5: a refusal is typed, says when to return, and comes within ``fast_s`` of being sent."""
    refused = chosen(calls, lambda call: call.code == "RESOURCE_EXHAUSTED")

    def useless() -> Iterator[Offender]:
        for call in refused:
            if not call.reason:
                yield offender(call, "refused without a reason")
            elif call.pushback_ms is None:
                yield offender(call, f"refused ({call.reason}) without saying when to return")
            elif call.sent_s is not None and (took_s := call.done_s - call.sent_s) > fast_s:
                yield offender(call, f"refused only after {took_s:.3f} s")

    statement = f"what is shed is told so: RESOURCE_EXHAUSTED, a reason, when to return, within {fast_s:g} s"
    return judge("I5", statement, len(refused), useless(), minimum)


def success_as_predicted(
    calls: Calls, failure_probability: float, attempts_max: int, minimum: int
) -> Finding:
    """C01: the share of calls that succeed is 1 - p^n, within the binomial interval."""
    expected = success_probability(failure_probability, attempts_max)
    statement = f"success is {expected:.2%}"
    if len(calls) < minimum:
        return _too_few("C01", statement, len(calls), minimum)
    measured = sum(call.ok for call in calls) / len(calls)
    interval = binomial_interval(len(calls), expected)
    return _within(
        ("C01", statement), measured, expected, interval, f"{measured:.2%} of {len(calls):,} calls"
    )


def load_as_predicted(
    attempts: int, calls_count: int, failure_probability: float, attempts_max: int, minimum: int
) -> Finding:
    """C02: attempts per call are 1 + p + ... + p^(n-1), within the interval of their mean."""
    expected = attempts_mean(failure_probability, attempts_max)
    statement = f"the downstream gets x{expected:.3f} the load"
    if calls_count < minimum:
        return _too_few("C02", statement, calls_count, minimum)
    measured = attempts / calls_count
    interval = mean_interval(calls_count, expected, attempts_variance(failure_probability, attempts_max))
    return _within(
        ("C02", statement), measured, expected, interval, f"x{measured:.3f}: {attempts:,} attempts"
    )


def attempts_agree(calls: Calls, arrived: int) -> Finding:
    """The relay's own count of attempts is what the downstream saw arrive."""
    claimed = sum(call.attempts or 0 for call in calls)
    statement = "the relay counts as many attempts as arrive"
    detail = f"{claimed:,} counted, {arrived:,} arrived"
    if not calls:
        return _too_few("I7", statement, 0, 1)
    return Finding("I7", statement, Verdict.HELD if claimed == arrived else Verdict.BROKEN, detail)


def final_tries(calls: Calls) -> Calls:
    """The last call of each operation, for clients that try again themselves."""
    last = {call.operation: call.id for call in calls if call.client_try > 1}
    return chosen(calls, lambda call: last.get(call.operation, call.id) == call.id) if last else calls


def retries_within_budget(attempts: int, calls_count: int, ratio: float, burst: float) -> Finding:
    """I4: attempts beyond the first are at most ``ratio`` for each first attempt, and ``burst``."""
    allowed = ratio * calls_count + burst
    retries = attempts - calls_count
    statement = f"retries stay within {ratio:.0%} of the calls (and a burst of {burst:g})"
    if calls_count == 0 or attempts < calls_count:
        detail = f"{attempts:,} attempts for {calls_count:,} calls: not every call was tried"
        return Finding("I4", statement, Verdict.COULD_NOT_TELL, detail)
    return Finding(
        "I4",
        statement,
        Verdict.HELD if retries <= allowed else Verdict.BROKEN,
        f"{retries:,} retries for {calls_count:,} calls, {allowed:,.0f} allowed",
        measured=retries / calls_count,
        expected=allowed / calls_count,
        interval=Interval(0.0, allowed / calls_count),
    )


def fault_did_bite(statement: str, count: int, minimum: int = 1) -> Finding:
    """A control: unprotected, the fault does its harm; when it does not, a pass beside it proves nothing."""
    if count < minimum:
        return Finding(
            "control", statement, Verdict.COULD_NOT_TELL, f"{count:,} seen, so nothing was put to the test"
        )
    return Finding("control", statement, Verdict.HELD, f"{count:,} seen", measured=float(count))


def duplicates(ledger: Iterable[LedgerEntry]) -> int:
    """Charges beyond the first for the same operation."""
    return sum(count - 1 for count in Counter(entry.operation for entry in ledger).values())


def _too_few(promise: str, statement: str, seen: int, minimum: int) -> Finding:
    detail = f"only {seen:,} calls, {minimum:,} are needed"
    return Finding(promise, statement, Verdict.COULD_NOT_TELL, detail)


def _within(
    claim: tuple[str, str], measured: float, expected: float, interval: Interval, detail: str
) -> Finding:
    verdict = Verdict.HELD if measured in interval else Verdict.BROKEN
    return Finding(*claim, verdict, detail, measured=measured, expected=expected, interval=interval)
