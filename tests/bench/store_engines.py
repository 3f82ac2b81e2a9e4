"""The stores that are measured, each beside a yardstick: what its disk or server can do at all."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import asyncpg

from relay_service.stores.postgres import PostgresSettings, PostgresStore
from relay_service.stores.sqlite import SqliteSettings, SqliteStore
from tests.stores.disks import SlowDisk
from tests.stores.postgres_server import PostgresServer

PAGE = bytes(4096)
MEASURED_S = 0.5
COMMITTERS = PostgresSettings("").pool_max


class Bench(Protocol):
    """One engine with an empty store."""

    yardstick: str
    """What a second of it is compared with."""

    def opened(self) -> "AsyncIterator[SqliteStore | PostgresStore]":
        """The store."""

    async def yardstick_per_s(self) -> float:
        """How many the disk or server does in a second, measured now."""


@dataclass
class SqliteBench:
    """A file on the disk that is measured."""

    folder: Path
    vfs: str
    yardstick: str = "fdatasync"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(SqliteSettings(str(self.folder / "relay.db"), vfs=self.vfs))
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    async def yardstick_per_s(self) -> float:
        """One page written and synced at a time, over a file that is there: the least a commit can be."""
        path = self.folder / "fdatasync"
        path.write_bytes(PAGE * 256)
        descriptor = os.open(path, os.O_WRONLY)
        os.fsync(descriptor)
        start, count = time.perf_counter(), 0
        try:
            while (took_s := time.perf_counter() - start) < MEASURED_S:
                os.pwrite(descriptor, PAGE, count % 256 * len(PAGE))
                os.fdatasync(descriptor)
                count += 1
        finally:
            os.close(descriptor)
            path.unlink()
        return count / took_s


@dataclass
class PostgresBench:
    """A server that syncs its commits, on the disk that is measured."""

    url: str
    yardstick: str = "single commit"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PostgresStore]:
        store = PostgresStore(PostgresSettings(self.url))
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    async def yardstick_per_s(self) -> float:
        """Rows of 100 B inserted and committed one by one, by as many connections as a relay has."""
        connections = await asyncio.gather(*(asyncpg.connect(self.url) for _ in range(COMMITTERS)))
        await connections[0].execute("CREATE TABLE IF NOT EXISTS yardstick (row bytea)")
        start, count = time.perf_counter(), 0

        async def committer(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
            nonlocal count
            while time.perf_counter() - start < MEASURED_S:
                await connection.execute("INSERT INTO yardstick VALUES ($1)", bytes(100))
                count += 1

        await asyncio.gather(*map(committer, connections))
        took_s = time.perf_counter() - start
        for connection in connections:
            await connection.close()
        return count / took_s


@contextmanager
def sqlite_bench(folder: Path | None, sync_s: float) -> Iterator[SqliteBench]:
    """``sync_s`` is added to every sync."""
    with tempfile.TemporaryDirectory(dir=folder) as directory, ExitStack() as stack:
        vfs = stack.enter_context(SlowDisk(sync_s)).name if sync_s else ""
        yield SqliteBench(Path(directory), vfs)


@contextmanager
def postgres_bench(folder: Path | None) -> Iterator[PostgresBench]:
    """A fresh server each time."""
    server = PostgresServer(folder or Path(tempfile.gettempdir()), within=folder)
    try:
        server.sync_commits()
        yield PostgresBench(server.url)
    finally:
        server.remove()
