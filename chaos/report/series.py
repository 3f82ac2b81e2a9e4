"""Calls and samples cut into equal slices of time, ready to draw. Pure."""

import math
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chaos.history import CallRecord, LoadSample
from chaos.percentile import percentile_of

SLICES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Slices:
    """``count`` slices of ``width_s`` from ``begin_s`` on."""

    begin_s: float
    width_s: float
    count: int

    def edges(self) -> list[float]:
        """All ``count + 1`` borders."""
        return [self.begin_s + number * self.width_s for number in range(self.count + 1)]

    def index(self, at_s: float) -> int | None:
        """The slice a moment falls into; None outside."""
        number = math.floor((at_s - self.begin_s) / self.width_s)
        return number if 0 <= number < self.count else None


def slices_between(begin_s: float, end_s: float, width_s: float) -> Slices:
    """Slices of ``width_s``, or wider ones when there would be more than `SLICES_MAX`."""
    span_s = max(end_s - begin_s, width_s)
    width_s = max(width_s, span_s / SLICES_MAX)
    return Slices(begin_s, width_s, math.ceil(span_s / width_s - 1e-9))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Calls per slice of their intended time, by how they ended."""

    ok: list[int]
    refused: list[int]
    failed: list[int]


def outcomes(calls: Collection[CallRecord], slices: Slices) -> Outcomes:
    """Count calls by slice and ending; RESOURCE_EXHAUSTED is a refusal, all else but OK a failure."""
    counted = Outcomes([0] * slices.count, [0] * slices.count, [0] * slices.count)
    for call in calls:
        if (number := slices.index(call.intended_s)) is None:
            continue
        if call.ok:
            counted.ok[number] += 1
        elif call.code == "RESOURCE_EXHAUSTED":
            counted.refused[number] += 1
        else:
            counted.failed[number] += 1
    return counted


def latency_ms(calls: Collection[CallRecord], slices: Slices, percentile: float) -> list[float]:
    """A percentile (0 to 100) of the sent calls' latency per slice of intended time; NaN where none were."""
    by_slice: list[list[float]] = [[] for _ in range(slices.count)]
    for call in calls:
        if call.sent_s is not None and (number := slices.index(call.intended_s)) is not None:
            by_slice[number].append(call.latency_s * 1000)
    return [percentile_of(values, percentile) for values in by_slice]


def arrivals(samples: Sequence[LoadSample], slices: Slices) -> list[float]:
    """Calls that reached the downstream per slice, interpolated between its samples; NaN where none span it.

    A counter that fell (a restart) begins anew.
    """
    moments = [sample.at_s for sample in samples]
    totals = _unwrapped(samples)
    edges = slices.edges()
    at_edges = [_interpolate(moments, totals, edge) for edge in edges]
    return [after - before for before, after in pairwise(at_edges)]


def _unwrapped(samples: Sequence[LoadSample]) -> list[float]:
    totals: list[float] = []
    offset = previous = 0
    for sample in samples:
        if sample.calls < previous:
            offset += previous
        previous = sample.calls
        totals.append(float(offset + sample.calls))
    return totals


def _interpolate(moments: Sequence[float], totals: Sequence[float], at_s: float) -> float:
    after = bisect_left(moments, at_s)
    if after == 0 or after == len(moments):
        return math.nan
    share = (at_s - moments[after - 1]) / (moments[after] - moments[after - 1] or 1.0)
    return totals[after - 1] + share * (totals[after] - totals[after - 1])
