"""A SQLite file: opened, checked, brought forward."""

import time
from dataclasses import dataclass

import apsw

from relay_service.stores.interface import StoreError
from relay_service.stores.sqlite.errors import as_store_error
from relay_service.stores.sqlite.schema import APPLICATION_ID, MIGRATIONS

_STEPS_BETWEEN_LOOKS = 10_000
"""Virtual machine steps between two looks at the clock during the check: well under a millisecond."""


@dataclass(frozen=True, slots=True)
class SqliteSettings:
    """Where the file is and how it is treated."""

    path: str
    check_s: float = 2.0
    """How long the integrity check at the start may take; a larger file is checked in part."""
    queue_limit: int = 10_000
    """Writes, and reads, that may wait; beyond it callers are refused."""
    batch_limit: int = 512
    """Writes that one commit joins at most."""
    cache_kib: int = 32 * 1024
    vfs: str = ""
    """SQLite's name of the file system layer; empty is the system's."""
    synchronous: str = "EXTRA"
    """FULL, and the directory synced when a journal is deleted: before a new file is in WAL mode it has one,
    and a journal that came back after a power cut would roll back all that followed. Anything less may lose
    what was acknowledged."""


def open_writer(settings: SqliteSettings) -> apsw.Connection:
    """The connection that writes and checkpoints, on a file that is whole and of this version.

    Raises `StoreError`.
    """
    try:
        connection = _connect(settings)
        try:
            _refuse_foreign(connection, settings.path)
            connection.pragma("synchronous", settings.synchronous)
            connection.pragma("journal_mode", "wal")
            connection.pragma("journal_size_limit", 64 * 1024 * 1024)
            _check(connection, settings)
            _migrate(connection)
        except BaseException:
            connection.close(True)
            raise
    except apsw.Error as error:
        mapped = as_store_error(error, settings.path)
        raise mapped from (None if mapped is error else error)
    return connection


def open_reader(settings: SqliteSettings) -> apsw.Connection:
    """A connection that only reads."""
    connection = _connect(settings)
    connection.pragma("query_only", 1)
    connection.pragma("wal_autocheckpoint", 0)
    return connection


def _connect(settings: SqliteSettings) -> apsw.Connection:
    connection = apsw.Connection(settings.path, vfs=settings.vfs or None, statementcachesize=256)
    connection.set_busy_timeout(1000)
    connection.pragma("cache_size", -settings.cache_kib)
    return connection


def _refuse_foreign(connection: apsw.Connection, path: str) -> None:
    version, mark = connection.pragma("user_version"), connection.pragma("application_id")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()[0][0]
    if tables and mark != APPLICATION_ID:
        raise StoreError(f"{path} is a SQLite file, but not a relay's store: choose another path")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer relay (version {version}, this one knows {len(MIGRATIONS)}):"
            " start that one again, or give this one another file"
        )


def _check(connection: apsw.Connection, settings: SqliteSettings) -> None:
    """Whole as far as could be seen in the time there is."""
    deadline = time.monotonic() + settings.check_s
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
    try:
        complaints = connection.execute("PRAGMA quick_check(1)").fetchall()
    except apsw.InterruptError:
        return
    finally:
        connection.set_progress_handler(None)
    if complaints != [("ok",)]:
        raise StoreError(f"{settings.path} is damaged ({complaints[0][0]}): restore it from a backup")


def _migrate(connection: apsw.Connection) -> None:
    for version in range(connection.pragma("user_version"), len(MIGRATIONS)):
        with connection:
            connection.execute(MIGRATIONS[version])
            connection.pragma("user_version", version + 1)
            connection.pragma("application_id", APPLICATION_ID)
