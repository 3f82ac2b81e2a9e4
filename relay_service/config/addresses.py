"""Addresses as operators write them: ``host:port``, ``[ipv6]:port`` or ``unix:path``."""

import re
from dataclasses import dataclass

PORT_MAX = 65_535
UNIX_PATH_BYTES_MAX = 107
"""Linux's ``sockaddr_un`` less the closing zero."""

_TCP = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d{1,5})", re.ASCII)

ALLOWED = "must be host:port, [ipv6]:port or unix:path"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP end point; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix domain socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Read an address to listen on; port 0 is allowed.

    Raises `ValueError` saying what is allowed.
    """
    if text.startswith("unix:"):
        return _unix_address(text.removeprefix("unix:"))
    match = _TCP.fullmatch(text)
    if match is None:
        raise ValueError(ALLOWED)
    port = int(match["port"])
    if port > PORT_MAX:
        raise ValueError(f"{ALLOWED}, with a port from 0 to {PORT_MAX}")
    return TcpAddress(match["v6"] or match["host"], port)


def parse_target(text: str) -> Address:
    """Read an address to connect to: as `parse_address`, but port 0 leads nowhere."""
    address = parse_address(text)
    if isinstance(address, TcpAddress) and address.port == 0:
        raise ValueError(f"{ALLOWED}, with a port from 1 to {PORT_MAX}")
    return address


def _unix_address(path: str) -> UnixAddress:
    path = path.removeprefix("//")
    if not path or "\0" in path:
        raise ValueError(f"{ALLOWED}; the path is missing")
    if len(path.encode()) > UNIX_PATH_BYTES_MAX:
        raise ValueError(f"{ALLOWED}; a socket's path has at most {UNIX_PATH_BYTES_MAX} bytes")
    return UnixAddress(path)
