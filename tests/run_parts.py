"""`make test`: lint and all tests but the long ones, in rounds, each part held to its time.

The parts of a round run at the same time: most of these tests wait, for processes to start and for timeouts
to pass, and one part alone leaves the cores idle. Whatever measures rates or latencies has a round to itself.

A part that takes longer than its allowance fails even when its tests pass, so the whole stays quick.

Tests of real processes share the cores with each other, and now and then one fails for that alone. A few that
failed are run once more at the end, one at a time with nothing beside them; what held only then is named in
the last lines, with its first failure above. More than a few are no accident.
`RELAY_TEST_TIME_FACTOR` stretches the allowances on a slow machine (default 1).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
AGAIN_MAX = 3
"""A part in which more tests failed is not given a second run."""
CHAOS_ROOMS = ("stack", "report", "toxiproxy", "comparison", "experiments", "plugin", "beside")


@dataclass(frozen=True, slots=True)
class Part:
    """A command, and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    allowed_s: float
    memory: Path | None = None
    """Where pytest notes what failed; None where there is no second run."""

    def failed_tests(self) -> list[str]:
        """What failed in the last run."""
        notes = self.memory / "v" / "cache" / "lastfailed" if self.memory else None
        return list(json.loads(notes.read_text())) if notes and notes.exists() else []

    def once_more(self, failed: list[str]) -> "Part":
        """These tests alone, one at a time."""
        command = (sys.executable, "-m", "pytest", "-q", "-rA", "-n", "0", *failed)
        return Part(f"{self.name}, once more", command, self.allowed_s)


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with a part, and the tests that a second run may clear."""

    part: Part
    why: str
    tests: list[str] = field(default_factory=list)


def tests(name: str, folders: tuple[str, ...], allowed_s: float, *how: str) -> Part:
    """A part that runs the tests in some folders."""
    places = [f"tests/{folder}" for folder in folders]
    memory = ROOT / ".pytest_cache" / name.replace(" ", "-")
    marks = ("-m", "not soak and not jaeger", "-o", f"cache_dir={memory}")
    command = (sys.executable, "-m", "pytest", "-q", *marks, *how, *places)
    return Part(name, command, allowed_s, memory)


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
    (tests("integration", ("integration",), 240, *files_in(4)),),
    (tests("bench tools", ("bench",), 60),),
    (tests("chaos", tuple(f"chaos/{room}" for room in CHAOS_ROOMS), 150, *files_in(3)),),
    # No second run: the lab gives one itself, to promises that hang on time, and to those of safety none.
    (replace(tests("chaos scenarios", ("chaos/lab",), 300, *files_in(2)), memory=None),),
)


def main() -> int:
    """Run everything; 0 when all held."""
    started = time.monotonic()
    factor = float(os.environ.get("RELAY_TEST_TIME_FACTOR", "1"))
    failures = [failure for parts in ROUNDS for failure in run_round(parts, factor)]
    lasting = [failure for failure in failures if not holds_alone(failure, factor)]
    print()
    for failure in failures:
        if failure not in lasting:
            print(f"held only at a second run, alone: {', '.join(failure.tests)}")
    failed = f"failed: {'; '.join(failure.why for failure in lasting)}" if lasting else "all parts held"
    print(f"{(time.monotonic() - started) / 60:.1f} min, {failed}", flush=True)
    return 1 if lasting else 0


def run_round(parts: tuple[Part, ...], factor: float) -> list[Failure]:
    """Run some parts at the same time; what went wrong."""
    print(f"\n== {', '.join(part.name for part in parts)}", flush=True)
    with ThreadPoolExecutor(len(parts)) as pool:
        found = pool.map(lambda part: run_part(part, part.allowed_s * factor, alone=len(parts) == 1), parts)
        return [failure for failure in found if failure]


def holds_alone(failure: Failure, factor: float) -> bool:
    """Whether the few tests that failed hold with nothing beside them."""
    if not 0 < len(failure.tests) <= AGAIN_MAX:
        return False
    return not run_round((failure.part.once_more(failure.tests),), factor)


def run_part(part: Part, allowed_s: float, *, alone: bool) -> Failure | None:
    """Run one part; what went wrong, or None. Beside others its output is shown in one piece at its end."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    started = time.monotonic()
    if part.memory:
        shutil.rmtree(part.memory, ignore_errors=True)
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
        return Failure(part, f"{part.name}: stopped after {3 * allowed_s:.0f} s")
    took_s = time.monotonic() - started
    print(f"{done.stdout or ''}== {part.name}: {took_s:.0f} s of {allowed_s:.0f} s", flush=True)
    if took_s > allowed_s:
        return Failure(part, f"{part.name}: {took_s:.0f} s, allowed are {allowed_s:.0f} s")
    if done.returncode:
        # 1 says that tests failed; anything else, that they could not be run.
        failed = part.failed_tests() if done.returncode == 1 else []
        return Failure(part, f"{part.name}: exit {done.returncode}", failed)
    return None


if __name__ == "__main__":
    sys.exit(main())
