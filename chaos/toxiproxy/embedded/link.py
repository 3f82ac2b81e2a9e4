"""One direction of one connection: reads from a source, lets the toxics decide, writes to a sink."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chaos.toxiproxy.embedded.pipeline import Pipeline
from chaos.toxiproxy.embedded.stages import END
from chaos.toxiproxy.embedded.toxics import Direction, Toxic

Clock = Callable[[], float]


class Link:
    """Moves bytes in one direction and keeps both sides' pace.

    Without toxics a chunk goes from socket to socket in one call. Otherwise the pipeline holds it, a timer
    takes it out, and the source is not read while there is no room. A sink that does not read stops the link
    and nothing else: toxics change under it at once, and memory stays within the pipeline's bounds.

    States, all of them here: `_direct` (bytes pass by the pipeline), `_sink_open` (the sink takes more),
    `_source_paused`, `_timer`, `_finished` (END or a lost socket; nothing moves any more).
    """

    __slots__ = (
        "_clock",
        "_direct",
        "_finished",
        "_loop",
        "_on_finished",
        "_pipeline",
        "_sink",
        "_sink_open",
        "_source",
        "_source_paused",
        "_timer",
        "direction",
    )

    def __init__(
        self,
        direction: Direction,
        pipeline: Pipeline,
        source: asyncio.Transport,
        sink: asyncio.Transport,
        *,
        clock: Clock,
        on_finished: Callable[[Link], None],
    ) -> None:
        self.direction = direction
        self._pipeline = pipeline
        self._source = source
        self._sink = sink
        self._clock = clock
        self._on_finished = on_finished
        self._loop = asyncio.get_running_loop()
        self._sink_open = True
        self._source_paused = True  # the connection is made with both sockets held back
        self._finished = False
        self._timer: asyncio.TimerHandle | None = None
        self._direct = False

    def start(self) -> None:
        """Begin to read."""
        self._pump()

    def feed(self, data: bytes) -> None:
        """The source has sent these bytes."""
        if self._direct:
            self._sink.write(data)
        elif not self._finished:
            self._pipeline.put(data, self._clock())
            self._pump()

    def source_ended(self) -> None:
        """The source sends nothing more: it closed its side, or was closed or lost."""
        if not self._finished:
            self._pipeline.end(self._clock())
            self._pump()

    def sink_paused(self) -> None:
        """The sink's buffer is full."""
        self._sink_open = False
        self._direct = False
        self._regulate_source()

    def sink_resumed(self) -> None:
        """The sink takes bytes again."""
        self._sink_open = True
        self._pump()

    def stop(self) -> None:
        """Nothing moves any more; the sockets are the connection's to close."""
        self._finished = True
        self._direct = False
        self._cancel_timer()
        self._regulate_source()

    def add(self, toxic: Toxic) -> None:
        """Put a toxic at the end of the chain, at once."""
        self._pipeline.add(toxic, self._clock())
        self._pump()

    def update(self, toxic: Toxic) -> None:
        """Give a toxic its new attributes, at once."""
        self._pipeline.update(toxic, self._clock())
        self._pump()

    def remove(self, name: str) -> None:
        """Take a toxic out, at once; what it held moves on."""
        self._pipeline.remove(name, self._clock())
        self._pump()

    def _pump(self) -> None:
        """Write what is due, then arrange to be woken for the rest."""
        if self._finished:
            return
        now_s = self._clock()
        while self._sink_open:
            item = self._pipeline.take(now_s)
            if item is None:
                break
            if item is END:
                self.stop()
                self._on_finished(self)
                return
            self._sink.write(item.data)
        self._pipeline.advance(now_s)
        self._direct = self._sink_open and self._pipeline.idle
        self._arm_timer(now_s)
        self._regulate_source()

    def _arm_timer(self, now_s: float) -> None:
        self._cancel_timer()
        due_s = self._pipeline.due_s()
        if due_s is not None:
            self._timer = self._loop.call_later(due_s - now_s, self._wake)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._timer = None
        self._pump()

    def _regulate_source(self) -> None:
        """Read on only while what is read has somewhere to go."""
        wanted = self._direct or (not self._finished and self._sink_open and self._pipeline.has_room())
        if wanted is not self._source_paused or self._source.is_closing():
            return
        self._source_paused = not wanted
        if wanted:
            self._source.resume_reading()
        else:
            self._source.pause_reading()
