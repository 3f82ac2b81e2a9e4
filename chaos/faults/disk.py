"""A disk of its own under one process's database, which can then be full, broken or slow."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chaos.faults.preload import compiled
from chaos.faults.store_kinds import DiskBroken, DiskFull, DiskKind, DiskSlow

_SOURCE = Path(__file__).with_name("disk.c")
_LIBRARY = "disk.so"
_TROUBLE = "disk-trouble"
_WELL, _FULL, _BROKEN, _SLOW = range(4)
"""As disk.c counts them."""


@dataclass(frozen=True, slots=True)
class FaultyDisk:
    """The trouble's file, and what makes a process obey it."""

    trouble_path: Path
    library_path: Path
    database: Path
    """Files whose path begins so are on this disk: the database, its journal, its write-ahead log."""

    @property
    def env(self) -> Mapping[str, str]:
        """What to start the process with."""
        return {
            "LD_PRELOAD": str(self.library_path),
            "CHAOS_DISK_FILE": str(self.trouble_path),
            "CHAOS_DISK_PATH": str(self.database),
        }

    def fail(self, fault: DiskKind) -> None:
        """The disk is in this trouble from now on, and in no other."""
        match fault:
            case DiskFull():
                self._say(_FULL)
            case DiskBroken():
                self._say(_BROKEN)
            case DiskSlow(sync_ms):
                self._say(_SLOW, sync_ms)

    def heal(self) -> None:
        """The disk is well again."""
        self._say(_WELL)

    def _say(self, kind: int, sync_ms: int = 0) -> None:
        with self.trouble_path.open("r+b") as file:
            file.write(struct.pack("=qq", kind, sync_ms))


def faulty_disk(folder: Path, database: Path) -> FaultyDisk:
    """Build the library in ``folder``, with the disk well. Raises `FaultError` where that cannot be."""
    library = compiled(_SOURCE, folder / _LIBRARY, "failing a store's disk")
    disk = FaultyDisk((folder / _TROUBLE).resolve(), library, database.resolve())
    disk.trouble_path.write_bytes(struct.pack("=qq", _WELL, 0))
    return disk
