"""I7: nothing is lost and nothing is counted twice, by the relay's own books."""

from collections.abc import Collection, Iterator, Sequence

from chaos.findings import Finding, Offender, Verdict, judge, offender
from chaos.history import CallRecord, RelaySample
from chaos.selection import chosen


def books_balance(samples: Sequence[RelaySample]) -> Finding:
    """I7: in every look at the relay, received = ok + errors + refused + cancelled + in flight."""

    def unbalanced() -> Iterator[Offender]:
        for each in samples:
            ended = each.ok + each.errors + each.refused + each.cancelled
            if each.received != ended + each.in_flight:
                yield Offender(
                    None,
                    "",
                    "",
                    f"at {each.at_s:.2f} s: {each.received:,} received, {ended:,} ended and "
                    f"{each.in_flight:,} in flight",
                )

    statement = "the relay's books balance: received = OK + errors + refused + cancelled + in flight"
    return judge("I7", statement, len(samples), unbalanced())


def nothing_left_in_flight(samples: Sequence[RelaySample], drained_s: float) -> Finding:
    """I7: once every caller has its answer (``drained_s``), the relay holds no call and no queue."""
    statement = "when all callers are answered, the relay holds nothing any more"
    after = [each for each in samples if each.at_s >= drained_s]
    if not after:
        return Finding("I7", statement, Verdict.COULD_NOT_TELL, "no look at the relay after that")
    last = after[-1]
    held = last.in_flight + last.queue_length + last.workers_busy
    detail = f"{last.in_flight} in flight, {last.queue_length} queued, {last.workers_busy} workers busy"
    return Finding("I7", statement, Verdict.BROKEN if held else Verdict.HELD, detail)


def streams_are_whole(calls: Collection[CallRecord]) -> Finding:
    """I7: a stream that ended OK delivered all its messages."""
    streams = chosen(calls, lambda call: call.messages_due is not None and call.ok)
    torn = (
        offender(call, f"OK after {call.messages} of {call.messages_due} messages")
        for call in streams
        if call.messages != call.messages_due
    )
    return judge("I7", "a stream that ended OK was whole", len(streams), torn)
