"""What only the PostgreSQL engine has: a server that can be lost, found again, and shared."""

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from relay_service.core.job import JobState
from relay_service.stores.interface import StoreError, StoreUnavailableError
from relay_service.stores.opening import engine_from
from relay_service.stores.postgres import PostgresSettings, PostgresStore
from relay_service.stores.postgres.schema import MIGRATIONS
from relay_service.stores.statements import LockOrder, Run

DAY_S = 24 * 3600.0
BOUND_S = 30.0
MACHINE_S = 8.0
"""What a busy machine may add to times of the relay's own."""


@pytest.fixture
async def relay(postgres_rig: Any) -> PostgresStore:
    return await postgres_rig.engine()


@pytest.fixture
async def psql(postgres_rig: Any, relay: PostgresStore) -> Any:
    connection = await asyncpg.connect(postgres_rig.settings.url)
    yield connection
    await connection.close()


async def blocked(psql: Any) -> list[int]:
    """The server processes that wait for a lock, once there are any."""
    async with asyncio.timeout(BOUND_S):
        while True:
            waiting = await psql.fetch("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            if waiting:
                return [row["pid"] for row in waiting]


async def back(store: PostgresStore) -> None:
    """Until the store works again."""
    async with asyncio.timeout(BOUND_S):
        while await store.healthy():  # noqa: ASYNC110 - a server that comes back tells nobody
            await asyncio.sleep(0.02)


async def test_a_connection_killed_in_mid_transaction_leaves_nothing_half_written(
    relay: PostgresStore, psql: Any, make: Any, take: Any
) -> None:
    await relay.submit([make.job(key=b"k")])
    job = await take(relay)
    transaction = psql.transaction()
    await transaction.start()
    await psql.execute("SELECT 1 FROM keys FOR UPDATE")
    burying = asyncio.create_task(relay.bury(job.id, job.fence, make.tried(), make.burial("letter")))
    for pid in await blocked(psql):
        await psql.execute("SELECT pg_terminate_backend($1)", pid)
    with pytest.raises(StoreUnavailableError):
        await burying
    await transaction.rollback()
    await back(relay)
    assert await relay.letter("letter") is None
    assert (await relay.job(job.id)).state is JobState.RUNNING
    assert await relay.bury(job.id, job.fence, make.tried(), make.burial("letter"))


async def test_a_lock_that_somebody_keeps_is_waited_for_no_longer_than_the_bound(
    postgres_rig: Any, relay: PostgresStore, psql: Any, make: Any
) -> None:
    impatient = PostgresStore(PostgresSettings(url=postgres_rig.settings.url, statement_timeout_s=0.2))
    postgres_rig.stores.append(impatient)
    await impatient.open()
    scope = make.scope()
    fence = (await impatient.claim(make.claim(scope))).record.fence
    async with psql.transaction():
        await psql.execute("SELECT 1 FROM keys FOR UPDATE")
        with pytest.raises(StoreUnavailableError, match="timeout"):
            await impatient.finish(scope, fence, b"answer", DAY_S)
    assert await impatient.finish(scope, fence, b"answer", DAY_S)


async def test_a_deadlock_is_tried_again(relay: PostgresStore, psql: Any) -> None:
    def crosswise(_now: float) -> Any:
        yield LockOrder("", "x")
        yield Run("SELECT pg_advisory_xact_lock(7)")
        return "through"

    from relay_service.stores.postgres.running import advisory_number

    transaction = psql.transaction()
    await transaction.start()
    await psql.execute("SET LOCAL deadlock_timeout = '60s'")
    await psql.execute("SELECT pg_advisory_xact_lock(7)")
    crossing = asyncio.create_task(relay._write(crosswise))
    watcher = await asyncpg.connect(relay._settings.url)
    await blocked(watcher)
    await watcher.close()
    await psql.execute("SELECT pg_advisory_xact_lock($1)", advisory_number("order", "", "x"))
    await transaction.rollback()
    async with asyncio.timeout(BOUND_S):
        assert await crossing == "through"


async def test_a_server_restarted_under_load_loses_nothing_and_is_noticed_soon(
    postgres_server: Any, postgres_rig: Any, relay: PostgresStore, make: Any
) -> None:
    # Its waiters look again many times while the server is away.
    relay = PostgresStore(replace(postgres_rig.settings, safety_poll_s=0.1))
    postgres_rig.stores.append(relay)
    await relay.open()
    scope = make.scope()
    fence = (await relay.claim(make.claim(scope, lease_s=DAY_S))).record.fence
    waiting = asyncio.create_task(relay.changed(scope, fence, BOUND_S))
    arrivals = relay.work_arrived()
    arriving = asyncio.ensure_future(anext(arrivals))
    accepted: list[str] = []
    refused: list[StoreError] = []
    running = True

    async def load() -> None:
        while running:
            submission = make.job()
            try:
                await relay.submit([submission])
            except StoreUnavailableError as error:
                refused.append(error)
                await asyncio.sleep(0.005)
            else:
                accepted.append(submission.id)

    loads = [asyncio.create_task(load()) for _ in range(8)]
    await asyncio.wait_for(arriving, BOUND_S)
    try:
        await asyncio.to_thread(postgres_server.stop)
        async with asyncio.timeout(BOUND_S):
            while not refused:  # noqa: ASYNC110 - the load goes on by itself
                await asyncio.sleep(0.01)
        assert await relay.healthy()
    finally:
        await asyncio.to_thread(postgres_server.start)
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    await back(relay)
    before = len(accepted)
    async with asyncio.timeout(BOUND_S):
        while len(accepted) == before:  # noqa: ASYNC110 - the load goes on by itself
            await asyncio.sleep(0.01)
    back_after_s = loop.time() - started_at
    running = False
    await asyncio.gather(*loads)
    assert back_after_s < 2 + MACHINE_S
    for job_id in accepted:
        assert await relay.job(job_id) is not None
    assert await relay.finish(scope, fence, b"answer", DAY_S)
    record = await waiting
    assert record is not None
    assert record.answer == b"answer"
    await arrivals.aclose()


async def test_a_schema_from_a_newer_relay_is_refused(
    postgres_rig: Any, relay: PostgresStore, psql: Any
) -> None:
    await psql.execute("UPDATE relay_store SET version = $1", len(MIGRATIONS) + 1)
    with pytest.raises(StoreError, match="newer relay"):
        await PostgresStore(postgres_rig.settings).open()


async def test_relays_that_start_together_migrate_once(postgres_rig: Any) -> None:
    await postgres_rig.run(f"CREATE SCHEMA {postgres_rig.schema}")
    stores = [PostgresStore(postgres_rig.settings) for _ in range(4)]
    postgres_rig.stores += stores
    await asyncio.gather(*(store.open() for store in stores))
    assert [await store.healthy() for store in stores] == [""] * 4
    assert await postgres_rig.rows("SELECT version FROM relay_store") == [(len(MIGRATIONS),)]


async def test_a_schema_that_is_not_there_is_named(postgres_server: Any) -> None:
    with pytest.raises(StoreError, match="no schema"):
        await engine_from(f"{postgres_server.url}&search_path=nowhere").open()


async def test_a_server_that_is_not_there_is_named_without_its_password(unused_tcp_port: int) -> None:
    store = engine_from(f"postgres://relay:s3cret@127.0.0.1:{unused_tcp_port}/relay")
    with pytest.raises(StoreUnavailableError) as refused:
        await store.open()
    assert f"relay@127.0.0.1:{unused_tcp_port}" in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in await store.healthy()


async def test_text_that_the_server_cannot_hold_is_kept_but_for_that(
    relay: PostgresStore, make: Any, take: Any
) -> None:
    await relay.submit([make.job(order_key="a\0b")])
    job = await take(relay)
    assert job.work.order_key == "a\ufffdb"
    assert await relay.retry(job.id, job.fence, make.tried("bad\0byte"), 0)
    assert (await take(relay)).tries[0].message == "bad\0byte"


async def test_an_address_that_cannot_be_read_is_refused_without_its_password() -> None:
    with pytest.raises(StoreError, match="percent-encoded") as refused:
        await engine_from("postgres://relay:Tr0ub/4d:0r@h:x/relay").open()
    assert not {"Tr0ub", "4d", "0r@"} & {
        part for part in ("Tr0ub", "4d", "0r@") if part in str(refused.value)
    }
    assert refused.value.__cause__ is None
