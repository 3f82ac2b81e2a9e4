"""From measurements to figures: paired ratios, absolute medians, latency added over no proxy at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.measure import Measurement
from tests.bench.run import Outcome
from tests.bench.stats import Estimate, estimate, paired_ratios

Read = Callable[[Measurement], float | None]

METRICS: Mapping[str, Read] = {
    "cpu_us_per_call": lambda m: m.cpu_us_per_call,
    "calls_per_s": lambda m: m.calls_per_s,
    "p50_ms": lambda m: m.p50_ms,
    "p99_ms": lambda m: m.p99_ms,
}


@dataclass(frozen=True, slots=True)
class RatioRow:
    """One subject to another in one workload; each metric's median of the ratios taken round by round."""

    workload: str
    subject: str
    to: str
    ratios: Mapping[str, Estimate]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AbsoluteRow:
    """One subject in one workload: medians over the rounds, and what it adds to `direct`, in ms."""

    workload: str
    subject: str
    values: Mapping[str, Estimate]
    added_p50_ms: float | None
    added_p99_ms: float | None
    notes: tuple[str, ...]


def ratio_rows(outcome: Outcome, names: Sequence[str]) -> list[RatioRow]:
    """The first of the proxies that were measured to every other one, per workload."""
    proxies = [name for name in outcome.measured(names) if name != "direct"]
    rows = []
    for workload in _workloads(outcome):
        for other in proxies[1:]:
            ours, theirs = _paired(outcome, workload, proxies[0], other)
            if ours:
                ratios = {metric: estimate(_ratios(ours, theirs, read)) for metric, read in METRICS.items()}
                rows.append(RatioRow(workload, proxies[0], other, ratios, _notes([*ours, *theirs])))
    return rows


def absolute_rows(outcome: Outcome, names: Sequence[str]) -> list[AbsoluteRow]:
    """Every subject per workload, in the order of ``names``."""
    rows = []
    for workload in _workloads(outcome):
        for name in names:
            measured = list(outcome.of(name, workload).values())
            if measured:
                rows.append(
                    AbsoluteRow(
                        workload,
                        name,
                        _medians(measured),
                        _added(outcome, workload, name, METRICS["p50_ms"]),
                        _added(outcome, workload, name, METRICS["p99_ms"]),
                        _notes(measured),
                    )
                )
    return rows


def _workloads(outcome: Outcome) -> list[str]:
    return list(dict.fromkeys(m.workload for m in outcome.measurements))


def _paired(
    outcome: Outcome, workload: str, one: str, other: str
) -> tuple[list[Measurement], list[Measurement]]:
    ours, theirs = outcome.of(one, workload), outcome.of(other, workload)
    rounds = sorted(ours.keys() & theirs.keys())
    return [ours[r] for r in rounds], [theirs[r] for r in rounds]


def _ratios(ours: Sequence[Measurement], theirs: Sequence[Measurement], read: Read) -> list[float]:
    return paired_ratios([read(m) or 0.0 for m in ours], [read(m) or 0.0 for m in theirs])


def _medians(measured: Sequence[Measurement]) -> dict[str, Estimate]:
    values = {metric: [v for m in measured if (v := read(m)) is not None] for metric, read in METRICS.items()}
    return {metric: estimate(found) for metric, found in values.items() if found}


def _added(outcome: Outcome, workload: str, name: str, read: Read) -> float | None:
    with_proxy, without = _paired(outcome, workload, name, "direct")
    if name == "direct" or not with_proxy:
        return None
    return estimate(
        [(read(a) or 0.0) - (read(b) or 0.0) for a, b in zip(with_proxy, without, strict=True)]
    ).median


def _notes(measured: Sequence[Measurement]) -> tuple[str, ...]:
    notes = []
    # A row is only as good as most of its rounds.
    if 2 * sum(m.generator_bound for m in measured) >= len(measured):
        notes.append("generator-bound")
    if failed := max(m.failed_share for m in measured):
        notes.append(f"up to {failed:.2%} of calls failed")
    return tuple(notes)
