"""`make test`: lint and all tests but the long ones, in rounds, each part held to its time.

The parts of a round run at the same time: most of these tests wait, for processes to start and for timeouts
to pass, and one part alone leaves the cores idle. Whatever measures rates or latencies has a round to itself.

A part that takes longer than its allowance fails even when its tests pass, so the whole stays quick.
`RELAY_TEST_TIME_FACTOR` stretches the allowances on a slow machine (default 1).
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHAOS_ROOMS = ("stack", "report", "toxiproxy", "comparison", "experiments", "plugin", "beside")


@dataclass(frozen=True, slots=True)
class Part:
    """A command, and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    allowed_s: float


def tests(name: str, folders: tuple[str, ...], allowed_s: float, *how: str) -> Part:
    """A part that runs the tests in some folders."""
    places = [f"tests/{folder}" for folder in folders]
    command = (sys.executable, "-m", "pytest", "-q", "-m", "not soak and not jaeger", *how, *places)
    return Part(name, command, allowed_s)


def files_in(processes: int) -> tuple[str, ...]:
    """So many test processes share the files: what a file sets up once it sets up once."""
    return ("-n", str(processes), "--dist", "loadfile")


ROUNDS: tuple[tuple[Part, ...], ...] = (
    (
        Part("lint", ("bash", "tests/lint.sh"), 120),
        tests("conformance", ("conformance",), 150, *files_in(2)),
        tests("wire", ("wire",), 120),
        tests("stores", ("stores",), 90),
    ),
    (tests("core and simulation", ("core", "simulation"), 120, "-n", "2", "--dist", "worksteal"),),
    (tests("integration", ("integration",), 200, *files_in(4)),),
    (tests("bench tools", ("bench",), 60),),
    (tests("chaos", tuple(f"chaos/{room}" for room in CHAOS_ROOMS), 150, *files_in(3)),),
    (tests("chaos scenarios", ("chaos/lab",), 240, *files_in(2)),),
)


def main() -> int:
    """Run everything; 0 when all held."""
    started = time.monotonic()
    factor = float(os.environ.get("RELAY_TEST_TIME_FACTOR", "1"))
    failures = [failure for parts in ROUNDS for failure in run_round(parts, factor)]
    took = f"{(time.monotonic() - started) / 60:.1f} min"
    print(f"\n{took}, failed: {'; '.join(failures)}" if failures else f"\n{took}, all parts held", flush=True)
    return 1 if failures else 0


def run_round(parts: tuple[Part, ...], factor: float) -> list[str]:
    """Run some parts at the same time; what went wrong."""
    print(f"\n== {', '.join(part.name for part in parts)}", flush=True)
    with ThreadPoolExecutor(len(parts)) as pool:
        found = pool.map(lambda part: run_part(part, part.allowed_s * factor, alone=len(parts) == 1), parts)
        return [failure for failure in found if failure]


def run_part(part: Part, allowed_s: float, *, alone: bool) -> str | None:
    """Run one part; what went wrong, or None. Beside others its output is shown in one piece at its end."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    started = time.monotonic()
    try:
        done = subprocess.run(
            part.command,
            cwd=ROOT,
            env=os.environ | {"PATH": path},
            stdout=None if alone else subprocess.PIPE,
            stderr=None if alone else subprocess.STDOUT,
            text=True,
            check=False,
            timeout=3 * allowed_s,
        )
    except subprocess.TimeoutExpired as error:
        print(error.output or "", flush=True)
        return f"{part.name}: stopped after {3 * allowed_s:.0f} s"
    took_s = time.monotonic() - started
    print(f"{done.stdout or ''}== {part.name}: {took_s:.0f} s of {allowed_s:.0f} s", flush=True)
    if done.returncode:
        return f"{part.name}: exit {done.returncode}"
    return f"{part.name}: {took_s:.0f} s, allowed are {allowed_s:.0f} s" if took_s > allowed_s else None


if __name__ == "__main__":
    sys.exit(main())
