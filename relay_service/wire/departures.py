"""Replies that are complete and have not left: the caller keeps its window closed, or does not read.

Their calls are over for everybody but the wire, so nothing else bounds their stay: no deadline, no
worker, no place in a queue. Each has to make progress, at a pace that a poor line can keep, and all of
one connection together have a size. The rules, without the clock and without the wire.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DepartureSettings:
    """Bounds of replies on their way out."""

    linger_s: float = 10.0
    """So long a complete reply may stand still; then its stream is reset."""
    bytes_per_s_min: int = 16 * 1024
    """A reply that moves may take ``linger_s`` and the time it takes at this pace, and no longer."""
    bytes_max: int = 16 * 1024 * 1024
    """Bytes of complete replies queued on one connection beyond which it gets no further reply."""


@dataclass(slots=True)
class _Departure:
    queued_bytes: int
    moved_at: float
    leave_by: float


class Departures:
    """The complete replies of one connection that have not left, by stream id.

    ``queued_bytes`` asks for the bytes of a stream that wait in the engine.
    """

    __slots__ = ("_by_stream", "_bytes", "_queued_bytes", "_settings")

    def __init__(self, settings: DepartureSettings, queued_bytes: Callable[[int], int]) -> None:
        self._settings = settings
        self._queued_bytes = queued_bytes
        self._by_stream: dict[int, _Departure] = {}
        self._bytes = 0
        """Sum of `_Departure.queued_bytes`."""

    def __len__(self) -> int:
        return len(self._by_stream)

    def __contains__(self, stream_id: int) -> bool:
        return stream_id in self._by_stream

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_stream)

    @property
    def full(self) -> bool:
        """Whether more bytes wait than may."""
        return self._bytes > self._settings.bytes_max

    def add(self, stream_id: int, now: float) -> None:
        """A reply is complete and did not leave at once. Harmless when that was said before."""
        if stream_id in self._by_stream:
            return
        settings = self._settings
        queued_bytes = self._queued_bytes(stream_id)
        leave_by = now + settings.linger_s + queued_bytes / settings.bytes_per_s_min
        self._by_stream[stream_id] = _Departure(queued_bytes, now, leave_by)
        self._bytes += queued_bytes

    def remove(self, stream_id: int) -> None:
        """The stream is closed."""
        gone = self._by_stream.pop(stream_id, None)
        if gone is not None:
            self._bytes -= gone.queued_bytes

    def overdue(self, now: float) -> list[int]:
        """The streams whose reply stood still, or took, for too long."""
        found = []
        linger_s = self._settings.linger_s
        for stream_id, departure in self._by_stream.items():
            queued_bytes = self._queued_bytes(stream_id)
            if queued_bytes < departure.queued_bytes:
                self._bytes -= departure.queued_bytes - queued_bytes
                departure.queued_bytes = queued_bytes
                departure.moved_at = now
            if now >= departure.leave_by or now - departure.moved_at >= linger_s:
                found.append(stream_id)
        return found

    def clear(self) -> None:
        """The connection is lost."""
        self._by_stream.clear()
        self._bytes = 0
