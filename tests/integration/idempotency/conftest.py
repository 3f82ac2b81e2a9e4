"""A site for each test."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.integration.idempotency.sites import Site, policy_of
from tests.stores.postgres_server import PostgresServer


@pytest_asyncio.fixture(loop_scope="module")
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """On SQLite, not started: one relay may use the file."""
    made = Site(tmp_path, f"sqlite:{tmp_path / 'relay.db'}")
    try:
        yield made
    finally:
        await made.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """On SQLite, with one relay and all defaults; tests that share it take keys and accounts of their own."""
    folder = tmp_path_factory.mktemp("site")
    made = Site(folder, f"sqlite:{folder / 'relay.db'}")
    try:
        yield await made.start(policy_of())
    finally:
        await made.stop()


@pytest.fixture(scope="module")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One server for all tests of a module."""
    try:
        server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    except Exception as error:  # noqa: BLE001 - whatever keeps it from starting is what the report should say
        pytest.skip(f"PostgreSQL cannot be started here: {error!r}")
    try:
        yield server
    finally:
        server.remove()


@pytest_asyncio.fixture(loop_scope="module")
async def shared_site(tmp_path: Path, postgres_server: PostgresServer) -> AsyncIterator[Site]:
    """On PostgreSQL, in a schema of its own, not started: several relays may use it."""
    schema = f"test_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(postgres_server.url)
    await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.close()
    made = Site(tmp_path, f"{postgres_server.url}&search_path={schema}")
    try:
        yield made
    finally:
        await made.stop()
