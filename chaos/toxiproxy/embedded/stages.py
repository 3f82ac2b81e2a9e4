"""What each toxic does to one direction of one connection: pure state machines, time given as an argument.

A stage holds chunks in order and says when the next may leave. It opens no socket, reads no clock and sets no
timer; `pipeline.Pipeline` chains stages and `link.Link` drives them. Times are monotonic seconds.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final, Literal, TypeAlias

LATENCY_CHUNKS_MAX: Final = 1024
LATENCY_BYTES_MAX: Final = 8 * 2**20
BANDWIDTH_SLICE_S: Final = 0.1
BANDWIDTH_WAKE_S_MAX: Final = 0.005  # how late a chunk may come and still count as having come back to back
# A slice must be a write of its own, or the kernel sees none: the next waits for another turn of the loop.
SLICE_GAP_S_MIN: Final = 1e-6


class Signal(Enum):
    """What can follow the bytes."""

    END = "end"  # nothing more comes: close the connection


END: Final = Signal.END


@dataclass(slots=True)
class Chunk:
    """Bytes as they were read, and when: delays count from there."""

    data: bytes
    at_s: float


Item: TypeAlias = Chunk | Literal[Signal.END]


@dataclass(slots=True)
class Memory:
    """What must outlive a stage while its toxic stays on the link: a stage is replaced at every update."""

    bytes_passed: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """What a stage is given when it starts on a link: the time, its draws there, its memory."""

    now_s: float
    rng: random.Random
    memory: Memory


class Stage:
    """Passes everything on unchanged; the base of the others. Without an override it holds one chunk."""

    __slots__ = ("ended_at_s", "queue", "torn")
    swallows: ClassVar[bool] = False  # drops bytes by design, and may follow itself without ending the link

    def __init__(self) -> None:
        self.queue: deque[Chunk] = deque()
        self.ended_at_s: float | None = None
        self.torn = False  # bytes were dropped: whatever is passed on after them would hide a hole

    def has_room(self) -> bool:
        """Whether another chunk may be put; the end may always be."""
        return not self.queue and self.ended_at_s is None

    def put(self, chunk: Chunk, _now_s: float) -> None:
        """Take a chunk in, behind the ones held; after the end it is dropped."""
        if self.ended_at_s is None:
            self.queue.append(chunk)

    def end(self, now_s: float) -> None:
        """Take in that nothing follows."""
        self.ended_at_s = now_s

    def take(self, _now_s: float) -> Item | None:
        """What may leave now: the next chunk, then END; None while there is something to wait for."""
        if self.queue:
            return self.queue.popleft()
        return END if self.ended_at_s is not None else None

    def due_s(self) -> float | None:
        """When `take` can next succeed if nothing more is put; None when only that would help."""
        return 0.0 if self.queue or self.ended_at_s is not None else None

    def adopt(self, other: Stage, now_s: float) -> None:
        """Take over everything another stage holds, its end included.

        Where the other has dropped bytes and this one would pass some on, the link ends instead.
        """
        for chunk in other.drain():
            self.put(chunk, now_s)
        self.torn = self.torn or other.torn
        if other.ended_at_s is not None:
            self.end(other.ended_at_s)
        elif other.torn and not self.swallows:
            self.end(now_s)

    def drain(self) -> list[Chunk]:
        """Give up every chunk held, in order."""
        held = list(self.queue)
        self.queue.clear()
        return held


class LatencyStage(Stage):
    """Holds each chunk for a delay from when it was read; in order, so a short draw waits for a long one."""

    __slots__ = ("_head_due_s", "_held_bytes", "_jitter_ms", "_latency_ms", "_rng")

    def __init__(self, latency_ms: int, jitter_ms: int, rng: random.Random) -> None:
        super().__init__()
        self._latency_ms = latency_ms
        self._jitter_ms = jitter_ms
        self._rng = rng
        self._held_bytes = 0
        self._head_due_s: float | None = None

    def has_room(self) -> bool:
        """Up to 1,024 chunks and 8 MiB: what is on the wire of a long line."""
        return len(self.queue) < LATENCY_CHUNKS_MAX and self._held_bytes < LATENCY_BYTES_MAX

    def put(self, chunk: Chunk, now_s: float) -> None:
        self._held_bytes += len(chunk.data)
        super().put(chunk, now_s)

    def take(self, now_s: float) -> Item | None:
        if not self.queue:
            return super().take(now_s)
        due_s = self._head_due()
        if now_s < due_s:
            return None
        chunk = self.queue.popleft()
        self._held_bytes -= len(chunk.data)
        self._head_due_s = None
        return Chunk(chunk.data, due_s)

    def due_s(self) -> float | None:
        return self._head_due() if self.queue else super().due_s()

    def drain(self) -> list[Chunk]:
        self._held_bytes = 0
        self._head_due_s = None
        return super().drain()

    def _head_due(self) -> float:
        if self._head_due_s is None:
            self._head_due_s = self.queue[0].at_s + self._draw_ms() / 1000
        return self._head_due_s

    def _draw_ms(self) -> int:
        """Uniform over the whole milliseconds from latency - jitter to latency + jitter - 1."""
        if self._jitter_ms <= 0:
            return self._latency_ms
        return self._latency_ms + self._rng.randrange(2 * self._jitter_ms) - self._jitter_ms


class BandwidthStage(Stage):
    """Lets bytes leave at a rate, in slices of a tenth of a second; at rate 0 nothing leaves."""

    __slots__ = ("_bytes_per_s", "_due_s", "_free_at_s")

    def __init__(self, rate_kb_per_s: int, now_s: float) -> None:
        super().__init__()
        self._bytes_per_s = rate_kb_per_s * 1000
        self._free_at_s = now_s  # when the last slice was due: the line is free from then on
        self._due_s: float | None = None  # when the slice now on the line has passed

    def put(self, chunk: Chunk, now_s: float) -> None:
        super().put(chunk, now_s)
        if self._due_s is None:
            self._start_slice(now_s - BANDWIDTH_WAKE_S_MAX)

    def take(self, now_s: float) -> Item | None:
        if not self.queue:
            return super().take(now_s)
        if self._due_s is None or now_s < self._due_s:
            return None
        size_bytes = self._slice_bytes()
        chunk = self.queue.popleft()
        if size_bytes < len(chunk.data):
            self.queue.appendleft(Chunk(chunk.data[size_bytes:], chunk.at_s))
        self._free_at_s, self._due_s = self._due_s, None
        self._start_slice(now_s - BANDWIDTH_SLICE_S)
        return Chunk(chunk.data[:size_bytes], chunk.at_s)

    def due_s(self) -> float | None:
        return self._due_s if self.queue else super().due_s()

    def drain(self) -> list[Chunk]:
        self._due_s = None
        return super().drain()

    def _start_slice(self, earliest_s: float) -> None:
        """Put the next slice on the line, from when the line was free but no earlier than `earliest_s`.

        From then, and not from now, so that late wake-ups do not add up; the limit keeps a line that idled,
        or whose reader held it back, from making up for lost time in a burst.
        """
        if self.queue and self._bytes_per_s > 0:
            self._due_s = max(self._free_at_s, earliest_s) + self._slice_bytes() / self._bytes_per_s

    def _slice_bytes(self) -> int:
        return min(len(self.queue[0].data), int(self._bytes_per_s * BANDWIDTH_SLICE_S))


class SlowCloseStage(Stage):
    """Passes bytes at once and holds back only the end."""

    __slots__ = ("_delay_s",)

    def __init__(self, delay_ms: int) -> None:
        super().__init__()
        self._delay_s = delay_ms / 1000

    def take(self, now_s: float) -> Item | None:
        if self.queue or self.ended_at_s is None:
            return super().take(now_s)
        return END if now_s >= self.ended_at_s + self._delay_s else None

    def due_s(self) -> float | None:
        if self.queue or self.ended_at_s is None:
            return super().due_s()
        return self.ended_at_s + self._delay_s


class TimeoutStage(Stage):
    """Drops every byte, and ends after that much silence; with timeout 0 only the end itself passes."""

    __slots__ = ("_silent_until_s", "_timeout_s")
    swallows = True

    def __init__(self, timeout_ms: int, now_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_ms / 1000
        self._silent_until_s = now_s + self._timeout_s

    def has_room(self) -> bool:
        return True

    def put(self, _chunk: Chunk, now_s: float) -> None:
        self.torn = True
        self._silent_until_s = now_s + self._timeout_s

    def take(self, now_s: float) -> Item | None:
        if self._timeout_s > 0 and now_s >= self._silent_until_s:
            return END
        return super().take(now_s)

    def due_s(self) -> float | None:
        if self.ended_at_s is not None or self._timeout_s <= 0:
            return super().due_s()
        return self._silent_until_s


class ResetPeerStage(Stage):
    """Waits for the first byte or the end, drops it, and ends after the timeout.

    That the end arrives as a reset is a matter of the socket: the connection sets linger 0 when it is made.
    """

    __slots__ = ("_timeout_s", "touched_at_s")
    swallows = True

    def __init__(self, timeout_ms: int) -> None:
        super().__init__()
        self._timeout_s = timeout_ms / 1000
        self.touched_at_s: float | None = None

    def has_room(self) -> bool:
        return True

    def put(self, _chunk: Chunk, now_s: float) -> None:
        self.torn = True
        self._touch(now_s)

    def end(self, now_s: float) -> None:
        super().end(now_s)
        self._touch(now_s)

    def take(self, now_s: float) -> Item | None:
        due_s = self.due_s()
        return END if due_s is not None and now_s >= due_s else None

    def due_s(self) -> float | None:
        return None if self.touched_at_s is None else self.touched_at_s + self._timeout_s

    def adopt(self, other: Stage, now_s: float) -> None:
        super().adopt(other, now_s)
        if isinstance(other, ResetPeerStage) and other.touched_at_s is not None:
            self.touched_at_s = other.touched_at_s

    def _touch(self, now_s: float) -> None:
        if self.touched_at_s is None:
            self.touched_at_s = now_s


class SlicerStage(Stage):
    """Cuts chunks into pieces of about an average size, each written on its own, a delay between them."""

    __slots__ = ("_average_bytes", "_gap_s", "_next_at_s", "_parts", "_rng", "_variation_bytes")

    def __init__(self, average_bytes: int, variation_bytes: int, delay_us: int, rng: random.Random) -> None:
        super().__init__()
        self._average_bytes = average_bytes
        self._variation_bytes = variation_bytes
        self._gap_s = max(delay_us / 1e6, SLICE_GAP_S_MIN)
        self._rng = rng
        self._next_at_s = 0.0
        self._parts: list[
            tuple[int, int]
        ] = []  # of the first chunk: offsets still to be cut, the next one last

    def take(self, now_s: float) -> Item | None:
        if not self.queue:
            return super().take(now_s)
        if now_s < self._next_at_s:
            return None
        self._next_at_s = now_s + self._gap_s
        chunk = self.queue[0]
        start, stop = self._next_piece(len(chunk.data))
        if not self._parts:
            self.queue.popleft()
        return Chunk(chunk.data[start:stop], chunk.at_s)

    def due_s(self) -> float | None:
        return self._next_at_s if self.queue else super().due_s()

    def drain(self) -> list[Chunk]:
        """What is held, the rest of the chunk that was being sliced in one piece."""
        if self._parts:
            first = self.queue.popleft()
            self.queue.appendleft(Chunk(first.data[self._parts[-1][0] :], first.at_s))
            self._parts.clear()
        return super().drain()

    def _next_piece(self, size_bytes: int) -> tuple[int, int]:
        """Halve, a little beside the middle, until a part is of about the average size."""
        start, stop = self._parts.pop() if self._parts else (0, size_bytes)
        while self._average_bytes > 0 and stop - start > self._average_bytes + self._variation_bytes:
            middle = self._beside((start + stop) // 2, start, stop)
            self._parts.append((middle, stop))
            stop = middle
        return start, stop

    def _beside(self, middle: int, start: int, stop: int) -> int:
        """The middle shifted by the drawn variation, kept inside the part so that both halves are smaller."""
        if self._variation_bytes > 0:
            middle += self._rng.randrange(2 * self._variation_bytes) - self._variation_bytes
        return min(max(middle, start + 1), stop - 1)


class LimitDataStage(Stage):
    """Passes that many bytes over the life of the link, cuts what exceeds them, then ends."""

    __slots__ = ("_limit_bytes", "_memory")

    def __init__(self, limit_bytes: int, memory: Memory) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes
        self._memory = memory

    def take(self, now_s: float) -> Item | None:
        """Only a chunk can find the limit reached, never the lack of one: an idle connection stays open."""
        if not self.queue:
            return super().take(now_s)
        chunk = self.queue.popleft()
        piece = chunk.data[: max(0, self._limit_bytes - self._memory.bytes_passed)]
        self._memory.bytes_passed += len(piece)
        if self._memory.bytes_passed >= self._limit_bytes:
            self.queue.clear()
            self.torn = True
            self.end(now_s)
        return Chunk(piece, chunk.at_s) if piece else END
