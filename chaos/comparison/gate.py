"""The gate: how much worse the second run is, how sure that is, and whether it may be.

A difference between two runs is partly chance: a machine's hiccup makes many calls of the same moment slow,
so calls are not independent. Whole blocks of time are therefore resampled (the block bootstrap: H. Künsch,
"The jackknife and the bootstrap for general stationary observations", 1989), and a change counts only where
its whole interval lies beyond what is allowed.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chaos.comparison.sample import Block, Run, bucket_ms
from chaos.findings import Verdict
from chaos.model import Interval

RESAMPLES = 200
CONFIDENCE = 0.95
CALLS_MIN = 200
"""Fewer in either run say nothing."""
BLOCKS_MIN = 4
SEED = 1
"""Of the resampling, so that the same two folders always give the same verdict."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much worse a measure may become."""

    share: float
    """Of its value in the first run: 0.1 is 10 %."""
    floor: float
    """In the measure's own unit: less than this is never too much, so that next to nothing may double."""

    def of(self, before: float) -> float:
        """The change that is still allowed."""
        return max(self.share * before, self.floor)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed of each measure."""

    errors: Allowance = Allowance(0.10, 0.005)
    """Share of calls: half a percent more of all calls may always fail."""
    p50: Allowance = Allowance(0.15, 1.0)
    """Milliseconds."""
    p99: Allowance = Allowance(0.30, 5.0)
    throughput: Allowance = Allowance(0.05, 0.0)
    """Successes a second, of which fewer is worse."""
    memory: Allowance = Allowance(0.20, 5.0)
    """Megabytes."""


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure in both runs."""

    measure: str
    unit: str
    before: float | None
    after: float | None
    worse_by: float | None
    """In the measure's unit; negative is better."""
    interval: Interval | None
    """Where the change lies with `CONFIDENCE`; None where it was measured once and cannot be resampled."""
    allowed: float | None
    verdict: Verdict | None
    """None where a run did not record it."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Figures:
    """The measures of one (resampled) run."""

    errors: float
    p50_ms: float
    p99_ms: float
    throughput_per_s: float


@dataclass(frozen=True, slots=True)
class _Measure:
    """What is read from a run, so that more is worse, and how much more is allowed."""

    name: str
    unit: str
    read: Callable[[_Figures], float]
    allowance: Allowance


def compare(before: Run, after: Run, limits: Limits = DEFAULT_LIMITS) -> tuple[Compared, ...]:
    """Each measure, judged. Too few calls in either run means that none of the first four can be."""
    measures = (
        _Measure("errors", "%", lambda each: each.errors, limits.errors),
        _Measure("p50 latency", "ms", lambda each: each.p50_ms, limits.p50),
        _Measure("p99 latency", "ms", lambda each: each.p99_ms, limits.p99),
        _Measure("throughput", "OK/s", lambda each: -each.throughput_per_s, limits.throughput),
    )
    too_little = _too_little(before) or _too_little(after)
    whole = (_figures(_blocks(before), before), _figures(_blocks(after), after))
    resampled = [] if too_little else list(_resampled(before, after))
    judged = [_judge(measure, whole, resampled, too_little) for measure in measures]
    return (*judged, _memory(before.memory_mb, after.memory_mb, limits.memory))


def verdict_of(rows: Sequence[Compared]) -> Verdict:
    """Broken where anything is too much worse, else could not tell where anything is not certain."""
    verdicts = {row.verdict for row in rows}
    for verdict in (Verdict.BROKEN, Verdict.COULD_NOT_TELL):
        if verdict in verdicts:
            return verdict
    return Verdict.HELD


def _too_little(run: Run) -> str:
    if run.calls < CALLS_MIN:
        return f"only {run.calls:,} calls, {CALLS_MIN:,} are needed"
    if len(_blocks(run)) < BLOCKS_MIN:
        return f"too short a run: {run.span_s:.1f} s"
    return ""


_Pair = tuple[_Figures, _Figures]


def _judge(measure: _Measure, whole: _Pair, resampled: Sequence[_Pair], too_little: str) -> Compared:
    """Broken when the whole interval is beyond what is allowed, held when none of it is."""
    before, after = (measure.read(each) for each in whole)
    allowed = measure.allowance.of(abs(before))
    shown = (measure.name, measure.unit, abs(before), abs(after))
    if too_little:
        return Compared(*shown, after - before, None, allowed, Verdict.COULD_NOT_TELL, too_little)
    if math.isnan(before) or math.isnan(after):
        return Compared(*shown, None, None, None, None, "no call succeeded, so there is no latency")
    changes = (measure.read(second) - measure.read(first) for first, second in resampled)
    interval = _interval(sorted(change for change in changes if not math.isnan(change)))
    if interval.low > allowed:
        verdict, note = Verdict.BROKEN, ""
    elif interval.high <= allowed:
        verdict, note = Verdict.HELD, ""
    else:
        verdict, note = Verdict.COULD_NOT_TELL, "the limit lies within the noise: longer runs would tell"
    return Compared(*shown, after - before, interval, allowed, verdict, note)


def _memory(before: float | None, after: float | None, allowance: Allowance) -> Compared:
    if before is None or after is None:
        return Compared("memory", "MB", before, after, None, None, None, None, "not recorded in both runs")
    allowed = allowance.of(before)
    verdict = Verdict.BROKEN if after - before > allowed else Verdict.HELD
    return Compared("memory", "MB", before, after, after - before, None, allowed, verdict)


def _blocks(run: Run) -> list[Block]:
    return [block for stretch in run.stretches for block in stretch.blocks]


def _resampled(before: Run, after: Run) -> Iterator[_Pair]:
    """Pairs of runs made of blocks drawn from each, as many of every phase as it had."""
    rng = random.Random(SEED)
    for _ in range(RESAMPLES):
        yield _figures(_drawn(before, rng), before), _figures(_drawn(after, rng), after)


def _drawn(run: Run, rng: random.Random) -> list[Block]:
    return [
        block for stretch in run.stretches for block in rng.choices(stretch.blocks, k=len(stretch.blocks))
    ]


def _figures(blocks: Sequence[Block], run: Run) -> _Figures:
    calls = sum(block.calls for block in blocks)
    errors = sum(block.errors for block in blocks)
    latencies: Counter[int] = Counter()
    for block in blocks:
        latencies.update(block.latencies)
    ranked = sorted(latencies.items())
    return _Figures(
        errors=errors / calls if calls else math.nan,
        p50_ms=_percentile_ms(ranked, calls - errors, 0.5),
        p99_ms=_percentile_ms(ranked, calls - errors, 0.99),
        throughput_per_s=(calls - errors) / run.span_s if blocks else math.nan,
    )


def _percentile_ms(ranked: Sequence[tuple[int, int]], count: int, share: float) -> float:
    """The nearest-rank percentile of bucketed latencies; NaN of nothing."""
    due = math.ceil(share * count)
    passed = 0
    for number, held in ranked:
        passed += held
        if passed >= due:
            return bucket_ms(number)
    return math.nan


def _interval(spread: Sequence[float]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    last = len(spread) - 1
    return Interval(spread[round(tail * last)], spread[round((1 - tail) * last)])
