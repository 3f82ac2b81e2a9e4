"""The connection that listens: it hears what other relays did, frees what stopped ones hold, notices when the
server is gone, and is the first to reach it again."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import asyncpg

from relay_service.stores.postgres.clock import NOW, ServerClock
from relay_service.stores.postgres.settings import PostgresSettings
from relay_service.stores.postgres.stalled import end_stalled

log = logging.getLogger(__name__)


class Link:
    """One dedicated connection and the task that keeps it.

    While it is down, `trouble` says why and operations are refused at once instead of each knocking at a
    dead server; after every reconnect all waiters look again, for notices may have been missed.
    State: the connection, the trouble, and the event that asks for a look at once.
    """

    def __init__(
        self,
        settings: PostgresSettings,
        clock: ServerClock,
        *,
        wake: Callable[[str], None],
        wake_all: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._wake = wake
        self._wake_all = wake_all
        self._channel = ""
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._look_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._rng = random.Random()
        self.trouble = "not connected yet"
        self.reconnects = 0

    @property
    def channel(self) -> str:
        """The name under which the relays of one schema talk."""
        return self._channel

    async def start(self, channel: str) -> None:
        """Connect, then keep connected. Raises what the driver raises."""
        self._channel = channel
        await self._connect()
        self._task = asyncio.create_task(self._keep(), name="store-link")

    async def stop(self) -> None:
        """Let go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._drop()

    def suspect(self) -> None:
        """An operation found the server gone: look now, not at the next check."""
        self._look_now.set()

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.health_check_s):
                    await self._look_now.wait()
            except TimeoutError:
                pass
            self._look_now.clear()
            try:
                await self._look()
                await self._free()
            except Exception as error:  # noqa: BLE001 - whatever it is, the server cannot be used until it is
                self.trouble = str(error) or type(error).__name__
                await self._reconnect()

    async def _look(self) -> None:
        """Ask for the time; an answer is proof of life."""
        connection = self._connection
        if connection is None or connection.is_closed():
            raise ConnectionError("the server closed the connection")
        server_s = await connection.fetchval(NOW, timeout=self._settings.health_check_s)
        self._clock.set(server_s)

    async def _free(self) -> None:
        """Look after relays that stopped; a server that does not allow it is no trouble of this one."""
        if self._connection is None:
            return
        try:
            async with asyncio.timeout(self._settings.health_check_s):
                await end_stalled(
                    self._connection,
                    silent_s=self._settings.idle_transaction_s,
                    unread_s=self._settings.statement_timeout_s,
                )
        except asyncpg.InsufficientPrivilegeError as error:
            log.warning("what stopped relays hold cannot be freed: %s", error)

    async def _reconnect(self) -> None:
        wait_s = self._settings.reconnect_first_s
        while True:
            await self._drop()
            try:
                await self._connect()
            except Exception as error:  # noqa: BLE001 - refused, timed out, starting up: all are tried again
                self.trouble = str(error) or type(error).__name__
            else:
                self.reconnects += 1
                self._wake_all()
                return
            await asyncio.sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, self._settings.reconnect_most_s)

    async def _connect(self) -> None:
        connection = await asyncpg.connect(
            self._settings.url,
            timeout=self._settings.connect_timeout_s,
            command_timeout=self._settings.statement_timeout_s,
        )
        self._connection = connection
        connection.add_termination_listener(lambda _connection: self._look_now.set())
        await connection.add_listener(self._channel, self._heard)
        await self._look()
        self._look_now.clear()
        self.trouble = ""

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.terminate()

    def _heard(self, _connection: Any, _pid: int, _channel: str, topic: object) -> None:
        self._wake(str(topic))
