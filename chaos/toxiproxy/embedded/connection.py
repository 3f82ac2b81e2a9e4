"""One client's connection through a proxy: two sockets, and a link in each direction."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

from chaos.toxiproxy.embedded.link import Clock, Link
from chaos.toxiproxy.embedded.pipeline import Pipeline
from chaos.toxiproxy.embedded.toxics import Direction

WRITE_BUFFER_BYTES: Final = 64 * 1024
LINGER_ZERO: Final = struct.pack("ii", 1, 0)


class End(asyncio.Protocol):
    """One of the two sockets, held back until both are there. It feeds one link and is fed by the other.

    `arrived` is told when the socket is there.
    """

    __slots__ = ("_arrived", "_connection", "_early", "_early_end", "_fed_by", "_feeds", "lost", "transport")

    def __init__(self, arrived: Callable[[End], None] | None = None) -> None:
        self._arrived = arrived
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self._connection: Connection | None = None
        self._feeds: Link | None = None
        self._fed_by: Link | None = None
        self._early: list[bytes] = []
        self._early_end = False

    def join(self, connection: Connection, feeds: Link, fed_by: Link) -> None:
        """Take its place in a connection."""
        self._connection, self._feeds, self._fed_by = connection, feeds, fed_by

    def replay(self) -> None:
        """Feed what came before there was a link to feed."""
        assert self._feeds is not None  # noqa: S101  it has joined
        for data in self._early:
            self._feeds.feed(data)
        self._early.clear()
        if self._early_end:
            self._feeds.source_ended()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What asyncio promises for a stream; uvloop's transport keeps to it without being a subclass.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self.transport.pause_reading()
        if self._arrived is not None:
            self._arrived(self)

    def data_received(self, data: bytes) -> None:
        if self._feeds is not None:
            self._feeds.feed(data)
            return
        # uvloop starts to read after connection_made, whatever that paused: once more, now that it counts.
        self._early.append(data)
        assert self.transport is not None  # noqa: S101  nothing is received before
        self.transport.pause_reading()

    def eof_received(self) -> bool:
        """A half-close counts as a close, but the other direction may still flush: True keeps the socket."""
        if self._feeds is not None:
            self._feeds.source_ended()
        self._early_end = self._feeds is None
        return True

    def pause_writing(self) -> None:
        if self._fed_by is not None:
            self._fed_by.sink_paused()

    def resume_writing(self) -> None:
        if self._fed_by is not None:
            self._fed_by.sink_resumed()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.lost = True
        if self._connection is not None:
            self._connection.end_lost(self)
        self._connection = self._feeds = self._fed_by = None


class Connection:
    """Two ends and two links.

    Closing follows the links: when one has ended, its sink is closed, both ways (a half-close is not passed
    on). So the other link's source has ended too, and that one drains and closes its sink in turn.
    """

    def __init__(
        self,
        client: End,
        server: End,
        pipelines: dict[Direction, Pipeline],
        clock: Clock,
        on_closed: Callable[[Connection], None],
    ) -> None:
        assert client.transport is not None  # noqa: S101  both ends are made
        assert server.transport is not None  # noqa: S101
        self._on_closed = on_closed
        self._ends = (client, server)
        self._transports = (client.transport, server.transport)
        self._up = Link(
            Direction.UPSTREAM,
            pipelines[Direction.UPSTREAM],
            client.transport,
            server.transport,
            clock=clock,
            on_finished=self._link_finished,
        )
        self._down = Link(
            Direction.DOWNSTREAM,
            pipelines[Direction.DOWNSTREAM],
            server.transport,
            client.transport,
            clock=clock,
            on_finished=self._link_finished,
        )
        client.join(self, feeds=self._up, fed_by=self._down)
        server.join(self, feeds=self._down, fed_by=self._up)

    def start(self) -> None:
        """Let the bytes flow."""
        self._up.start()
        self._down.start()
        for end in self._ends:
            end.replay()

    def link(self, direction: Direction) -> Link:
        """The link that carries this direction."""
        return self._up if direction is Direction.UPSTREAM else self._down

    def reset_on_close(self) -> None:
        """From now on closing either socket resets it (RST instead of FIN)."""
        for transport in self._transports:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)

    def abort(self) -> None:
        """Close both sockets now, dropping what was not written."""
        self._up.stop()
        self._down.stop()
        for transport in self._transports:
            transport.abort()

    def end_lost(self, end: End) -> None:
        """A socket is gone: what was to be written to it is dropped, and it sends nothing more."""
        client, _ = self._ends
        feeds, fed_by = (self._up, self._down) if end is client else (self._down, self._up)
        fed_by.stop()
        feeds.source_ended()
        if all(each.lost for each in self._ends):
            self._on_closed(self)

    def _link_finished(self, link: Link) -> None:
        """All that link had to carry is written: close its sink, which ends the other link's source."""
        client, server = self._transports
        if link is self._up:
            server.close()
            self._down.source_ended()
        else:
            client.close()
            self._up.source_ended()
