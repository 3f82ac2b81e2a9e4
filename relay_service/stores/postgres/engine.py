"""The PostgreSQL engine: one database, many relays, the server's commits and the server's clock."""

import asyncio
import random
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import asyncpg

from relay_service.stores.engine import Kind, Touches, TransactionalStore
from relay_service.stores.interface import Durability, StoreError, StoreUnavailableError
from relay_service.stores.opening import without_password
from relay_service.stores.postgres.clock import NOW, ServerClock
from relay_service.stores.postgres.errors import LOST_TO_ANOTHER, OPEN_END, UNREACHABLE, as_store_error
from relay_service.stores.postgres.joining import Joined, UndoneError
from relay_service.stores.postgres.link import Link
from relay_service.stores.postgres.lockstep import run_in_step
from relay_service.stores.postgres.running import Connection, advisory_number, run
from relay_service.stores.postgres.schema import migrate
from relay_service.stores.postgres.settings import PostgresSettings
from relay_service.stores.postgres.stalled import APPLICATION
from relay_service.stores.statements import Operation

T = TypeVar("T")

POSTGRES = Durability(
    "postgres-commit",
    "Committed by PostgreSQL with synchronous_commit on: it survives the death of every relay, and of the"
    " server as far as that server's own disks and replicas do.",
)
_NOW_AND_HASTE = f"{NOW}, set_config('lock_timeout', $1, true)"
_NOTIFY = "SELECT pg_notify($1, topic) FROM unnest($2::text[]) AS topic"


