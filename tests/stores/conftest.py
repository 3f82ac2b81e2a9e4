"""Every engine under the same tests: a `Rig` makes engines on one store, as many relays would."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import pytest

from relay_service.core.evidence import Delivery
from relay_service.core.idempotency import Scope
from relay_service.core.job import Cause, DeadLetter, Job, JobState, LetterState, Try, Work
from relay_service.core.status import Code
from relay_service.stores.interface import Burial, Claim, Store, Submission
from relay_service.stores.postgres import PostgresSettings, PostgresStore
from relay_service.stores.sqlite import SqliteSettings, SqliteStore
from tests.stores.postgres_server import PostgresServer

BOUND_S = 20.0
"""For waits that end at once when all is well; generous, for the machine may be busy."""
LONG_S = 600.0
"""A lease that does not run out within a test."""


class Rig(Protocol):
    """One store and the engines on it."""

    name: str

    async def engine(self) -> Store:
        """An open engine on the store; another one where the store can be shared, else the same."""

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What the tables really hold."""

    async def close(self) -> None:
        """Everything that was opened."""


@dataclass
class SqliteRig:
    """A file; one relay may use it, so every engine is the same."""

    path: Path
    name: str = "sqlite"
    store: SqliteStore | None = None

    async def engine(self) -> Store:
        if self.store is None:
            self.store = SqliteStore(SqliteSettings(path=str(self.path)))
            await self.store.open()
        return self.store

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        import apsw

        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()


@dataclass
class PostgresRig:
    """A schema of its own; every engine is another relay."""

    url: str
    schema: str
    name: str = "postgres"
    stores: list[PostgresStore] = field(default_factory=list)

    @property
    def settings(self) -> PostgresSettings:
        return PostgresSettings(url=f"{self.url}&search_path={self.schema}", health_check_s=0.5)

    async def engine(self) -> Store:
        if not self.stores:
            await self.run(f"CREATE SCHEMA {self.schema}")
        store = PostgresStore(self.settings)
        self.stores.append(store)
        await store.open()
        return store

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.run(sql)]

    async def run(self, sql: str) -> list[Any]:
        connection = await asyncpg.connect(self.settings.url)
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()

    async def close(self) -> None:
        for store in self.stores:
            await store.close()
        await self.run(f"DROP SCHEMA {self.schema} CASCADE")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One server for all; each test has a schema of its own."""
    try:
        server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    except Exception as error:  # noqa: BLE001 - whatever keeps it from starting is what the report should say
        pytest.skip(f"PostgreSQL cannot be started here: {error!r}")
    try:
        yield server
    finally:
        server.remove()


_schemas = itertools.count(1)


@pytest.fixture
async def postgres_rig(postgres_server: PostgresServer) -> AsyncIterator[PostgresRig]:
    made = PostgresRig(postgres_server.url, f"test_{next(_schemas)}")
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def sqlite_rig(tmp_path: Path) -> AsyncIterator[SqliteRig]:
    made = SqliteRig(tmp_path / "relay.db")
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(params=["sqlite", "postgres"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Every engine in turn."""
    return request.getfixturevalue(f"{request.param}_rig")


@pytest.fixture
async def store(rig: Rig) -> Store:
    return await rig.engine()


@pytest.fixture
async def other(rig: Rig, store: Store) -> Store:
    """A second relay's engine on the same store, where there can be one."""
    return await rig.engine()


@dataclass
class Make:
    """Values with all that a test does not care about filled in."""

    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def id(self, kind: str) -> str:
        return f"{kind}-{next(self._ids)}"

    def scope(self, key: bytes | None = None, *, tenant: str = "") -> Scope:
        return Scope(tenant, "shop.Payments/Charge", key or self.id("key").encode())

    def claim(
        self,
        scope: Scope,
        *,
        request: bytes = b"request",
        owner: str = "relay-1",
        lease_s: float = LONG_S,
        repeatable: bool = False,
    ) -> Claim:
        return Claim(scope, hashlib.sha256(request).digest(), owner, lease_s, repeatable)

    def job(
        self,
        *,
        job_id: str | None = None,
        delay_s: float = 0.0,
        ttl_s: float = 3600.0,
        method: str = "shop.Payments/Charge",
        request: bytes = b"request",
        **work: Any,
    ) -> Submission:
        fingerprint = hashlib.sha256(request).digest()
        body = Work(**{"tenant": "", "method": method, "request": request, "fingerprint": fingerprint} | work)
        return Submission(job_id or self.id("job"), body, delay_s, ttl_s)

    def tried(self, message: str = "down", *, at: float = 1.0) -> Try:
        return Try(at, "worker-1", Code.UNAVAILABLE, message, Delivery.UNANSWERED)

    def burial(self, letter_id: str | None = None, *, keep_s: float = 3600.0) -> Burial:
        return Burial(
            letter_id or self.id("letter"),
            Cause.RETRIES_EXHAUSTED,
            keep_s,
            '{"maxAttempts":4}',
            "upstream is down",
            int(Code.UNAVAILABLE),
        )

    def letter(
        self,
        *,
        letter_id: str | None = None,
        died_at: float,
        state: LetterState = LetterState.OPEN,
        cause: Cause = Cause.AMBIGUOUS,
        message: str = "no answer",
        **work: Any,
    ) -> DeadLetter:
        body = {"tenant": "", "method": "shop.Payments/Charge", "request": b"request", "key": b"k"} | work
        return DeadLetter(
            id=letter_id or self.id("letter"),
            work=Work(**body),
            cause=cause,
            state=state,
            died_at=died_at,
            expires_at=died_at + 60,
            submitted_at=died_at - 1,
            attempts=1,
            tries=(self.tried(),),
            code=Code.UNAVAILABLE,
            message=message,
            fields={"trace": "abc"},
        )


@pytest.fixture
def make() -> Make:
    return Make()


async def lease_one(store: Store, worker: str = "worker-1", *, lease_s: float = LONG_S) -> Job:
    """The next job, which must be there."""
    (job,) = await store.lease(worker, methods=None, limit=1, lease_s=lease_s)
    assert job.state is JobState.RUNNING
    return job


@pytest.fixture
def take() -> Any:
    return lease_one


async def pass_time(store: Store, until: float) -> None:
    """Until the store's clock is there; for times of a few hundredths of a second."""
    while store.now() <= until:  # noqa: ASYNC110 - a clock has no event
        await asyncio.sleep(max(0.001, until - store.now()))


@pytest.fixture
def passed() -> Any:
    return pass_time


@pytest.fixture
def real_counts(rig: Rig) -> Any:
    async def count() -> tuple[dict[str, int], dict[str, int]]:
        jobs = dict(await rig.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
        letters = dict(await rig.rows("SELECT state, count(*) FROM letters GROUP BY state"))
        return jobs, letters

    return count


@pytest.fixture
async def counted(store: Store, real_counts: Any) -> AsyncIterator[None]:
    """Whatever the test does, at its end the kept counts are the real ones."""
    yield
    kept = await store.counts()
    jobs, letters = await real_counts()
    assert {state.value: n for state, n in kept.jobs.items() if n} == jobs
    assert {state.value: n for state, n in kept.letters.items() if n} == letters
