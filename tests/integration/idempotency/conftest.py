"""A site for each test."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.integration.idempotency.sites import Site
from tests.stores.postgres_server import PostgresServer


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """On SQLite, not started: one relay may use the file."""
    made = Site(tmp_path, f"sqlite:{tmp_path / 'relay.db'}")
    try:
        yield made
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


@pytest.fixture
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
