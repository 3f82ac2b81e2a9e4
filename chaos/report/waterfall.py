"""One trace as rows to draw: who did what, when, under whom."""

from collections.abc import Sequence
from dataclasses import dataclass

from chaos.history import CallRecord
from chaos.traces import SpanRecord, depth_first
from chaos.tracing import CLIENT_SERVICE_NAME, STATUS_CODE_KEY

ROWS_MAX = 60
BAR_PERCENT_MIN = 0.4
"""Narrower bars would not be seen."""


@dataclass(frozen=True, slots=True)
class Row:
    """One span, placed on the width of its trace."""

    depth: int
    service: str
    lane: str
    """``client``, ``relay`` or ``downstream``: what it is coloured by."""
    name: str
    status: str
    failed: bool
    offset_ms: float
    duration_ms: float
    left_percent: float
    width_percent: float


@dataclass(frozen=True, slots=True)
class Waterfall:
    """A trace and the call it belongs to."""

    call: CallRecord
    rows: tuple[Row, ...]
    total_ms: float
    hidden: int
    """Spans beyond `ROWS_MAX`."""


def waterfall(call: CallRecord, spans: Sequence[SpanRecord]) -> Waterfall | None:
    """The call's trace, parents above their children; None without spans."""
    if not spans:
        return None
    begin_ns = min(span.begin_unix_ns for span in spans)
    total_ns = max(max(span.end_unix_ns for span in spans) - begin_ns, 1)
    ordered = depth_first(spans)
    rows = tuple(_row(depth, span, begin_ns, total_ns) for depth, span in ordered[:ROWS_MAX])
    return Waterfall(call, rows, total_ns / 1e6, max(0, len(ordered) - ROWS_MAX))


def _row(depth: int, span: SpanRecord, begin_ns: int, total_ns: int) -> Row:
    offset_ns = span.begin_unix_ns - begin_ns
    width = max(100 * (span.end_unix_ns - span.begin_unix_ns) / total_ns, BAR_PERCENT_MIN)
    left = min(100 * offset_ns / total_ns, 100 - width)
    lane, name = _lane(span.service), span.name.rpartition(".")[2]
    return Row(
        depth=depth,
        service=span.service,
        lane=lane,
        name=f"attempt of {name}" if lane == "relay" and span.kind == "CLIENT" else name,
        status=str(span.attributes.get(STATUS_CODE_KEY, "")),
        failed=span.error,
        offset_ms=offset_ns / 1e6,
        duration_ms=span.duration_s * 1000,
        left_percent=round(left, 3),
        width_percent=round(width, 3),
    )


def _lane(service: str) -> str:
    if service == CLIENT_SERVICE_NAME:
        return "client"
    return "downstream" if "downstream" in service else "relay"
