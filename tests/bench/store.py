"""``python -m tests.bench.store``: what durability costs, as ratios to what this disk can do."""

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from relay_service.core.idempotency import Scope
from relay_service.core.job import Work
from relay_service.stores.interface import Claim, Submission
from relay_service.stores.sqlite import SqliteSettings, SqliteStore
from tests.bench.processes import ROOT
from tests.bench.stats import Estimate, estimate
from tests.stores.disks import SlowDisk

CONCURRENCY = 128
PAGE = bytes(4096)
EXIT_MEASURED = 0

Operation = Callable[[SqliteStore, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One round of one row."""

    per_s: float
    fdatasync_per_s: float
    p99_ms: float
    rows_per_commit: float


@dataclass(frozen=True, slots=True)
class Row:
    """What is done, how slow the disk is made, and what is aimed at."""

    name: str
    operation: Operation
    sync_s: float
    target: str


async def submit(store: SqliteStore, number: int) -> None:
    """One durable job of 100 B: one commit."""
    await store.submit([Submission(f"job-{number}", Work("", "bench/Submit", bytes(100)), 0.0, 3600.0)])


async def keyed(store: SqliteStore, number: int) -> None:
    """What a keyed call costs: a claim and a stored answer of 100 B, two commits."""
    scope = Scope("", "bench/Keyed", number.to_bytes(8))
    claimed = await store.claim(Claim(scope, hashlib.sha256(scope.key).digest(), "bench", 30.0, False))
    await store.finish(scope, claimed.record.fence, bytes(100), 3600.0)


ROWS = (
    Row("submits", submit, 0.0, "≥ 2 fdatasync"),
    Row("keyed calls", keyed, 0.0, "≥ 1 fdatasync, p99 ≤ 25 ms"),
    Row("keyed calls, 5 ms fsync", keyed, 0.005, "≥ 32 rows per commit"),
)


def main() -> int:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, metavar="N")
    parser.add_argument("--duration-s", type=float, default=2.0, metavar="S")
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "store.json")
    arguments = parser.parse_args()
    figures: dict[str, list[Figure]] = {row.name: [] for row in ROWS}
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
        for row in ROWS:
            figures[row.name].append(one_round(row, arguments.duration_s, arguments.folder))
    show(figures)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({n: [asdict(f) for f in made] for n, made in figures.items()}, indent=1)
    )
    print(f"written: {arguments.out}")
    return EXIT_MEASURED


def one_round(row: Row, duration_s: float, folder: Path | None) -> Figure:
    """A fresh store, with the disk asked before and after what it can do."""
    with tempfile.TemporaryDirectory(dir=folder) as directory, ExitStack() as stack:
        vfs = stack.enter_context(SlowDisk(row.sync_s)).name if row.sync_s else ""
        before = fdatasyncs_per_s(Path(directory))
        settings = SqliteSettings(str(Path(directory) / "relay.db"), vfs=vfs)
        per_s, latencies_ms, rows = asyncio.run(drive(settings, row.operation, duration_s))
        after = fdatasyncs_per_s(Path(directory))
    return Figure(per_s, (before + after) / 2, latencies_ms[len(latencies_ms) * 99 // 100], rows)


def fdatasyncs_per_s(folder: Path, duration_s: float = 0.5) -> float:
    """One page written and synced at a time, over a file that is there already: the least a commit can be."""
    path = folder / "fdatasync"
    path.write_bytes(PAGE * 256)
    descriptor = os.open(path, os.O_WRONLY)
    os.fsync(descriptor)
    start, count = time.perf_counter(), 0
    try:
        while (took_s := time.perf_counter() - start) < duration_s:
            os.pwrite(descriptor, PAGE, count % 256 * len(PAGE))
            os.fdatasync(descriptor)
            count += 1
    finally:
        os.close(descriptor)
        path.unlink()
    return count / took_s


async def drive(
    settings: SqliteSettings, operation: Operation, duration_s: float
) -> tuple[float, list[float], float]:
    """A closed loop of `CONCURRENCY` callers: operations/s, sorted latencies in ms, rows per commit."""
    store = SqliteStore(settings)
    await store.open()
    latencies_ms: list[float] = []
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
    await store.close()
    return len(latencies_ms) / took_s, sorted(latencies_ms), rows


def show(figures: dict[str, list[Figure]]) -> None:
    """Medians over the rounds; the ratios were taken round by round."""
    columns = ("row", "per fdatasync", "per second", "fdatasync/s", "p99 ms", "rows per commit", "aim")
    table = Table(*columns, title=f"SQLite store, {CONCURRENCY} callers")
    for row in ROWS:
        made = figures[row.name]
        ratio = estimate([figure.per_s / figure.fdatasync_per_s for figure in made])
        table.add_row(
            row.name,
            f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
            f"{_median(made, 'per_s').median:,.0f}",
            f"{_median(made, 'fdatasync_per_s').median:,.0f}",
            f"{_median(made, 'p99_ms').median:.1f}",
            f"{_median(made, 'rows_per_commit').median:.0f}",
            row.target,
        )
    (Console() if sys.stdout.isatty() else Console(width=130)).print(table)


def _median(made: list[Figure], field: str) -> Estimate:
    return estimate([getattr(figure, field) for figure in made])


if __name__ == "__main__":
    sys.exit(main())
