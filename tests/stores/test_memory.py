"""A million queued jobs take room on the disk and none in memory."""

import asyncio
import resource
import sys
from pathlib import Path

import pytest

from relay_service.core.job import JobState
from relay_service.stores.interface import JobFilter
from relay_service.stores.sqlite import SqliteSettings, SqliteStore
from tests.stores.test_sqlite import JOBS, fill, opened

ALLOWED_MIB = 80.0
"""The page caches of two connections (32 MiB each) and some change."""


def peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 / (1024 if sys.platform == "darwin" else 1)


@pytest.mark.soak
async def test_memory_stays_flat_with_a_million_queued_jobs(tmp_path: Path) -> None:
    path = str(tmp_path / "relay.db")
    async with opened(path):
        pass
    await asyncio.to_thread(fill, path, JOBS.format(count=1_000_000))
    before = peak_mib()
    loop = asyncio.get_running_loop()
    start = loop.time()
    store = SqliteStore(SqliteSettings(path))
    await store.open()
    opened_s = loop.time() - start
    try:
        seen, token = 0, ""
        while seen == 0 or token:
            page, token = await store.jobs(JobFilter(), after=token, limit=1000)
            seen += len(page)
        for _ in range(100):
            leased = await store.lease("worker", methods=None, limit=100, lease_s=60)
            assert len(leased) == 100
        counts = (await store.counts()).jobs
    finally:
        await store.close()
    grown_mib = peak_mib() - before
    print(f"open {opened_s:.2f} s, {seen} jobs listed, memory grew by {grown_mib:.0f} MiB")
    assert seen == 1_000_000
    assert counts[JobState.RUNNING] == 10_000
    assert grown_mib < ALLOWED_MIB
    assert opened_s < 10
