"""A gRPC message as it stands on the wire: a prefix and the message; and a response held whole."""

from relay_service.core.reason import Reason
from relay_service.ports import Headers

FRAME_PREFIX_BYTES = 5
"""gRPC's message prefix: one compressed flag, four bytes of length."""


class Collector:
    """One gRPC message in the making, judged as soon as its prefix is there."""

    __slots__ = ("_chunks", "_expected_bytes", "_max_bytes", "size_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._expected_bytes: int | None = None
        self.size_bytes = 0
        """Collected so far, the prefix included."""

    def add(self, data: bytes) -> Reason | None:
        """Take more bytes; a reason when they cannot become a message that is accepted."""
        self._chunks.append(data)
        self.size_bytes += len(data)
        if self._expected_bytes is None:
            if self.size_bytes < FRAME_PREFIX_BYTES:
                return None
            prefix = b"".join(self._chunks)[:FRAME_PREFIX_BYTES]
            if prefix[0] not in (0, 1):
                return Reason.MALFORMED_REQUEST
            self._expected_bytes = int.from_bytes(prefix[1:]) + FRAME_PREFIX_BYTES
            if self._expected_bytes > self._max_bytes + FRAME_PREFIX_BYTES:
                return Reason.MESSAGE_TOO_LARGE
        return Reason.MALFORMED_REQUEST if self.size_bytes > self._expected_bytes else None

    def whole(self) -> bytes | None:
        """The message with its prefix; None when bytes are missing."""
        if self.size_bytes != self._expected_bytes:
            return None
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]


def is_one_message(framed: bytes) -> bool:
    """Whether the bytes are exactly one gRPC message with its prefix."""
    return (
        len(framed) >= FRAME_PREFIX_BYTES
        and framed[0] in (0, 1)
        and int.from_bytes(framed[1:FRAME_PREFIX_BYTES]) + FRAME_PREFIX_BYTES == len(framed)
    )


def frame(message: bytes) -> bytes:
    """One uncompressed gRPC message with its prefix."""
    return b"\0" + len(message).to_bytes(4) + message


class HeldResponse:
    """What an attempt was answered, held until it is known whether the caller gets it."""

    __slots__ = ("chunks", "headers", "size_bytes")

    def __init__(self) -> None:
        self.headers: Headers | None = None
        self.chunks: list[bytes] = []
        self.size_bytes = 0

    def add(self, data: bytes) -> None:
        """Take more bytes."""
        self.chunks.append(data)
        self.size_bytes += len(data)
