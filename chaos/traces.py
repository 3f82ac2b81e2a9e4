"""Spans of several processes, read back from their OTLP JSON lines and joined by trace id.

Format: https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/ (ids in hex, times as strings of
nanoseconds since the Unix epoch).
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any

from chaos.findings import Finding, Verdict, judge, offender
from chaos.history import CallRecord
from chaos.plan import SUBMIT_METHOD
from chaos.tracing import CLIENT_SERVICE_NAME

KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUS_ERROR = 2
SERVICES_OF_AN_ANSWER = 3
"""Client, relay and upstream."""
SAMPLED_AFTERWARDS = "relay.sampled_afterwards"
REPLAYS = frozenset({"replayed", "coalesced"})
"""Answers that the upstream gave to another call."""
SPANS_MAX = 100_000
"""Of more spans a share of the traces is read, each of them whole, so that a run's judgement and its report
cannot take a machine's memory."""
SPAN_BYTES = 700
"""What a span takes in a file, about; a little less than was seen, to be on the safe side."""


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One span."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty at a root."""
    name: str
    service: str
    kind: str
    begin_unix_ns: int
    end_unix_ns: int
    error: bool
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """How long it took."""
        return (self.end_unix_ns - self.begin_unix_ns) / 1e9


Traces = Mapping[str, Sequence[SpanRecord]]


def is_read(trace_id: str, one_in: int) -> bool:
    """Whether a trace is among the share of them that is read: one in so many, drawn by its id."""
    return one_in == 1 or int(trace_id[-8:] or "0", 16) % one_in == 0


def share_to_read(paths: Iterable[Path], spans_max: int = SPANS_MAX) -> int:
    """One in how many traces can be read so that they have about ``spans_max`` spans; 1 is all of them."""
    size_bytes = sum(path.stat().st_size for path in paths if path.exists())
    return max(1, math.ceil(size_bytes / SPAN_BYTES / spans_max))


def read_traces(paths: Iterable[Path], one_in: int = 1) -> Traces:
    """The spans of all files by trace id, each trace in order of beginning. A missing file holds none.

    With ``one_in`` above 1 only the traces that `is_read` names. A torn last line (its writer was killed)
    ends a file.
    """
    by_trace: dict[str, list[SpanRecord]] = defaultdict(list)
    for span in (span for path in paths if path.exists() for span in _read_file(path)):
        if is_read(span.trace_id, one_in):
            by_trace[span.trace_id].append(span)
    for spans in by_trace.values():
        spans.sort(key=lambda span: (span.begin_unix_ns, -span.end_unix_ns))
    return dict(by_trace)


def _read_file(path: Path) -> Iterator[SpanRecord]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield from _spans_of(json.loads(line))


def _spans_of(message: dict[str, Any]) -> Iterator[SpanRecord]:
    for resource_spans in message.get("resourceSpans", ()):
        resource = _attributes(resource_spans.get("resource", {}))
        service = str(resource.get("service.name", "unknown"))
        for scope_spans in resource_spans.get("scopeSpans", ()):
            for span in scope_spans.get("spans", ()):
                # Interned: what a hundred thousand spans say alike is kept once.
                yield SpanRecord(
                    trace_id=intern(span["traceId"]),
                    span_id=intern(span["spanId"]),
                    parent_id=intern(span.get("parentSpanId", "")),
                    name=intern(span.get("name", "")),
                    service=service,
                    kind=KINDS[span.get("kind", 0)],
                    begin_unix_ns=int(span["startTimeUnixNano"]),
                    end_unix_ns=int(span["endTimeUnixNano"]),
                    error=span.get("status", {}).get("code") == STATUS_ERROR,
                    attributes=_attributes(span),
                )


def _attributes(owner: dict[str, Any]) -> dict[str, Any]:
    return {intern(item["key"]): _value(item.get("value", {})) for item in owner.get("attributes", ())}


def _value(value: dict[str, Any]) -> Any:
    match value:
        case {"intValue": number}:
            return int(number)
        case {"stringValue": text}:
            return intern(text)
        case {"arrayValue": array}:
            return [_value(item) for item in array.get("values", ())]
        case _:
            return next(iter(value.values()), None)


def depth_first(spans: Sequence[SpanRecord]) -> list[tuple[int, SpanRecord]]:
    """A trace's spans, each after its parent and indented under it (depth 0 is a root).

    A span whose parent is not among them counts as a root: better shown than hidden.
    """
    ids = {span.span_id for span in spans}
    children: dict[str, list[SpanRecord]] = defaultdict(list)
    for span in spans:
        children[span.parent_id if span.parent_id in ids else ""].append(span)
    ordered: list[tuple[int, SpanRecord]] = []
    stack = [(0, span) for span in reversed(children[""])]
    while stack:
        depth, span = stack.pop()
        ordered.append((depth, span))
        stack += [(depth + 1, child) for child in reversed(children[span.span_id])]
    return ordered