class PostgresStore(TransactionalStore):
    """A `Store` in a PostgreSQL schema.

    Every transaction takes a connection from the pool; the link listens and notices when the server is gone.
    State: the pool and the link while open, the writes that wait to go together, the transactions under way.
    """

    durability = POSTGRES

    def __init__(self, settings: PostgresSettings, clock: ServerClock | None = None) -> None:
        super().__init__(safety_poll_s=settings.safety_poll_s)
        self._settings = settings
        self._where = without_password(settings.url)
        self._clock = clock or ServerClock()
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._joined = {
            kind: Joined(
                self._together, self._with_retries, lanes=settings.lanes, batch_limit=settings.batch_limit
            )
            for kind in Kind
        }
        self._rng = random.Random()
        self._link = Link(settings, self._clock, wake=self._waiters.wake, wake_all=self._waiters.wake_all)

    async def open(self) -> None:
        """See `Store`."""
        try:
            await self._open()
        except ValueError:
            await self.close()
            # What the driver says of an address it cannot read may hold a part of the password.
            raise StoreError(
                f"the address of the store {self._where} cannot be understood:"
                " are user and password percent-encoded?"
            ) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            await self.close()
            mapped = as_store_error(error, self._where)
            if mapped is error:
                raise StoreError(f"cannot open {self._where}: {error}") from error
            raise mapped from error
        except StoreError:
            await self.close()
            raise

    async def _open(self) -> None:
        timeout_ms = str(int(self._settings.statement_timeout_s * 1000))
        self._pool = await asyncpg.create_pool(
            self._settings.url,
            min_size=self._settings.pool_min,
            max_size=self._settings.pool_max,
            timeout=self._settings.connect_timeout_s,
            reset=_as_it_is,
            # The server ends a statement first, so that the connection need not be thrown away with it.
            command_timeout=self._settings.statement_timeout_s + 1.0,
            server_settings={
                "application_name": APPLICATION,
                "statement_timeout": timeout_ms,
                "idle_in_transaction_session_timeout": str(int(self._settings.idle_transaction_s * 1000)),
                "synchronous_commit": "on",
            },
        )
        async with self._pool.acquire() as connection:
            schema = await migrate(connection, self._where)
        await self._link.start(f"relay_{advisory_number('channel', schema) & 0xFFFFFFFFFFFFFFFF:x}")

    async def close(self) -> None:
        """See `Store`."""
        self._closed = True
        for joined in self._joined.values():
            await joined.idle(self._settings.statement_timeout_s)
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._settings.statement_timeout_s)
        await self._link.stop()
        self._waiters.wake_all()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    await pool.close()
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pool.terminate()

    def now(self) -> float:
        """See `Store`."""
        return self._clock.now()

    async def healthy(self) -> str:
        """See `Store`."""
        if self._pool is None:
            return "the store is closed"
        return f"{self._where} cannot be reached: {self._link.trouble}" if self._link.trouble else ""

    async def _write(self, operation: Operation[T]) -> T:
        return await self._see_through(self._with_retries(operation))

    async def _join(self, kind: Kind, touches: Touches, operation: Operation[T]) -> T:
        self._refuse_when_full()
        return await self._joined[kind].do(operation, touches)

    @property
    def rows_per_commit(self) -> float:
        """How many writes of those that may go together one commit carried on average."""
        commits = sum(joined.commits for joined in self._joined.values())
        return sum(joined.rows for joined in self._joined.values()) / commits if commits else 0.0

    def _refuse_when_full(self) -> None:
        waiting = len(self._under_way) + sum(map(len, self._joined.values()))
        if waiting >= self._settings.queue_limit:
            raise StoreUnavailableError(
                f"{waiting} operations wait for {self._where} already: it does not keep up"
            )

    async def _read(self, operation: Operation[T]) -> T:
        return await self._see_through(self._look(operation))

    async def _see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """A caller that goes away does not undo what it asked for, nor break a connection for others."""
        try:
            self._refuse_when_full()
        except StoreUnavailableError:
            work.close()
            raise
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Whoever still waits gets it; for a caller that is gone it has nowhere to go.
            task.exception()

    async def _with_retries(self, operation: Operation[T]) -> T:
        for attempt in range(self._settings.retries):
            try:
                return await self._transact(operation)
            except LOST_TO_ANOTHER:
                await asyncio.sleep(self._rng.uniform(0, 0.01) * 2**attempt)
        try:
            return await self._transact(operation)
        except LOST_TO_ANOTHER as error:
            raise as_store_error(error, self._where) from error

    async def _transact(self, operation: Operation[T]) -> T:
        topics: set[str] = set()
        try:
            async with self._connection() as connection, connection.transaction():
                now = await connection.fetchval(NOW)
                self._clock.set(now)
                result = await run(connection, operation(now), topics)
                if topics:
                    await connection.fetch(_NOTIFY, self._link.channel, list(topics))
        except LOST_TO_ANOTHER:
            raise
        except Exception as error:
            raise self._told(error) from error
        for topic in topics:
            self._waiters.wake(topic)
        return result

    async def _together(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        """One transaction for all, in which nobody waits long for somebody else's lock: whoever has to, does
        it alone."""
        topics: set[str] = set()
        try:
            async with self._connection() as connection, connection.transaction():
                now = await connection.fetchval(
                    _NOW_AND_HASTE, f"{self._settings.lock_patience_s * 1000:.0f}"
                )
                self._clock.set(now)
                results = await run_in_step(connection, [operation(now) for operation in operations], topics)
                if topics:
                    await connection.fetch(_NOTIFY, self._link.channel, list(topics))
        except OPEN_END as error:
            raise self._told(error) from error
        except Exception as error:
            raise UndoneError from error
        for topic in topics:
            self._waiters.wake(topic)
        return results

    async def _look(self, operation: Operation[T]) -> T:
        """One statement needs no transaction; several see the store as it moves on."""
        try:
            async with self._connection() as connection:
                return await run(connection, operation(self._clock.now()), set())
        except Exception as error:
            raise self._told(error) from error

    def _connection(self) -> AbstractAsyncContextManager[Connection]:
        if self._pool is None or self._closed:
            raise StoreUnavailableError("the store is closed")
        if self._link.trouble:
            raise StoreUnavailableError(f"{self._where} cannot be reached: {self._link.trouble}")
        return self._pool.acquire(timeout=self._settings.statement_timeout_s)

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, UNREACHABLE):
            self._link.suspect()
        return error if isinstance(error, StoreError) else as_store_error(error, self._where)


async def _as_it_is(_connection: Connection) -> None:
    """Connections go back to the pool as they are: no transaction changes anything of its session."""
