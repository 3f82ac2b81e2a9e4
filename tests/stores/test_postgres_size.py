"""A hundred thousand and a million rows on PostgreSQL: found by an index, and never all in memory."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import asyncpg
import pytest

from relay_service.core.job import JobState
from relay_service.stores.interface import JobFilter, LetterFilter
from relay_service.stores.postgres import PostgresStore
from tests.stores.test_memory import peak_mib

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

JOBS = (
    "INSERT INTO jobs (id, tenant, method, request, metadata, key, fingerprint, order_key, priority,"
    " traceparent, state, gate, rank, submitted_at, ready_at, expires_at)"
    " SELECT 'job-' || i, '', 'a/A', decode(repeat('00', 200), 'hex'), '', '\\x00', '\\x00', '', 0, '',"
    " 'pending', 0, i, i, i, 9e9 FROM generate_series(1, {count}) AS n(i)"
)
LETTERS = (
    "INSERT INTO letters (id, tenant, method, request, metadata, key, fingerprint, order_key, priority,"
    " traceparent, cause, state, died_at, expires_at, submitted_at, attempts, tries, code, message, job_id,"
    " policy, replays, note, fields)"
    " SELECT 'l-' || i, '', 'a/M' || (i % 20), decode(repeat('00', 200), 'hex'), '', '\\x00', '\\x00', '', 0,"
    " '', 'poison', 'open', i, 9e9, i, 1, '', i % 5, 'm', '', '', '', '', ''"
    " FROM generate_series(1, {count}) AS n(i)"
)
GROWN_MIB_MAX = 80.0


async def filled(rig: Any, sql: str) -> PostgresStore:
    """A relay that starts on a store with these rows; nobody has analyzed them."""
    await rig.engine()
    connection = await asyncpg.connect(rig.settings.url)
    await connection.execute(sql, timeout=600)
    await connection.close()
    store = PostgresStore(rig.settings)
    rig.stores.append(store)
    return store


async def seconds(work: Awaitable[Any]) -> float:
    loop = asyncio.get_running_loop()
    start = loop.time()
    await work
    return loop.time() - start


async def test_a_hundred_thousand_unfinished_jobs_are_ready_soon_after_a_start(postgres_rig: Any) -> None:
    store = await filled(postgres_rig, JOBS.format(count=100_000))
    opened_s = await seconds(store.open())
    leased_s = await seconds(store.lease("worker", methods=None, limit=10, lease_s=60))
    print(f"open {opened_s:.2f} s, first lease {leased_s:.3f} s")
    assert opened_s + leased_s < 3
    assert (await store.counts()).jobs[JobState.PENDING] == 99_990


async def test_a_hundred_thousand_letters_are_grouped_and_listed_at_once(postgres_rig: Any) -> None:
    store = await filled(postgres_rig, LETTERS.format(count=100_000))
    await store.open()
    for which in (LetterFilter(), LetterFilter(died_after=50_000.0), LetterFilter(method="a/M3", code=3)):
        grouped_s = await seconds(store.groups(which))
        listed_s = await seconds(store.letters(which, after="", limit=100))
        print(f"groups {grouped_s:.3f} s, first page {listed_s:.3f} s")
        assert max(grouped_s, listed_s) < 1
    groups = await store.groups(LetterFilter())
    assert sum(group.count for group in groups) == 100_000


async def test_memory_stays_flat_with_a_million_queued_jobs(postgres_rig: Any) -> None:
    store = await filled(postgres_rig, JOBS.format(count=1_000_000))
    before = peak_mib()
    opened_s = await seconds(store.open())
    seen, token = 0, ""
    while seen == 0 or token:
        page, token = await store.jobs(JobFilter(), after=token, limit=1000)
        seen += len(page)
    leasing_s = 0.0
    for _ in range(100):
        leasing_s += await seconds(store.lease("worker", methods=None, limit=100, lease_s=600))
    counts = (await store.counts()).jobs
    grown_mib = peak_mib() - before
    print(f"open {opened_s:.2f} s, {seen} jobs listed, memory grew by {grown_mib:.0f} MiB")
    print(f"a lease of 100 took {leasing_s * 10:.0f} ms on average")
    assert seen == 1_000_000
    assert counts[JobState.RUNNING] == 10_000
    assert grown_mib < GROWN_MIB_MAX
    assert opened_s < 3
