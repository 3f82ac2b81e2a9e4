"""Disks that misbehave on order, as SQLite file systems (VFS) over the real one. Test only."""

import itertools
import random
import threading
import time
from pathlib import Path
from typing import Any, Self

import apsw

SECTOR = 512
_DELETED = -1
"""In place of an offset."""
_numbers = itertools.count(1)


class Disk(apsw.VFS):
    """A file system that asks itself before every write and sync. ``name`` is how SQLite finds it."""

    def __init__(self) -> None:
        self.name = f"disk-{next(_numbers)}"
        super().__init__(self.name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _File(self, name, flags)

    def wrote(self, path: str, data: bytes, offset: int) -> None:
        """Before a write. Raises an apsw error when it must not happen."""

    def synced(self, path: str) -> None:
        """Before a sync. Raises an apsw error when it must not happen."""

    def truncated(self, path: str, size: int) -> None:
        """Before a truncation."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister()


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.wrote(self._path, bytes(data), offset)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._disk.synced(self._path)
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:
        self._disk.truncated(self._path, size)
        super().xTruncate(size)


class SlowDisk(Disk):
    """Every sync takes this long."""

    def __init__(self, sync_s: float) -> None:
        super().__init__()
        self._sync_s = sync_s

    def synced(self, path: str) -> None:
        time.sleep(self._sync_s)


class FailingDisk(Disk):
    """Writes fail with ``error`` while it is set; it can fail syncs instead."""

    def __init__(self) -> None:
        super().__init__()
        self.error: type[apsw.Error] | None = None
        self.sync_error: type[apsw.Error] | None = None

    def wrote(self, path: str, data: bytes, offset: int) -> None:
        if self.error is not None:
            raise self.error

    def synced(self, path: str) -> None:
        if self.sync_error is not None:
            raise self.sync_error


class VolatileDisk(Disk):
    """Loses power at a given write: what was synced stays, of the rest any part may have reached the platter.

    State: per file, what is on the platter and what was written since its last sync.
    """

    def __init__(self, seed: int, writes_until_cut: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self._left = writes_until_cut
        self._lock = threading.Lock()
        self._platter: dict[str, bytearray] = {}
        self._pending: dict[str, list[tuple[int, bytes | None]]] = {}
        self.is_dark = False

    def xDelete(self, name: str, syncdir: bool) -> None:
        """A deletion is on the platter when the directory was synced with it, else perhaps."""
        with self._lock:
            self._refuse_in_the_dark()
            if syncdir:
                self._platter.pop(name, None)
                self._pending.pop(name, None)
            else:
                self._pending.setdefault(name, []).append((_DELETED, None))
        super().xDelete(name, syncdir)

    def wrote(self, path: str, data: bytes, offset: int) -> None:
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self.is_dark = True
            self._refuse_in_the_dark()
            self._pending.setdefault(path, []).append((offset, data))

    def truncated(self, path: str, size: int) -> None:
        with self._lock:
            self._refuse_in_the_dark()
            self._pending.setdefault(path, []).append((size, None))

    def synced(self, path: str) -> None:
        with self._lock:
            self._refuse_in_the_dark()
            for change in self._pending.pop(path, ()):
                self._apply(path, change)

    def what_is_left(self, folder: Path) -> None:
        """Write into ``folder`` what a machine that starts again would find."""
        with self._lock:
            for path in list(self._pending):
                for change in self._pending[path]:
                    if self._rng.random() < 0.5:
                        self._apply(path, self._torn(change))
            for path, content in self._platter.items():
                (folder / Path(path).name).write_bytes(content)

    def _torn(self, change: tuple[int, bytes | None]) -> tuple[int, bytes | None]:
        offset, data = change
        if data is None or len(data) <= SECTOR or self._rng.random() < 0.5:
            return change
        return offset, data[: SECTOR * self._rng.randrange(1, len(data) // SECTOR + 1)]

    def _apply(self, path: str, change: tuple[int, bytes | None]) -> None:
        offset, data = change
        if offset == _DELETED:
            self._platter.pop(path, None)
            return
        content = self._platter.setdefault(path, bytearray())
        if data is None:
            del content[offset:]
            return
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data

    def _refuse_in_the_dark(self) -> None:
        if self.is_dark:
            raise apsw.IOError
