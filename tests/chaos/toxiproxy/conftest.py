"""The servers under test, and both ends of a connection through them."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from chaos.toxiproxy.client import Proxy, ToxiproxyClient
from chaos.toxiproxy.errors import NotFoundError
from chaos.toxiproxy.launcher import Binary, Choice, Embedded, Toxiproxy, find_binary, launch

BOUND_S = 10.0
HOW_TO_GET_ONE = (
    "no real Toxiproxy here: run `relay-chaos toxiproxy install` (needs Go) or put toxiproxy-server on PATH"
)


def choice_of(kind: str) -> Choice:
    """A server of this kind, never one that somebody else runs; skips the test where there is none."""
    if kind == "embedded":
        return Embedded()
    binary = find_binary()
    if binary is None:
        pytest.skip(HOW_TO_GET_ONE)
    return Binary(binary)


def launch_kind(kind: str, log_dir: Path) -> Toxiproxy:
    """Start a server of this kind; skips the test where there is none."""
    return launch(choice_of(kind), seed=1, log_dir=log_dir)


@pytest.fixture(scope="session", params=["embedded", "real"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toxiproxy]:
    with launch_kind(request.param, tmp_path_factory.mktemp(request.param)) as toxiproxy:
        yield toxiproxy


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toxiproxy]:
    with launch_kind("embedded", tmp_path_factory.mktemp("embedded-only")) as toxiproxy:
        yield toxiproxy


@pytest.fixture
def client(server: Toxiproxy) -> Iterator[ToxiproxyClient]:
    """A client of a server without proxies; what the test makes is removed."""
    client = server.client()
    yield client
    remove_all(client)


def remove_all(client: ToxiproxyClient) -> None:
    for name in client.proxies():
        with suppress(NotFoundError):
            client.delete(name)


@dataclass
class Peer:
    """One end of a connection, as a plain socket: it sees FIN and RST as they are. Every wait is bounded."""

    sock: socket.socket

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(BOUND_S):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int) -> bytes:
        """Exactly that many bytes."""
        received = bytearray()
        async with asyncio.timeout(BOUND_S):
            while len(received) < size:
                piece = await asyncio.get_running_loop().sock_recv(self.sock, size - len(received))
                assert piece, f"the connection ended after {len(received)} of {size} bytes"
                received += piece
        return bytes(received)

    async def receive_to_end(self) -> tuple[bytes, str]:
        """Everything until the connection ends, and how it did: "fin" or "reset"."""
        received = bytearray()
        async with asyncio.timeout(BOUND_S):
            while True:
                try:
                    piece = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
                except ConnectionResetError:
                    return bytes(received), "reset"
                if not piece:
                    return bytes(received), "fin"
                received += piece

    async def hears_nothing_for(self, duration_s: float) -> bool:
        """Whether neither a byte nor the end comes for that long."""
        try:
            async with asyncio.timeout(duration_s):
                await asyncio.get_running_loop().sock_recv(self.sock, 1)
        except TimeoutError:
            return True
        return False

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Line:
    """A proxy with an upstream behind it; `connect` gives both ends of a new connection through it."""

    def __init__(self, client: ToxiproxyClient, proxy: Proxy, listener: socket.socket) -> None:
        self.client = client
        self.proxy = proxy
        self._listener = listener
        self._peers: list[Peer] = []

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.proxy.listen.rpartition(":")
        return host, int(port)

    async def connect(self) -> tuple[Peer, Peer]:
        """The client's end and the server's end."""
        return await self.connect_client(), await self.accept()

    async def accept(self) -> Peer:
        async with asyncio.timeout(BOUND_S):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return self._peer(sock)

    async def connect_client(self) -> Peer:
        sock = socket.socket()
        sock.setblocking(False)
        peer = self._peer(sock)
        async with asyncio.timeout(BOUND_S):
            await asyncio.get_running_loop().sock_connect(sock, self.address)
        return peer

    async def add(self, type_: str, **kwargs: object) -> None:
        await asyncio.to_thread(self.proxy.add_toxic, type_, **kwargs)

    async def update(self, name: str, **kwargs: object) -> None:
        await asyncio.to_thread(self.proxy.update_toxic, name, **kwargs)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(self.proxy.remove_toxic, name)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._listener.close()

    def _peer(self, sock: socket.socket) -> Peer:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock)
        self._peers.append(peer)
        return peer


def make_line(client: ToxiproxyClient, name: str) -> Line:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    upstream = f"127.0.0.1:{listener.getsockname()[1]}"
    return Line(client, client.create(name, "127.0.0.1:0", upstream), listener)


@pytest.fixture
async def line(client: ToxiproxyClient) -> AsyncIterator[Line]:
    """A line through each of the servers there are."""
    made = make_line(client, "line")
    yield made
    made.close()


@pytest.fixture
async def embedded_line(embedded: Toxiproxy) -> AsyncIterator[Line]:
    """A line through the embedded server only: for what the real one does not survive."""
    client = embedded.client()
    made = make_line(client, "line")
    yield made
    made.close()
    remove_all(client)


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it holds, for at most BOUND_S."""
    give_up_at_s = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < give_up_at_s, "it never came true"
        await asyncio.sleep(0.005)
