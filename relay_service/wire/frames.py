"""What HTTP/2 forbids a caller and the engine lets pass, seen in the frame headers before it reads them.

libnghttp2 forgets closed streams, so it takes late frames for leftovers of a race, and it does not look at
the frames of the priority scheme that RFC 9113 dropped. A caller that says of a stream that it has ended and
then goes on is broken, and so is one that counts its streams backwards: such a connection is to be closed.
What may be a race stays the engine's: frames of a stream that we have reset, or whose end was forgotten.

Only the headers of frames are read, nine bytes each, and nothing is copied.
"""

import struct
from collections import deque
from collections.abc import Container
from typing import NamedTuple

from relay_service.wire.h2 import ErrorCode

WINDOW_BYTES_MAX = 2**31 - 1
"""Where a flow-control window overflows (RFC 9113 section 6.9.1)."""

PREFACE_BYTES = 24
"""What a caller sends before its first frame; the engine checks it."""

ENDED_STREAMS_MAX = 100
"""Streams remembered that their caller has ended. Then all are forgotten, which only makes us lenient."""

GAPS_MAX = 8
"""Ranges of stream ids remembered that the caller skipped."""

_HEADER = struct.Struct(">HBBBL")
_INCREMENT = struct.Struct(">L")
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _WINDOW_UPDATE = 0, 1, 2, 3, 8
_END_STREAM = 0x1
_31_BITS = 0x7FFFFFFF
_LARGE_INCREMENT = 0x7F
"""In the first of its four bytes: 16 MiB and more. Windows that overflow by less are the engine's affair."""


class Offence(NamedTuple):
    """A frame for which the connection is to be closed."""

    at: int
    """Where in the chunk it begins."""
    code: ErrorCode
    text: str


class Widening(NamedTuple):
    """A WINDOW_UPDATE that may open its stream's window too far."""

    at: int
    end: int
    stream_id: int
    increment_bytes: int


class CutOff(NamedTuple):
    """A frame whose head has not come whole: keep it, and put it before the next chunk."""

    at: int


Found = Offence | Widening | CutOff


class FrameWatch:
    """Walks over a caller's frames, chunk by chunk.

    State: how far ahead the next frame begins, the highest stream id, and what is remembered of streams
    that the caller has ended, reset, or skipped.
    """

    __slots__ = ("_ahead", "_ended", "_gaps", "_last_id", "_reset")

    def __init__(self) -> None:
        self._ahead = PREFACE_BYTES
        self._last_id = 0
        self._ended: set[int] = set()
        self._reset: set[int] = set()
        self._gaps: deque[range] = deque(maxlen=GAPS_MAX)

    def look(self, data: bytes | memoryview, streams: Container[int]) -> Found | None:
        """Look at the next chunk, up to the first frame that has to be dealt with; None without any.

        ``streams`` are those open before the chunk. After an `Offence` there is nothing more to look at;
        else the next look begins behind the `Widening`, or with what was cut off.
        """
        at, size = self._ahead, len(data)
        heads_end = size - _HEADER.size
        known_id = self._last_id
        found: Found | None = None
        while at <= heads_end:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
            length = high << 8 | low
            if kind > _HEADERS:
                found = self._look_at_other(data, at, kind, length, stream_id)
            else:
                if stream_id > self._last_id:
                    self._open(stream_id & _31_BITS)
                else:
                    found = self._look_at_late(at, kind, stream_id, known_id, streams)
                if flags & _END_STREAM:
                    self._note_end(stream_id)
            if found is not None:
                return found
            at += _HEADER.size + length
        if at < size:
            self._ahead = 0
            return CutOff(at)
        self._ahead = at - size
        return None

    def _look_at_late(
        self, at: int, kind: int, stream_id: int, known_id: int, streams: Container[int]
    ) -> Offence | None:
        """DATA, or HEADERS on a stream that is not new: part of a request, or an offence."""
        if stream_id in self._ended:
            if self._is_over(stream_id, known_id, streams):
                return Offence(at, ErrorCode.STREAM_CLOSED, "it went on with a stream that it had ended")
        elif kind == _HEADERS and any(stream_id in gap for gap in self._gaps):
            return Offence(at, ErrorCode.PROTOCOL_ERROR, "a stream id lower than one before")
        return None

    def _look_at_other(
        self, data: bytes | memoryview, at: int, kind: int, length: int, stream_id: int
    ) -> Found | None:
        if kind == _WINDOW_UPDATE and length == _INCREMENT.size:
            payload = at + _HEADER.size
            if payload + length > len(data):
                self._ahead = 0
                return CutOff(at)
            if data[payload] & _LARGE_INCREMENT and stream_id:
                (increment_bytes,) = _INCREMENT.unpack_from(data, payload)
                self._ahead = 0
                return Widening(at, payload + length, stream_id & _31_BITS, increment_bytes & _31_BITS)
        elif kind == _RST_STREAM:
            self._note_end(stream_id)
            self._reset.add(stream_id)
        elif kind == _PRIORITY and not stream_id & _31_BITS:
            return Offence(at, ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        return None

    def _open(self, stream_id: int) -> None:
        if stream_id > self._last_id + 2:
            self._gaps.append(range(self._last_id + 1, stream_id))
        self._last_id = max(stream_id, self._last_id)

    def _note_end(self, stream_id: int) -> None:
        self._ended.add(stream_id)
        if len(self._ended) > ENDED_STREAMS_MAX:
            self._ended.clear()
            self._reset.clear()

    def _is_over(self, stream_id: int, known_id: int, streams: Container[int]) -> bool:
        """Whether both sides are done with an ended stream; while we are not, the engine knows what to do."""
        return stream_id in self._reset or (stream_id <= known_id and stream_id not in streams)
