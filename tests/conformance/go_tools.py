"""Test programs written in Go: found, or built by ``python -m tests.conformance.go_tools``.

The tests only look for them, since building takes minutes: first in the variable named here, then in the
project's cache, then on PATH. Each has a folder of its own in the cache, as two of them are called the same
as programs of others (``client``, ``server``).
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench.processes import ROOT

CACHE = ROOT / ".cache" / "interop"
BUILD_TIMEOUT_S = 900
HOW_TO_BUILD = "`python -m tests.conformance.go_tools` builds it where Go and its module proxy are"


@dataclass(frozen=True, slots=True)
class GoTool:
    """A program, and where it comes from."""

    folder: str
    binary: str
    package: str
    variable: str
    on_path: str
    """Its name on PATH; empty when the name says too little."""

    def find(self) -> Path | None:
        """The program, None when it is not here."""
        if named := os.environ.get(self.variable):
            return Path(named)
        cached = CACHE / self.folder / self.binary
        if cached.is_file():
            return cached
        found = shutil.which(self.on_path) if self.on_path else None
        return Path(found) if found else None

    def find_or_skip(self) -> str:
        """The program, or a skipped test that says how to have it."""
        found = self.find()
        if found is None:
            pytest.skip(f"no {self.folder} here: {HOW_TO_BUILD}, or set {self.variable}")
        return str(found)


# The interop modules of grpc after 1.84 have replace directives, which `go install` refuses.
INTEROP_CLIENT = GoTool(
    "client", "client", "google.golang.org/grpc/interop/client@v1.84.0", "INTEROP_CLIENT", ""
)
INTEROP_SERVER = GoTool(
    "server", "server", "google.golang.org/grpc/interop/server@v1.84.0", "INTEROP_SERVER", ""
)
# The newest tag that a module proxy would hand out; its dependencies are not pinned.
H2SPEC = GoTool(
    "h2spec", "h2spec", "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible", "H2SPEC", "h2spec"
)
GHZ = GoTool("ghz", "ghz", "github.com/bojand/ghz/cmd/ghz@v0.121.0", "GHZ", "ghz")
TOOLS = (INTEROP_CLIENT, INTEROP_SERVER, H2SPEC, GHZ)


def build(tool: GoTool) -> str | None:
    """Build into the cache; None when it is there, else why not. A proxy's refusal is final."""
    go = shutil.which("go")
    if go is None:
        return "Go is not installed"
    place = CACHE / tool.folder
    place.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [go, "install", tool.package],
            env=os.environ | {"GOBIN": str(place)},
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not built within {BUILD_TIMEOUT_S} s"
    return done.stderr.strip()[-500:] if done.returncode else None


def main() -> int:
    """Build what is missing; 0 when all are there."""
    missing = [tool for tool in TOOLS if tool.find() is None]
    failures = [(tool, why) for tool in missing if (why := build(tool)) is not None]
    for tool, why in failures:
        print(f"{tool.package}: {why}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
