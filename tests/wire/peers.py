"""Raw HTTP/2 peers that misbehave on order, and a TCP proxy that can be cut."""

import asyncio
from collections.abc import Callable
from typing import Any

import ngh2

BOUND_S = 10.0
"""For waits that end at once when all is well; generous, for the machine may be busy."""


class RawPeer:
    """One connection whose HTTP/2 engine the test plays by hand; ``script`` is called with each event."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        engine: ngh2.Connection,
        script: Callable[["RawPeer", Any], None],
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.engine = engine
        self.script = script
        self.events: list[Any] = []
        self.forgets: tuple[type, ...] = ()
        """Kinds of events that are told to the script only."""
        self.changed = asyncio.Event()
        self.eof = False
        self.mute = False
        """Reads on and says nothing more, like what is behind a network that lost the way back."""

    def flush(self) -> None:
        output = self.engine.data_to_send()
        if output and not self.mute and not self.writer.is_closing():
            self.writer.write(output)
        self._hear(self.engine.events())

    async def run(self) -> None:
        try:
            while data := await self.reader.read(65_536):
                try:
                    self.engine.receive_data(data)
                    self._hear(self.engine.events())
                    self.flush()
                except ngh2.NGH2Error:
                    break
        except OSError:
            pass
        self.eof = True
        self.changed.set()
        self.writer.close()

    def _hear(self, events: list[Any]) -> None:
        for event in events:
            if not isinstance(event, self.forgets):
                self.events.append(event)
            self.script(self, event)
        self.changed.set()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(BOUND_S):
            while not (result := condition()):
                self.changed.clear()
                if not condition():
                    await self.changed.wait()
            return result


def silent(peer: RawPeer, event: Any) -> None:
    """A script that does nothing."""


class RawServer:
    """An HTTP/2 server played by a script."""

    def __init__(
        self, script: Callable[[RawPeer, Any], None], settings: dict[int, int], config: ngh2.Configuration
    ) -> None:
        self._script = script
        self._settings = settings
        self._config = config
        self.peers: list[RawPeer] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.target = ""

    async def start(self) -> "RawServer":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.target = f"{host}:{port}"
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine = ngh2.Connection(ngh2.Role.SERVER, self._config)
        engine.initiate_connection(self._settings)
        peer = RawPeer(reader, writer, engine, self._script)
        self.peers.append(peer)
        self._tasks.add(asyncio.current_task())
        peer.flush()
        await peer.run()

    async def close(self) -> None:
        self._server.close()
        for peer in self.peers:
            peer.writer.transport.abort()
        await asyncio.gather(*self._tasks)


class Proxy:
    """A TCP proxy that can swallow bytes (a blackhole) or cut the connection after so many of them."""

    def __init__(self, target: str) -> None:
        self.redirect(target)
        self.blackholed = False
        self.cut_after_bytes: int | None = None
        """Of what the client sends, counted on each connection."""
        self.accepted = 0
        self.target = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.target = "{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._tasks.add(asyncio.current_task())
        try:
            onward_reader, onward = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, onward}
        both = asyncio.gather(self._pump(reader, onward, counted=True), self._pump(onward_reader, writer))
        await both
        for each in (writer, onward):
            each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False
    ) -> None:
        passed = 0
        try:
            while data := await reader.read(65_536):
                if self.blackholed:
                    continue
                limit = self.cut_after_bytes
                if counted and limit is not None and passed + len(data) >= limit:
                    writer.write(data[: limit - passed])
                    await writer.drain()
                    self.cut()
                    return
                passed += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        if not self.blackholed:
            writer.close()

    def redirect(self, target: str) -> None:
        """Where new connections lead."""
        host, _, port = target.rpartition(":")
        self._to = (host, int(port))

    def cut(self) -> None:
        """Drop all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks)
