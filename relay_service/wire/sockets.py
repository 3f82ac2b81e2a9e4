"""What the data plane asks of sockets: names for addresses, keepalive, TLS that speaks HTTP/2."""

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path

from relay_service.wire import h2

KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 20
KEEPALIVE_PROBES = 3


def address_text(address: object) -> str:
    """``host:port`` of a socket's address, ``[host]:port`` for IPv6, ``unix:path`` for Unix sockets."""
    if isinstance(address, tuple):
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{address}" if address else "unix:"


class SocketFile:
    """The file of a Unix socket that is being listened on, to be removed when that ends."""

    __slots__ = ("_identity", "_path")

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._identity = self._look()

    def remove(self) -> None:
        """Remove the file, unless it is gone or another listener put its own in its place meanwhile."""
        if self._identity is not None and self._look() == self._identity:
            with suppress(OSError):  # gone just now, or not ours to remove any more
                self._path.unlink()

    def _look(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except (OSError, ValueError):  # no such file; an abstract name (a leading NUL) is none at all
            return None
        return status.st_dev, status.st_ino


def keep_alive(sock: socket.socket | None) -> None:
    """Let the kernel find out about a peer that vanished without a word while nothing was being said."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):  # Linux has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def offer_h2(context: ssl.SSLContext) -> ssl.SSLContext:
    """Make a TLS context offer HTTP/2, as gRPC demands."""
    context.set_alpn_protocols([h2.ALPN])
    return context


def identity_of(transport: asyncio.BaseTransport) -> str:
    """Who the peer is by its verified TLS certificate: the first URI (such as a SPIFFE id) of its alternative
    names, else the first DNS name, else its common name; empty without a certificate."""
    certificate = transport.get_extra_info("peercert")
    if not certificate:
        return ""
    names = certificate.get("subjectAltName", ())
    for wanted in ("URI", "DNS"):
        for kind, name in names:
            if kind == wanted:
                return str(name)
    subject = [pair for group in certificate.get("subject", ()) for pair in group]
    return next((str(value) for kind, value in subject if kind == "commonName"), "")


def agreed_on_h2(transport: asyncio.BaseTransport) -> bool:
    """Whether HTTP/2 may be spoken: always in cleartext, by agreement (ALPN) over TLS."""
    tls = transport.get_extra_info("ssl_object")
    return tls is None or tls.selected_alpn_protocol() == h2.ALPN
