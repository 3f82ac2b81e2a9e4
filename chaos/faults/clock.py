"""A wall clock of its own for one process, which can then be stepped without touching the machine's."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chaos.faults.preload import compiled

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
    library = compiled(_SOURCE, folder / _LIBRARY, "stepping a process's clock")
    clock = ShiftedClock((folder / _OFFSET).resolve(), library)
    clock.offset_path.write_bytes(struct.pack("=q", 0))
    return clock
