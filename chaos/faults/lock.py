"""Somebody else's hand on a SQLite file: the write lock, held as long as a block lasts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import apsw

from chaos.faults.kinds import FaultError

BUSY_TIMEOUT_MS = 2000
"""How long the lock is waited for, against a relay that writes all the time."""


@contextlib.asynccontextmanager
async def locked(database: Path) -> AsyncIterator[None]:
    """Nobody else can write. Raises `FaultError` when the lock is not to be had."""
    # Shielded: whoever is cancelled while the lock is taken must let go of it too.
    taking = asyncio.ensure_future(asyncio.to_thread(_lock, database))
    try:
        await asyncio.shield(taking)
        yield
    finally:
        (await taking).close(True)


def _lock(database: Path) -> apsw.Connection:
    try:
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
        # A visitor must not tidy up: the log of a relay that was killed is the relay's to recover.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.execute("BEGIN IMMEDIATE")
    except apsw.Error as error:
        raise FaultError(f"cannot lock {database}: {error}") from error
    return connection
