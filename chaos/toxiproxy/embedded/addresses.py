"""Host and port as Go's `net` package reads, resolves and prints them."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Final

RESOLVE_TIMEOUT_S: Final = 5.0
PORT_MAX: Final = 65_535
BACKLOG: Final = 1024


class AddressError(ValueError):
    """An address that cannot be used; the text is what Go says."""


@dataclass(frozen=True)
class HostPort:
    """An address as written, split: the host may be a name or empty (any), the port a name or empty (0)."""

    host: str
    port: str

    @classmethod
    def parse(cls, address: str) -> HostPort:
        """Split `host:port` or `[host]:port`; an empty address is any host, any port. Raises AddressError."""
        if not address:
            return cls("", "0")
        host, colon, port = address.rpartition(":")
        if not colon or host.count("[") != host.count("]") or address.endswith("]"):
            raise AddressError(f"address {address}: missing port in address")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise AddressError(f"address {address}: too many colons in address")
        if port.lstrip("-").isdigit() and not 0 <= int(port) <= PORT_MAX:
            raise AddressError(f"address {port}: invalid port")
        return cls(host, port or "0")


@dataclass(frozen=True)
class Endpoint:
    """A resolved address: what a socket can bind or connect to."""

    family: socket.AddressFamily
    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


async def resolve(address: str) -> Endpoint:
    """The address with its host looked up, IPv4 first, an empty host left empty. Raises AddressError.

    Waits at most RESOLVE_TIMEOUT_S for the look-up.
    """
    wanted = HostPort.parse(address)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(wanted.host or "0.0.0.0", wanted.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_SERVICE:
            raise AddressError(f"lookup tcp/{wanted.port}: unknown port") from None
        raise AddressError(f"lookup {wanted.host}: no such host") from None
    except UnicodeError:
        raise AddressError(f"lookup {wanted.host}: no such host") from None
    except TimeoutError:
        raise AddressError(f"lookup {wanted.host}: i/o timeout") from None
    family, *_, sockaddr = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    ip = str(sockaddr[0]) if wanted.host else ""
    return Endpoint(socket.AddressFamily(family), ip, int(sockaddr[1]))


async def listen(address: str) -> socket.socket:
    """A listening, non-blocking socket on `address`; any host means IPv6 and IPv4 where there are both.

    Raises AddressError with the text Go's `net.Listen` has for it.
    """
    try:
        endpoint = await resolve(address)
    except AddressError as error:
        raise AddressError(f"listen tcp: {error}") from None
    if endpoint.ip:
        return _bind(endpoint)
    try:
        return _bind(Endpoint(socket.AF_INET6, "::", endpoint.port))
    except AddressError:
        return _bind(Endpoint(socket.AF_INET, "0.0.0.0", endpoint.port))


def bound_address(listener: socket.socket) -> str:
    """Where a socket listens, as Go prints it."""
    ip, port = listener.getsockname()[:2]
    return str(Endpoint(listener.family, ip, port))


def _bind(endpoint: Endpoint) -> socket.socket:
    try:
        listener = socket.socket(endpoint.family, socket.SOCK_STREAM)
    except OSError as error:  # a machine without IPv6
        raise AddressError(f"listen tcp {endpoint}: socket: {_reason(error)}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.family == socket.AF_INET6 and endpoint.ip == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((endpoint.ip, endpoint.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressError(f"listen tcp {endpoint}: bind: {_reason(error)}") from None
    listener.setblocking(False)
    return listener


def _reason(error: OSError) -> str:
    text = os.strerror(error.errno or 0)
    return text[:1].lower() + text[1:]
