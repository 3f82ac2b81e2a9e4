"""From the name of a target to a connection that had its HTTP/2 handshake."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from relay_service.wire.client import ClientConnection


@dataclass(frozen=True, slots=True)
class Target:
    """Where an upstream listens: a host and port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Target":
        """``host:port``, ``[v6]:port`` or ``unix:path``. ValueError for anything else."""
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls("", 0, text.removeprefix("unix:"))
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ValueError(f"a target is host:port or unix:path, not {text!r}")
        return cls(host, int(port))

    @property
    def authority(self) -> str:
        """What requests carry as ``:authority``."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def dial(
    target: Target,
    make_connection: Callable[[str], ClientConnection],
    timeout_s: float,
    tls: ssl.SSLContext | None,
    *,
    server_name: str = "",
    turn: int,
) -> ClientConnection:
    """Resolve the name (anew each time), connect, and wait for the peer's SETTINGS.

    ``server_name`` is whose certificate the peer must show, the target's host when empty. ``turn`` counts
    the dials and rotates the addresses, so that the connections of one upstream spread over them. Raises
    OSError (TimeoutError and ConnectionError among them); then nothing is left open.
    """
    try:
        async with asyncio.timeout(timeout_s):
            connection = await _connect(target, make_connection, tls, server_name, turn)
    except TimeoutError:
        raise TimeoutError(f"no connection within {timeout_s:g} s") from None
    try:
        await asyncio.shield(connection.ready)
    except asyncio.CancelledError:
        connection.abort("closed")
        raise
    return connection


async def _connect(
    target: Target,
    make_connection: Callable[[str], ClientConnection],
    tls: ssl.SSLContext | None,
    server_name: str,
    turn: int,
) -> ClientConnection:
    loop = asyncio.get_running_loop()
    server_hostname = (server_name or target.host or "localhost") if tls else None
    if target.path:
        _, connection = await loop.create_unix_connection(
            lambda: make_connection(f"unix:{target.path}"),
            target.path,
            ssl=tls,
            server_hostname=server_hostname,
        )
        return connection
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(entry[4] for entry in found))
    start = turn % len(addresses)
    failure: OSError = ConnectionError(f"{target.host} has no address")
    for address in addresses[start:] + addresses[:start]:
        host, port = str(address[0]), int(address[1])
        connection = make_connection(target.authority)
        try:
            await loop.create_connection(
                lambda made=connection: made, host, port, ssl=tls, server_hostname=server_hostname
            )
        except OSError as error:
            failure = error
        except asyncio.CancelledError:
            # uvloop closes the transport without a word, also when `connection_made` was called already.
            connection.connection_lost(None)
            raise
        else:
            return connection
    raise failure
