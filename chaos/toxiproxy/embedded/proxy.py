"""A proxy: a listener, the toxics set on it, and the live connections they act on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from typing import Final

from chaos.toxiproxy.embedded import addresses, api_error
from chaos.toxiproxy.embedded.addresses import AddressError
from chaos.toxiproxy.embedded.connection import Connection, End
from chaos.toxiproxy.embedded.link import Link
from chaos.toxiproxy.embedded.pipeline import Pipeline
from chaos.toxiproxy.embedded.toxics import Direction, Toxic

CONNECTIONS_MAX: Final = 4096
DIAL_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 5.0


class Proxy:
    """Forwards what connects to `listen` to `upstream`, through its toxics.

    `listen` is the bound address while the proxy is enabled, and as it was given before. Toxics survive
    disabling. At most CONNECTIONS_MAX connections live at once; one more is closed on arrival.
    """

    def __init__(self, name: str, listen: str, upstream: str, seed: str) -> None:
        self.name = name
        self.listen = listen
        self.upstream = upstream
        self._seed = seed
        self._toxics: list[Toxic] = []
        self._server: asyncio.AbstractServer | None = None
        self._dialing: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._connections_made = 0
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    @property
    def enabled(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    @property
    def toxics(self) -> list[Toxic]:
        """The toxics in the API's order: towards the upstream first, each direction in the order added."""
        return [toxic for direction in Direction for toxic in self._toxics if toxic.direction is direction]

    def describe(self) -> dict[str, object]:
        """The proxy as the API shows it."""
        return {
            "name": self.name,
            "listen": self.listen,
            "upstream": self.upstream,
            "enabled": self.enabled,
            "Logger": {},
            "toxics": [toxic.describe() for toxic in self.toxics],
        }

    async def start(self) -> None:
        """Listen, unless it does already. Raises ApiError where the address cannot be had."""
        if self._server is not None:
            return
        try:
            listener = await addresses.listen(self.listen)
        except AddressError as error:
            raise api_error.cannot_listen(error) from None
        self.listen = addresses.bound_address(listener)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: End(self._arrived), sock=listener, backlog=addresses.BACKLOG
        )

    async def stop(self) -> None:
        """Stop listening (new clients are refused) and close every connection, live or being made."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        dialing = tuple(self._dialing)
        for task in dialing:
            task.cancel()
        await asyncio.gather(*dialing, return_exceptions=True)
        for connection in tuple(self._connections):
            connection.abort()
        # Aborted transports are gone a turn of the loop later; the bound only guards against a broken loop.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._all_closed.wait()

    async def differs(self, listen: str, upstream: str) -> bool:
        """Whether the proxy is at another address than that. Raises ApiError where it does not resolve."""
        try:
            resolved = str(await addresses.resolve(listen))
        except AddressError as error:
            raise api_error.cannot_listen(error) from None
        return (self.listen, self.upstream) != (resolved, upstream)

    async def change(self, listen: str, upstream: str, enabled: bool) -> None:
        """Move to other addresses (which closes its connections), then be enabled or not. Raises ApiError."""
        if await self.differs(listen, upstream):
            await self.stop()
            self.listen, self.upstream = listen, upstream
        if enabled:
            await self.start()
        else:
            await self.stop()

    def toxic(self, name: str) -> Toxic:
        """The toxic of that name. Raises ApiError."""
        for toxic in self._toxics:
            if toxic.name == name:
                return toxic
        raise api_error.toxic_not_found()

    def has_toxic(self, name: str) -> bool:
        """Whether a toxic has that name, in either direction."""
        return any(toxic.name == name for toxic in self._toxics)

    def add_toxic(self, toxic: Toxic) -> None:
        """Put a toxic at the end of its direction's chain, on live connections too."""
        self._toxics.append(toxic)
        for link in self._links(toxic.direction):
            link.add(toxic)

    def update_toxic(self, toxic: Toxic) -> None:
        """Replace the toxic of the same name, on live connections too."""
        self._toxics = [toxic if each.name == toxic.name else each for each in self._toxics]
        for link in self._links(toxic.direction):
            link.update(toxic)

    def remove_toxic(self, name: str) -> None:
        """Take a toxic away, from live connections too. Raises ApiError."""
        gone = self.toxic(name)
        self._toxics.remove(gone)
        for link in self._links(gone.direction):
            link.remove(name)

    def remove_all_toxics(self) -> None:
        """Take every toxic away."""
        for toxic in self.toxics:
            self.remove_toxic(toxic.name)

    def _links(self, direction: Direction) -> list[Link]:
        return [connection.link(direction) for connection in self._connections]

    def _arrived(self, client: End) -> None:
        """A client has connected: dial the upstream for it."""
        if self._server is None or len(self._connections) + len(self._dialing) >= CONNECTIONS_MAX:
            _abort(client)
            return
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._dialing.add(task)
        task.add_done_callback(self._dialing.discard)
        task.add_done_callback(lambda done: _abort(client) if done.cancelled() else None)

    async def _connect(self, client: End) -> None:
        """Dial the upstream for a client and let them talk; where it cannot be had, close the client."""
        server = End()
        try:
            await self._dial(server)
        except (OSError, ValueError):  # refused, not found, timed out; an address that is none
            _abort(client)
        else:
            self._join(client, server)

    async def _dial(self, server: End) -> None:
        upstream = addresses.HostPort.parse(self.upstream)
        port = int(upstream.port) if upstream.port.isdigit() else socket.getservbyname(upstream.port, "tcp")
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            await asyncio.get_running_loop().create_connection(
                lambda: server, upstream.host or "localhost", port
            )

    def _join(self, client: End, server: End) -> None:
        """Make the connection with the toxics of this moment; without an await none can change meanwhile."""
        if client.lost or server.lost:
            _abort(client)
            _abort(server)
            return
        number = self._connections_made
        self._connections_made += 1
        pipelines = {direction: self._pipeline(number, direction) for direction in Direction}
        connection = Connection(client, server, pipelines, time.monotonic, self._closed)
        if any(toxic.kind.resets_connections for toxic in self._toxics):
            connection.reset_on_close()
        self._connections.add(connection)
        self._all_closed.clear()
        connection.start()

    def _pipeline(self, number: int, direction: Direction) -> Pipeline:
        """The chain for one link. Its draws depend on the seed and its place alone, not on anything else."""

        def draws(toxic_name: str) -> random.Random:
            return random.Random(f"{self._seed}/{self.name}/{number}/{direction.value}/{toxic_name}")

        toxics = [toxic for toxic in self._toxics if toxic.direction is direction]
        return Pipeline(toxics, draws, time.monotonic())

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()


def _abort(end: End) -> None:
    if end.transport is not None:
        end.transport.abort()
