"""A wall clock of its own for one process, which can then be stepped without touching the machine's.

A few lines of C, put before the C library by ``LD_PRELOAD``, add an offset that a mapped file holds.
Needs Linux and a C compiler.
"""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chaos.faults.kinds import FaultError

COMPILE_TIMEOUT_S = 30.0
_SOURCE = Path(__file__).with_name("clock.c")
_LIBRARY = "clock.so"
_OFFSET = "clock-offset"


@dataclass(frozen=True, slots=True)
class ShiftedClock:
    """The offset's file, and what makes a process read it."""

    offset_path: Path
    library_path: Path

    @property
    def env(self) -> Mapping[str, str]:
        """What to start the process with."""
        return {"LD_PRELOAD": str(self.library_path), "CHAOS_CLOCK_FILE": str(self.offset_path)}

    def step(self, offset_s: int) -> None:
        """The process's wall clock is the machine's plus ``offset_s`` from now on."""
        with self.offset_path.open("r+b") as file:
            file.write(struct.pack("=q", offset_s))


def shifted_clock(folder: Path) -> ShiftedClock:
    """Build the library in ``folder``, with the offset at 0. Raises `FaultError` where that cannot be."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        raise FaultError("stepping a process's clock needs Linux and a C compiler (cc, gcc or clang)")
    folder.mkdir(parents=True, exist_ok=True)
    clock = ShiftedClock((folder / _OFFSET).resolve(), (folder / _LIBRARY).resolve())
    clock.offset_path.write_bytes(struct.pack("=q", 0))
    options = ["-shared", "-fPIC", "-O2", "-o", str(clock.library_path), str(_SOURCE), "-ldl"]
    built = subprocess.run(
        [compiler, *options], capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
    )
    if built.returncode != 0:
        raise FaultError(f"the clock's library does not compile: {built.stderr.strip()[:500]}")
    return clock