def traces_are_whole(
    calls: Iterable[CallRecord],
    traces: Traces,
    minimum: int = 1,
    *,
    lost_between: Sequence[tuple[float, float]] = (),
    hops: int = 1,
) -> Finding:
    """I7: the trace of every recorded call that was answered runs unbroken from the client on.

    It has one root, the client's span; every other span's parent is in it; there is a span of another
    process; and, for a call the relay answered, one CLIENT span of the relay's for each attempt it counts.
    ``lost_between``: times in which a killed process took its unwritten spans with it; calls that were out
    then are not judged. ``hops``: relays in a row; with more than one the attempts of the first are not
    told from those of the others, and so not counted.
    """
    recorded = [call for call in calls if call.traced and not _out_in(call, lost_between)]
    gaps = (
        offender(call, what)
        for call in recorded
        if (what := _gap(call, traces.get(call.trace_id, ()), hops)) is not None
    )
    return judge(
        "I7", "every recorded trace is whole, from the client to the ledger", len(recorded), gaps, minimum
    )


def failures_are_traced(
    calls: Iterable[CallRecord],
    traces: Traces,
    excused_count: int = 0,
    *,
    lost_between: Sequence[tuple[float, float]] = (),
) -> Finding:
    """I7: a failure whose trace was not sampled got a span of the relay's afterwards.

    Judged are the calls that nobody sampled and that the relay answered with an error. ``excused_count``: how
    many of them the relay itself counted as left out, because too many failed at once, or their spans as
    dropped. Which ones it does not say, so offenders are those that have none when too many have none.
    """
    failed = [
        call
        for call in calls
        if not call.ok and not call.traced and call.origin is not None and not _out_in(call, lost_between)
    ]
    without = [call for call in failed if not _has_span_afterwards(traces.get(call.trace_id, ()))]
    statement = "a failure whose trace was not sampled has a span afterwards"
    if not failed:
        return Finding("I7", statement, Verdict.HELD, "no such failure")
    if len(without) <= excused_count:
        told = f"{len(failed) - len(without):,} of {len(failed):,}"
        left_out = f", {len(without):,} left out and counted as that" if without else ""
        return Finding("I7", statement, Verdict.HELD, f"{told}{left_out}")
    offenders = (offender(call, f"{call.code}, and no span in its trace") for call in without[excused_count:])
    return judge("I7", statement, len(failed), offenders)


def _has_span_afterwards(spans: Sequence[SpanRecord]) -> bool:
    return any(span.kind == "SERVER" and span.attributes.get(SAMPLED_AFTERWARDS) for span in spans)


def _out_in(call: CallRecord, windows: Sequence[tuple[float, float]]) -> bool:
    return any(call.intended_s <= end_s and call.done_s >= begin_s for begin_s, end_s in windows)


def _gap(call: CallRecord, spans: Sequence[SpanRecord], hops: int) -> str | None:
    """What is missing in a call's trace; None when nothing is."""
    roots = [span for depth, span in depth_first(spans) if depth == 0]
    if not roots:
        return "no span"
    if len(roots) > 1 or roots[0].service != CLIENT_SERVICE_NAME:
        names = ", ".join(f"{span.service}: {span.name}" for span in roots)
        return f"broken into {len(roots)} pieces ({names})"
    if len({span.service for span in spans}) == 1:
        return "ends at the client"
    if (
        call.ok
        and call.origin == "upstream"
        and call.method != SUBMIT_METHOD
        and call.idempotency not in REPLAYS
        and len({span.service for span in spans}) < SERVICES_OF_AN_ANSWER
    ):
        return "ends at the relay, though the upstream answered"
    if call.attempts is not None and hops == 1 and call.idempotency not in REPLAYS:
        made = sum(span.kind == "CLIENT" and span.service != CLIENT_SERVICE_NAME for span in spans)
        if made != call.attempts:
            return f"{made} attempt spans for {call.attempts} attempts"
    return None


def most_telling(calls: Iterable[CallRecord], traces: Traces) -> CallRecord | None:
    """The recorded call whose picture explains most: a success after several attempts, else any with spans.

    Among equals the first, so that a repeated run shows the same kind of call.
    """
    shown = (call for call in calls if call.traced and len(traces.get(call.trace_id, ())) > 1)
    return max(shown, key=lambda call: (call.ok, min(call.attempts or 0, 3), -call.id), default=None)
