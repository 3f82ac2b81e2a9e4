"""One run boiled down to what can be resampled: its calls in blocks of time, latencies in narrow buckets."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chaos.history import CallRecord, HistoryError, Outcome, RunHead, read_entries

HISTORY_FILE = "history.jsonl"
SUMMARY_FILE = "summary.json"
MEMORY_KEY = "relay_memory_peak_mb"
BUCKET_GROWTH = 1.02
"""From one latency bucket to the next: a percentile read from them is within 1 % of the true one."""
BLOCK_S = 0.5
BLOCKS_MAX = 120
"""A long run has longer blocks instead of more of them."""


class RunError(ValueError):
    """A folder does not hold a run that can be compared; the message says what is missing."""


@dataclass(slots=True)
class Block:
    """The calls that were due in one stretch of time."""

    calls: int = 0
    errors: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    """Successful calls by latency bucket."""

    def add(self, call: CallRecord) -> None:
        """Count one call."""
        self.calls += 1
        if call.ok:
            self.latencies[bucket(call.latency_s)] += 1
        else:
            self.errors += 1


@dataclass(frozen=True, slots=True)
class Stretch:
    """One phase of a run, within which it is alike from beginning to end."""

    phase: str
    blocks: tuple[Block, ...]
    span_s: float
    """From its first call to its last."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is compared."""

    scenario: str
    stretches: tuple[Stretch, ...]
    """In the order of their names."""
    memory_mb: float | None
    """The relay's peak; None where it was not recorded."""

    @property
    def calls(self) -> int:
        """All of them."""
        return sum(block.calls for stretch in self.stretches for block in stretch.blocks)

    @property
    def span_s(self) -> float:
        """Of all phases together."""
        return sum(stretch.span_s for stretch in self.stretches)

    @property
    def phases(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(stretch.phase for stretch in self.stretches)


def bucket(latency_s: float) -> int:
    """The number of a latency's bucket; buckets grow by `BUCKET_GROWTH`."""
    return math.ceil(math.log(max(latency_s, 1e-6)) / math.log(BUCKET_GROWTH))


def bucket_ms(number: int) -> float:
    """The middle of a bucket."""
    return 1000.0 * math.exp(math.log(BUCKET_GROWTH) * (number - 0.5))


def read_run(folder: Path) -> Run:
    """The run that a folder holds: its history and, for memory, its summary. Raises `RunError`."""
    history = folder / HISTORY_FILE
    try:
        return _boiled_down(read_entries(history), _summary(folder))
    except FileNotFoundError:
        raise RunError(f"{folder}: no {HISTORY_FILE}, so no run of the lab") from None
    except HistoryError as error:
        raise RunError(str(error)) from None


def require_alike(before: Run, after: Run) -> None:
    """Raise `RunError` for runs whose difference would say nothing: other scenarios, or other phases."""
    if before.scenario != after.scenario:
        raise RunError(
            f"one is a run of {before.scenario or 'nothing named'}, the other of "
            f"{after.scenario or 'nothing named'}: their difference says nothing"
        )
    if before.phases != after.phases:
        odd = sorted(set(before.phases) ^ set(after.phases))
        raise RunError(
            f"the runs have different phases (only in one: {', '.join(odd)}): compare like with like"
        )


def from_calls(scenario: str, calls: Iterable[CallRecord], memory_mb: float | None = None) -> Run:
    """A run from calls in any order."""
    phases: dict[str, _Gathered] = {}
    for call in calls:
        phases.setdefault(call.phase, _Gathered()).add(call)
    stretches = tuple(phases[name].stretch(name) for name in sorted(phases))
    return Run(scenario, stretches, memory_mb)


@dataclass(slots=True)
class _Gathered:
    """A phase while its calls come in."""

    fine: dict[int, Block] = field(default_factory=dict)
    begin_s: float = math.inf
    end_s: float = -math.inf

    def add(self, call: CallRecord) -> None:
        self.fine.setdefault(math.floor(call.intended_s / BLOCK_S), Block()).add(call)
        self.begin_s = min(self.begin_s, call.intended_s)
        self.end_s = max(self.end_s, call.intended_s)

    def stretch(self, phase: str) -> Stretch:
        """It whole, in at most `BLOCKS_MAX` blocks."""
        joined = math.ceil(len(self.fine) / BLOCKS_MAX)
        blocks: dict[int, Block] = {}
        for place, number in enumerate(sorted(self.fine)):
            block, into = self.fine[number], blocks.setdefault(place // joined, Block())
            into.calls += block.calls
            into.errors += block.errors
            into.latencies.update(block.latencies)
        return Stretch(phase, tuple(blocks.values()), max(self.end_s - self.begin_s, BLOCK_S))


def _boiled_down(entries: Iterable[Any], summary: Mapping[str, Any]) -> Run:
    heads: list[RunHead] = []

    def calls() -> Iterator[CallRecord]:
        for entry in entries:
            if isinstance(entry, RunHead):
                heads.append(entry)
            elif isinstance(entry, CallRecord) and entry.outcome is not Outcome.UNSENT:
                yield entry

    memory_mb = summary.get(MEMORY_KEY, summary.get("measures", {}).get(MEMORY_KEY))
    run = from_calls("", calls(), float(memory_mb) if memory_mb is not None else None)
    return replace(run, scenario=str(summary.get("scenario", heads[0].name if heads else "")))


def _summary(folder: Path) -> Mapping[str, Any]:
    path = folder / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error})") from None
    return summary if isinstance(summary, dict) else {}
