"""What only the SQLite engine has: one file, one relay, group commit, disks that fail."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from relay_service.core.idempotency import Decision
from relay_service.core.job import JobState
from relay_service.stores.interface import (
    JobFilter,
    LetterFilter,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from relay_service.stores.sqlite import SqliteSettings, SqliteStore
from relay_service.stores.sqlite.clock import StoreClock
from relay_service.stores.sqlite.schema import MIGRATIONS
from tests.stores.disks import FailingDisk, SlowDisk

DAY_S = 24 * 3600.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "relay.db")


@asynccontextmanager
async def opened(path: str, clock: StoreClock | None = None, **settings: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(SqliteSettings(path, **settings), clock)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def slow() -> Iterator[SlowDisk]:
    with SlowDisk(0.005) as disk:
        yield disk


@pytest.fixture
def failing() -> Iterator[FailingDisk]:
    with FailingDisk() as disk:
        yield disk


async def test_a_second_relay_on_one_file_is_refused_and_told_who_has_it(path: str) -> None:
    async with opened(path):
        with pytest.raises(StoreError, match=f"held by process {os.getpid()}"):
            await SqliteStore(SqliteSettings(path)).open()
    async with opened(path):
        pass


async def test_a_file_from_a_newer_relay_is_refused_and_left_alone(path: str) -> None:
    async with opened(path):
        pass
    connection = apsw.Connection(path)
    connection.pragma("user_version", len(MIGRATIONS) + 1)
    connection.close()
    with pytest.raises(StoreError, match="newer relay"):
        await SqliteStore(SqliteSettings(path)).open()


async def test_another_programs_database_is_refused(path: str) -> None:
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreError, match="not a relay's store"):
        await SqliteStore(SqliteSettings(path)).open()


async def test_a_damaged_file_is_refused(path: str, make: Any) -> None:
    async with opened(path) as store:
        await store.submit([make.job(request=os.urandom(3000)) for _ in range(50)])
    with open(path, "r+b") as file:  # noqa: ASYNC230, PTH123 - nothing else runs
        file.seek(20 * 4096)
        file.write(os.urandom(10 * 4096))
    with pytest.raises(StoreError, match="damaged"):
        await SqliteStore(SqliteSettings(path)).open()


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        await SqliteStore(SqliteSettings(str(tmp_path / "none" / "relay.db"))).open()


async def test_one_commit_carries_many_rows_on_a_slow_disk(path: str, slow: SlowDisk, make: Any) -> None:
    async with opened(path, vfs=slow.name) as store:

        async def caller() -> None:
            for _ in range(5):
                scope = make.scope()
                claimed = await store.claim(make.claim(scope))
                await store.finish(scope, claimed.record.fence, b"answer", DAY_S)

        await asyncio.gather(*(caller() for _ in range(128)))
        assert store.rows_per_commit >= 32


async def test_a_failing_write_hurts_only_its_own_caller(path: str, slow: SlowDisk, make: Any) -> None:
    async with opened(path, vfs=slow.name) as store:
        nonsense = make.job(traceparent=None)
        results = await asyncio.gather(
            *(store.submit([make.job(job_id=f"good-{n}")]) for n in range(20)),
            store.submit([make.job(job_id="half"), nonsense]),
            *(store.submit([make.job(job_id=f"good-{n}")]) for n in range(20, 40)),
            return_exceptions=True,
        )
        assert isinstance(results[20], apsw.ConstraintError)
        assert sum(isinstance(result, BaseException) for result in results) == 1
        assert await store.job("half") is None
        assert (await store.counts()).jobs[JobState.PENDING] == 40
        assert store.rows_per_commit > 2


async def test_a_caller_that_goes_away_does_not_undo_what_it_asked_for(
    path: str, slow: SlowDisk, make: Any
) -> None:
    async with opened(path, vfs=slow.name) as store:
        gone = asyncio.create_task(store.submit([make.job(job_id="kept")]))
        await asyncio.sleep(0)
        gone.cancel()
        await store.submit([make.job()])
        assert await store.job("kept") is not None


async def test_a_full_queue_refuses_at_once(path: str, slow: SlowDisk, make: Any) -> None:
    async with opened(path, vfs=slow.name, queue_limit=5) as store:
        results = await asyncio.gather(
            *(store.submit([make.job()]) for _ in range(50)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, StoreUnavailableError)]
        assert len(refused) == 45
        assert (await store.counts()).jobs[JobState.PENDING] == 5


@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError])
@pytest.mark.parametrize("where", ["error", "sync_error"])
async def test_a_disk_that_fails_refuses_writes_and_recovers_by_itself(
    path: str, failing: FailingDisk, make: Any, error: type[apsw.Error], where: str
) -> None:
    told = StoreFullError if error is apsw.FullError else StoreUnavailableError
    async with opened(path, vfs=failing.name) as store:
        await store.submit([make.job(job_id="before")])
        setattr(failing, where, error)
        results = await asyncio.gather(
            *(store.submit([make.job(job_id=f"failed-{n}")]) for n in range(10)), return_exceptions=True
        )
        assert {type(result) for result in results} == {told}
        assert await store.job("before") is not None
        assert await store.healthy()
        setattr(failing, where, None)
        assert await store.healthy() == ""
        await store.submit([make.job(job_id="after")])
    async with opened(path) as store:
        jobs, _ = await store.jobs(JobFilter(), after="", limit=100)
        assert [job.id for job in jobs] == ["before", "after"]
        assert (await store.counts()).jobs[JobState.PENDING] == 2


async def test_what_was_accepted_before_closing_is_done(path: str, slow: SlowDisk, make: Any) -> None:
    async with opened(path, vfs=slow.name) as store:
        accepted = [asyncio.create_task(store.submit([make.job()])) for _ in range(100)]
        await asyncio.sleep(0)
    assert len(await asyncio.gather(*accepted)) == 100
    with pytest.raises(StoreUnavailableError):
        await store.submit([make.job()])
    async with opened(path) as store:
        assert (await store.counts()).jobs[JobState.PENDING] == 100


class Clocks:
    """A wall clock that can be stepped and a monotonic one that cannot."""

    def __init__(self) -> None:
        self.wall_s = 1_700_000_000.0
        self.monotonic_s = 50.0

    def store_clock(self) -> StoreClock:
        return StoreClock(lambda: self.wall_s, lambda: self.monotonic_s)

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
async def test_a_step_of_the_wall_clock_changes_no_lease(path: str, make: Any, step_s: float) -> None:
    clocks = Clocks()
    async with opened(path, clocks.store_clock()) as store:
        scope = make.scope()
        await store.claim(make.claim(scope, lease_s=30))
        await store.submit([make.job()])
        (job,) = await store.lease("worker", methods=None, limit=1, lease_s=30)
        clocks.wall_s += step_s
        clocks.advance(29)
        assert (await store.claim(make.claim(scope))).decision is Decision.WAIT
        assert await store.lease("other", methods=None, limit=1, lease_s=30) == ()
        clocks.advance(2)
        assert (await store.claim(make.claim(scope))).decision is Decision.UNKNOWN
        assert [again.id for again in await store.lease("other", methods=None, limit=1, lease_s=30)] == [
            job.id
        ]


async def test_the_clock_does_not_run_backwards_over_a_restart(path: str, make: Any) -> None:
    clocks = Clocks()
    async with opened(path, clocks.store_clock()) as store:
        clocks.advance(100)
        ((job, _new),) = await store.submit([make.job()])
    clocks.wall_s -= 3600
    clocks.monotonic_s = 1.0
    async with opened(path, clocks.store_clock()) as store:
        assert store.now() >= job.submitted_at


def fill(path: str, sql: str) -> None:
    connection = apsw.Connection(path)
    connection.pragma("synchronous", 0)
    with connection:
        connection.execute(sql)
    connection.close()


NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
JOBS = NUMBERS + (
    "INSERT INTO jobs (id, tenant, method, request, metadata, key, fingerprint, order_key, priority,"
    " traceparent, state, gate, rank, submitted_at, ready_at, expires_at)"
    " SELECT 'job-' || i, '', 'a/A', zeroblob(200), '', x'00', x'00', '', 0, '',"
    " 'pending', 0, i, i, i, 9e9 FROM n"
)
LETTERS = NUMBERS + (
    "INSERT INTO letters (id, tenant, method, request, metadata, key, fingerprint, order_key, priority,"
    " traceparent, cause, state, died_at, expires_at, submitted_at, attempts, tries, code, message, job_id,"
    " policy, replays, note, fields)"
    " SELECT 'l-' || i, '', 'a/M' || (i % 20), zeroblob(200), '', x'00', x'00', '', 0, '',"
    " 'poison', 'open', i, 9e9, i, 1, '', i % 5, 'm', '', '', '', '', '' FROM n"
)


@pytest.fixture
async def timed() -> Callable[[Any], Any]:
    async def time_of(work: Any) -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await work
        return loop.time() - start

    return time_of


async def test_a_hundred_thousand_unfinished_jobs_are_ready_soon_after_a_start(path: str, timed: Any) -> None:
    async with opened(path):
        pass
    fill(path, JOBS.format(count=100_000))
    store = SqliteStore(SqliteSettings(path))
    try:
        assert await timed(store.open()) < 3
        assert await timed(store.lease("worker", methods=None, limit=10, lease_s=60)) < 1
        assert (await store.counts()).jobs[JobState.PENDING] == 99_990
    finally:
        await store.close()


async def test_a_hundred_thousand_letters_are_grouped_and_listed_at_once(path: str, timed: Any) -> None:
    async with opened(path):
        pass
    fill(path, LETTERS.format(count=100_000))
    async with opened(path) as store:
        for which in (LetterFilter(), LetterFilter(died_after=50_000.0), LetterFilter(method="a/M3", code=3)):
            assert await timed(store.groups(which)) < 1
            assert await timed(store.letters(which, after="", limit=100)) < 1
        groups = await store.groups(LetterFilter())
        assert sum(group.count for group in groups) == 100_000
