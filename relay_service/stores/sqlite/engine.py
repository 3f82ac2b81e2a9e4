"""The SQLite engine: one file, one relay, every commit on the disk before it is acknowledged."""

import asyncio
from contextlib import suppress
from typing import TypeVar

import apsw

from relay_service.stores.engine import Kind, Touches, TransactionalStore
from relay_service.stores.interface import Durability, StoreError, StoreUnavailableError
from relay_service.stores.sqlite.batches import ReadBatches, WriteBatches
from relay_service.stores.sqlite.clock import StoreClock
from relay_service.stores.sqlite.database import SqliteSettings, open_reader, open_writer
from relay_service.stores.sqlite.file_lock import FileLock
from relay_service.stores.sqlite.lane import Lane
from relay_service.stores.statements import Operation, Run, Transaction

T = TypeVar("T")

SQLITE_FULL = Durability(
    "sqlite-full",
    "Committed to a SQLite file and synced (synchronous=FULL and more): it survives the death of the process,"
    " of the machine and of its power, not of its disk.",
)


class SqliteStore(TransactionalStore):
    """A `Store` in a file.

    Writers wait in one lane and are committed together; readers have a lane and a connection of their own.
    State: the lock, the lanes and their connections while open.
    """

    durability = SQLITE_FULL

    def __init__(self, settings: SqliteSettings, clock: StoreClock | None = None) -> None:
        super().__init__(safety_poll_s=None)
        self._settings = settings
        self._clock = clock or StoreClock()
        self._lock = FileLock(settings.path)
        self._connections: list[apsw.Connection] = []
        self._batches: WriteBatches | None = None
        self._writer: Lane | None = None
        self._reader: Lane | None = None

    async def open(self) -> None:
        """See `Store`."""
        self._batches = await asyncio.to_thread(self._open_files)
        limits = {"queue_limit": self._settings.queue_limit, "batch_limit": self._settings.batch_limit}
        reads = ReadBatches(self._connections[1], self._settings.path, self._clock)
        self._writer = Lane("store-writer", self._batches, wake=self._waiters.wake, **limits)
        self._reader = Lane("store-reader", reads, wake=self._waiters.wake, **limits)

    def _open_files(self) -> WriteBatches:
        self._lock.acquire()
        try:
            self._connections.append(open_writer(self._settings))
            self._connections.append(open_reader(self._settings))
            return WriteBatches(self._connections[0], self._settings.path, self._clock)
        except BaseException:
            self._close_files()
            raise

    def _close_files(self) -> None:
        """Readers first: the last to close leaves no write-ahead log behind, unless the disk refuses; then
        the next start reads it."""
        while self._connections:
            with suppress(apsw.Error):
                self._connections.pop().close(True)
        self._lock.release()

    async def close(self) -> None:
        """See `Store`."""
        self._closed = True
        for lane in (self._writer, self._reader):
            if lane is not None:
                await lane.stop()
        self._waiters.wake_all()
        await asyncio.to_thread(self._close_files)

    def now(self) -> float:
        """See `Store`."""
        return self._clock.now()

    async def healthy(self) -> str:
        """See `Store`. After a failed write it tries one, so that room that came back is noticed."""
        if self._closed or self._batches is None:
            return "the store is closed"
        if self._batches.trouble:
            try:
                await self._write(_probe)
            except StoreError as error:
                return str(error)
        return self._batches.trouble

    @property
    def rows_per_commit(self) -> float:
        """How many writes one commit carried on average: what group commit is worth."""
        return self._batches.rows / self._batches.commits if self._batches and self._batches.commits else 0.0

    async def _write(self, operation: Operation[T]) -> T:
        if self._writer is None:
            raise StoreUnavailableError("the store is not open")
        result: T = await self._writer.do(operation)
        return result

    async def _join(self, _kind: Kind, _touches: Touches, operation: Operation[T]) -> T:
        """Everything that waits goes together here, of whichever kind."""
        return await self._write(operation)

    async def _read(self, operation: Operation[T]) -> T:
        if self._reader is None:
            raise StoreUnavailableError("the store is not open")
        result: T = await self._reader.do(operation)
        return result


def _probe(_now: float) -> Transaction[None]:
    """The smallest write there is; one that changed nothing would not reach the disk."""
    yield Run("UPDATE store SET probes = probes + 1")
