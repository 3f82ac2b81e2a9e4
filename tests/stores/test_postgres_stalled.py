"""A relay that stops in the middle of a transaction keeps its locks, until another relay frees them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from relay_service.stores.postgres import PostgresStore
from relay_service.stores.postgres.errors import UNREACHABLE
from relay_service.stores.postgres.stalled import APPLICATION

BOUND_S = 30.0


@pytest.fixture
async def store(postgres_rig: Any) -> PostgresStore:
    """A relay that looks after the others often."""
    first = await postgres_rig.engine()
    quick = PostgresStore(
        replace(postgres_rig.settings, health_check_s=0.1, idle_transaction_s=0.3, statement_timeout_s=2.0)
    )
    postgres_rig.stores.append(quick)
    await quick.open()
    await first.submit([])
    return quick


async def session(rig: Any, name: str) -> AsyncIterator[Any]:
    limits = {"statement_timeout": "20000", "idle_in_transaction_session_timeout": "300"}
    connection = await asyncpg.connect(
        rig.settings.url, server_settings={"application_name": name, **limits}, timeout=BOUND_S
    )
    yield connection
    connection.terminate()


@pytest.fixture
async def stopped(postgres_rig: Any, store: PostgresStore) -> AsyncIterator[Any]:
    """A session as relays have them, from here on as silent as the test leaves it."""
    async for connection in session(postgres_rig, APPLICATION):
        yield connection


@pytest.fixture
async def operator(postgres_rig: Any, store: PostgresStore) -> AsyncIterator[Any]:
    """Somebody else's session."""
    async for connection in session(postgres_rig, "psql"):
        yield connection


async def leased(store: PostgresStore) -> list[Any]:
    """Ready jobs, as soon as nobody holds their rows any more."""
    async with asyncio.timeout(BOUND_S):
        while True:
            if jobs := await store.lease("worker-1", methods=None, limit=10, lease_s=60):
                return list(jobs)
            await asyncio.sleep(0.02)


async def test_a_relay_stopped_between_parsing_a_statement_and_running_it_loses_its_locks(
    store: PostgresStore, stopped: Any, make: Any
) -> None:
    """Neither of the server's own limits ends such a session: it counts as active and runs nothing."""
    await store.submit([make.job(job_id="held")])
    await stopped.execute("BEGIN")
    await stopped.execute("SELECT 1 FROM jobs FOR UPDATE")
    await stopped.prepare("SELECT 2")
    assert await store.lease("worker-1", methods=None, limit=10, lease_s=60) == ()
    assert [job.id for job in await leased(store)] == ["held"]
    with pytest.raises(UNREACHABLE):
        await stopped.execute("SELECT 3")


async def test_a_relay_that_does_not_read_its_answer_loses_its_locks(
    store: PostgresStore, stopped: Any, make: Any
) -> None:
    await store.submit([make.job(job_id="held")])
    large = await stopped.prepare("SELECT repeat('x', 30000000)")
    await stopped.execute("BEGIN")
    await stopped.execute("SELECT 1 FROM jobs FOR UPDATE")
    answer = asyncio.create_task(large.fetchval())
    await asyncio.sleep(0)
    stopped._transport.pause_reading()
    assert [job.id for job in await leased(store)] == ["held"]
    stopped._transport.resume_reading()
    with pytest.raises(UNREACHABLE):
        await answer


async def test_a_session_that_is_no_relays_is_left_alone(
    store: PostgresStore, stopped: Any, operator: Any, make: Any
) -> None:
    await store.submit([make.job(job_id="held"), make.job(job_id="looked-at")])
    await operator.execute("BEGIN")
    await operator.execute("SELECT 1 FROM jobs WHERE id = 'looked-at' FOR UPDATE")
    await operator.prepare("SELECT 2")
    await stopped.execute("BEGIN")
    await stopped.execute("SELECT 1 FROM jobs WHERE id = 'held' FOR UPDATE")
    await stopped.prepare("SELECT 2")
    assert [job.id for job in await leased(store)] == ["held"]
    assert await operator.fetchval("SELECT 3") == 3
