"""One relay per file: a lock that the kernel lets go of when its process dies, however it dies."""

import fcntl
import os
from pathlib import Path

from relay_service.stores.interface import StoreError


class FileLock:
    """An exclusive lock on ``PATH-lock``. State: its file descriptor while held."""

    def __init__(self, database: str) -> None:
        self._path = Path(f"{database}-lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises `StoreError` when another relay holds it, or when it cannot be made."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot open {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreError(
                f"{self._path} is held by process {owner}: a SQLite store serves one relay;"
                " stop the other, give this one its own file, or share a postgres:// store"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; the file stays, for removing it would let two hold it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
