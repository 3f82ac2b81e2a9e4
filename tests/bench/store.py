"""``python -m tests.bench.store``: what durability costs, as ratios to what this disk or server can do."""

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from relay_service.core.idempotency import Scope
from relay_service.core.job import Work
from relay_service.stores.interface import Claim, Store, Submission
from tests.bench.processes import ROOT
from tests.bench.stats import Estimate, estimate
from tests.bench.store_engines import postgres_bench, sqlite_bench

CONCURRENCY = 128
EXIT_MEASURED = 0

Operation = Callable[[Store, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One round of one row."""

    per_s: float
    yardstick_per_s: float
    p99_ms: float
    rows_per_commit: float


@dataclass(frozen=True, slots=True)
class Row:
    """What is done, on what, and what is aimed at."""

    name: str
    operation: Operation
    bench: Callable[[Path | None], AbstractContextManager[Any]]
    target: str = ""


async def submit(store: Store, number: int) -> None:
    """One durable job of 100 B: one commit."""
    await store.submit([Submission(f"job-{number}", Work("", "bench/Submit", bytes(100)), 0.0, 3600.0)])


async def keyed(store: Store, number: int) -> None:
    """What a keyed call costs: a claim and a stored answer of 100 B, two commits."""
    scope = Scope("", "bench/Keyed", number.to_bytes(8))
    claimed = await store.claim(Claim(scope, hashlib.sha256(scope.key).digest(), "bench", 30.0, False))
    await store.finish(scope, claimed.record.fence, bytes(100), 3600.0)


def _sqlite(folder: Path | None) -> AbstractContextManager[Any]:
    return sqlite_bench(folder, 0.0)


def _slow_sqlite(folder: Path | None) -> AbstractContextManager[Any]:
    return sqlite_bench(folder, 0.005)


ROWS = (
    Row("SQLite: submits", submit, _sqlite, "≥ 2 fdatasync"),
    Row("SQLite: keyed calls", keyed, _sqlite, "≥ 1 fdatasync, p99 ≤ 25 ms"),
    Row("SQLite: keyed calls, 5 ms fsync", keyed, _slow_sqlite, "≥ 32 rows per commit"),
    Row("PostgreSQL: submits", submit, postgres_bench),
    Row("PostgreSQL: keyed calls", keyed, postgres_bench),
)


def main() -> int:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, metavar="N")
    parser.add_argument("--duration-s", type=float, default=2.0, metavar="S")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name has this in it")
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "store.json")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if arguments.only in row.name]
    figures: dict[str, list[Figure]] = {row.name: [] for row in rows}
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
        for row in rows:
            figures[row.name].append(one_round(row, arguments.duration_s, arguments.folder))
    show(rows, figures)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({n: [asdict(f) for f in made] for n, made in figures.items()}, indent=1)
    )
    print(f"written: {arguments.out}")
    return EXIT_MEASURED


def one_round(row: Row, duration_s: float, folder: Path | None) -> Figure:
    """A fresh store, with disk or server asked before and after what it can do."""
    with row.bench(folder) as bench:
        return asyncio.run(measure(bench, row.operation, duration_s))


async def measure(bench: Any, operation: Operation, duration_s: float) -> Figure:
    """A closed loop of `CONCURRENCY` callers."""
    before = await bench.yardstick_per_s()
    latencies_ms: list[float] = []
    async with bench.opened() as store:
        start = time.perf_counter()

        async def caller(first: int) -> None:
            number = first
            while (began := time.perf_counter()) < start + duration_s:
                await operation(store, number)
                latencies_ms.append((time.perf_counter() - began) * 1000)
                number += CONCURRENCY

        await asyncio.gather(*(caller(first) for first in range(CONCURRENCY)))
        took_s = time.perf_counter() - start
        rows = store.rows_per_commit
    after = await bench.yardstick_per_s()
    latencies_ms.sort()
    p99_ms = latencies_ms[len(latencies_ms) * 99 // 100]
    return Figure(len(latencies_ms) / took_s, (before + after) / 2, p99_ms, rows)


def show(rows: list[Row], figures: dict[str, list[Figure]]) -> None:
    """Medians over the rounds; the ratios were taken round by round."""
    columns = ("row", "per yardstick", "per second", "yardstick/s", "p99 ms", "rows per commit", "aim")
    title = f"{CONCURRENCY} callers; the yardstick is fdatasync with SQLite, single commits with PostgreSQL"
    table = Table(*columns, title=title)
    for row in rows:
        made = figures[row.name]
        ratio = estimate([figure.per_s / figure.yardstick_per_s for figure in made])
        table.add_row(
            row.name,
            f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
            f"{_median(made, 'per_s').median:,.0f}",
            f"{_median(made, 'yardstick_per_s').median:,.0f}",
            f"{_median(made, 'p99_ms').median:.1f}",
            f"{_median(made, 'rows_per_commit').median:.0f}",
            row.target,
        )
    (Console() if sys.stdout.isatty() else Console(width=130)).print(table)


def _median(made: list[Figure], field: str) -> Estimate:
    return estimate([getattr(figure, field) for figure in made])


if __name__ == "__main__":
    sys.exit(main())
