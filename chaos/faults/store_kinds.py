"""Faults of the relay's store, as frozen values like those of `chaos.faults.kinds`.

A SQLite store fails by its disk, or because somebody else has locked it. A PostgreSQL is a process and a
network: it is killed and restarted as a `Member`, and slowed and cut off on a `Link`.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class DiskFull:
    """No room for any write to the store's file."""

    kind: ClassVar[str] = "disk-full"

    @property
    def title(self) -> str:
        """For people."""
        return "the store's disk is full"


@dataclass(frozen=True, slots=True)
class DiskBroken:
    """Writes to the store's file, and syncs, fail with an I/O error."""

    kind: ClassVar[str] = "disk-broken"

    @property
    def title(self) -> str:
        """For people."""
        return "the store's disk fails every write"


@dataclass(frozen=True, slots=True)
class DiskSlow:
    """Every sync of the store's file takes ``sync_ms`` longer."""

    kind: ClassVar[str] = "disk-slow"

    sync_ms: int

    @property
    def title(self) -> str:
        """For people."""
        return f"the store's disk takes {self.sync_ms} ms to sync"


@dataclass(frozen=True, slots=True)
class StoreLocked:
    """Another process holds the write lock of the store's file: a backup, or somebody with a shell."""

    kind: ClassVar[str] = "store-locked"

    @property
    def title(self) -> str:
        """For people."""
        return "the store's file is locked by another process"


DiskKind = DiskFull | DiskBroken | DiskSlow
StoreKind = DiskKind | StoreLocked
