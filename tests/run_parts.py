"""`make test`: lint first, then the tests part by part, each held to its time.

A part that takes longer than its allowance fails even when its tests pass, so the whole stays quick.
`RELAY_TEST_TIME_FACTOR` stretches the allowances on a slow machine (default 1).
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
NO_TESTS_COLLECTED = 5


@dataclass(frozen=True, slots=True)
class Part:
    """Some folders of tests and the seconds they may take together."""

    name: str
    folders: tuple[str, ...]
    allowed_s: float
    side_by_side: int = 1
    """Test processes that share the files; most of these tests wait for other processes."""


CHAOS_ROOMS = ("stack", "report", "toxiproxy", "comparison", "experiments", "plugin", "beside")
PARTS = (
    Part("core and simulation", ("tests/core", "tests/simulation"), 150, side_by_side=2),
    Part("wire", ("tests/wire",), 90),
    Part("stores", ("tests/stores",), 90),
    Part("integration", ("tests/integration",), 220, side_by_side=3),
    Part("conformance", ("tests/conformance",), 150),
    Part("bench tools", ("tests/bench",), 60),
    Part(
        "chaos",
        tuple(f"tests/chaos/{room}" for room in CHAOS_ROOMS),
        180,
        side_by_side=2,
    ),
    Part("chaos scenarios", ("tests/chaos/lab",), 260, side_by_side=2),
)


def main() -> int:
    """Run everything; 0 when all held."""
    failures = [] if run_lint() else ["lint"]
    factor = float(os.environ.get("RELAY_TEST_TIME_FACTOR", "1"))
    for part in PARTS:
        folders = [folder for folder in part.folders if any((ROOT / folder).rglob("test_*.py"))]
        if folders and (failure := run_part(part, folders, part.allowed_s * factor)):
            failures.append(failure)
    print(f"\nfailed: {'; '.join(failures)}" if failures else "\nall parts held", flush=True)
    return 1 if failures else 0


def run_lint() -> bool:
    """Format, lint, types, import directions, protos."""
    print("== lint", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(["bash", "tests/lint.sh"], cwd=ROOT, env=os.environ | {"PATH": path}, check=False)
    return done.returncode == 0


def run_part(part: Part, folders: list[str], allowed_s: float) -> str | None:
    """Run one part; what went wrong, or None."""
    print(f"\n== {part.name} (at most {allowed_s:.0f} s)", flush=True)
    started = time.monotonic()
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "not soak and not jaeger", *folders]
    if part.side_by_side > 1:
        pytest += ["-n", str(part.side_by_side), "--dist", "loadfile"]
    try:
        done = subprocess.run(pytest, cwd=ROOT, check=False, timeout=3 * allowed_s)
    except subprocess.TimeoutExpired:
        return f"{part.name}: stopped after {3 * allowed_s:.0f} s"
    took_s = time.monotonic() - started
    print(f"== {part.name}: {took_s:.0f} s of {allowed_s:.0f} s", flush=True)
    if done.returncode not in (0, NO_TESTS_COLLECTED):
        return f"{part.name}: pytest exit {done.returncode}"
    return f"{part.name}: {took_s:.0f} s, allowed are {allowed_s:.0f} s" if took_s > allowed_s else None


if __name__ == "__main__":
    sys.exit(main())
