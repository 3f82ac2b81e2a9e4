"""Where callers connect: the listening sockets, their connections, and their graceful end."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from relay_service.ports import CallersStatus, CallHandler, Timers
from relay_service.wire.connection import ConnectionSettings
from relay_service.wire.departures import DepartureSettings
from relay_service.wire.server import ServerConnection, ServerCounters
from relay_service.wire.sockets import SocketFile, address_text

ABORT_TIMEOUT_S = 1.0
"""From dropping the last connections to hearing of their end."""


def _patient() -> ConnectionSettings:
    return ConnectionSettings(handshake_timeout_s=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """Bounds of the callers' side."""

    connection: ConnectionSettings = field(default_factory=_patient)
    departures: DepartureSettings = field(default_factory=DepartureSettings)
    connections_max: int = 10_000
    connections_per_peer_max: int = 2_000
    """Of one identity, else of one address; all who come over Unix sockets are one peer."""
    backlog: int = 1_024
    """Connections that the kernel completes before we accept them."""


class Listener:
    """Accepts callers and drives ``handler`` with their calls.

    State: the sockets listened on and their files, the connections open, and whether it was closed.
    ``start`` may be called for several addresses. Everything happens on the loop it was started on.
    """

    def __init__(
        self,
        handler: CallHandler,
        timers: Timers,
        settings: ListenerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handler = handler
        self._timers = timers
        self._settings = settings or ListenerSettings()
        self._clock = clock
        self._servers: list[asyncio.Server] = []
        self._socket_files: list[SocketFile] = []
        self._closed = False
        self._connections: set[ServerConnection] = set()
        self._by_peer: Counter[str] = Counter()
        """How many of them each peer has; only peers that have some are in it."""
        self._nobody_left: asyncio.Event = asyncio.Event()
        self.counters = ServerCounters()

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> str:
        """Listen on TCP; port 0 takes a free one. The result is the address listened on, ``host:port``.

        OSError when the address is taken or not ours. ``tls`` must offer ALPN ``h2``.
        """
        server = await asyncio.get_running_loop().create_server(
            self._make_connection, host, port, backlog=self._settings.backlog, ssl=tls
        )
        self._servers.append(server)
        return address_text(server.sockets[0].getsockname())

    async def start_unix(self, path: str, tls: ssl.SSLContext | None = None) -> str:
        """Listen on a Unix socket. The result is ``unix:path``."""
        server = await asyncio.get_running_loop().create_unix_server(
            self._make_connection, path, backlog=self._settings.backlog, ssl=tls
        )
        self._servers.append(server)
        self._socket_files.append(SocketFile(path))
        return address_text(path)

    @property
    def addresses(self) -> list[str]:
        """Where callers can connect now."""
        return [address_text(sock.getsockname()) for server in self._servers for sock in server.sockets]

    @property
    def connections(self) -> int:
        """Callers' connections open now."""
        return len(self._connections)

    def status(self) -> CallersStatus:
        """All figures now."""
        counters = self.counters
        return CallersStatus(
            connections=self.connections,
            streams=self.streams,
            accepted=counters.connections_accepted,
            refused=counters.connections_refused,
            refused_of_peer=counters.connections_refused_of_peer,
            failed=counters.connections_failed,
            last_failure=counters.last_failure,
            not_grpc=counters.http_rejections,
            malformed=counters.call_rejections,
            replies_given_up=counters.replies_given_up,
        )

    @property
    def streams(self) -> int:
        """Streams open now, on all connections."""
        return sum(len(connection.streams) for connection in self._connections)

    def adopt(self, settings: ListenerSettings) -> None:
        """Go on under other limits. A connection that is open stays, and keeps the streams it was allowed
        if they were more: what a caller has begun within its limit must not be refused."""
        self._settings = settings
        for connection in self._connections:
            connection.allow_streams(settings.connection.limits.streams_max)

    def stop_accepting(self) -> None:
        """Close the listening sockets and remove the files of Unix ones; connections stay."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        files, self._socket_files = self._socket_files, []
        for file in files:
            file.remove()

    async def close(self, grace_s: float) -> None:
        """Stop accepting, tell all callers to go elsewhere, wait for their calls, then drop what is left.

        Returns after ``grace_s`` plus at most `ABORT_TIMEOUT_S`. Calls dropped hear `on_cancelled`.
        """
        self._closed = True
        self.stop_accepting()
        for connection in list(self._connections):
            connection.drain()
        if not await self._all_gone(grace_s):
            for connection in list(self._connections):
                connection.abort("the drain's time is over")
            await self._all_gone(ABORT_TIMEOUT_S)

    async def _all_gone(self, timeout_s: float) -> bool:
        if self._connections:
            self._nobody_left.clear()
            try:
                await asyncio.wait_for(self._nobody_left.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    def _make_connection(self) -> ServerConnection:
        loop = asyncio.get_running_loop()
        return ServerConnection(
            self,
            self._handler,
            settings=self._settings.connection,
            departures=self._settings.departures,
            loop=loop,
            timers=self._timers,
            clock=self._clock,
        )

    # -- ServerConnectionOwner ---------------------------------------------------------------------------

    def on_connection_made(self, connection: ServerConnection) -> bool:
        """Whether it may stay: there is a bound on connections, and an end to accepting them.

        One accepted by the kernel, or in its TLS handshake, when `close` began comes after it.
        """
        settings = self._settings
        peer = connection.whose
        if self._closed or len(self._connections) >= settings.connections_max:
            self.counters.connections_refused += 1
            return False
        if self._by_peer[peer] >= settings.connections_per_peer_max:
            self.counters.connections_refused_of_peer += 1
            return False
        self.counters.connections_accepted += 1
        self._connections.add(connection)
        self._by_peer[peer] += 1
        return True

    def on_connection_lost(self, connection: ServerConnection) -> None:
        """It is gone."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._by_peer[connection.whose] -= 1
            if not self._by_peer[connection.whose]:
                del self._by_peer[connection.whose]
        if not self._connections:
            self._nobody_left.set()
