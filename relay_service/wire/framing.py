"""gRPC's message framing: a flag byte, four bytes of length, the message.

The relay passes frames through untouched; this is for those parts of it that must see messages.
"""

import struct
from dataclasses import dataclass

PREFIX_BYTES = 5
_PREFIX = struct.Struct(">BL")


class FramingError(ValueError):
    """The bytes are not gRPC messages."""


class MessageTooLargeError(FramingError):
    """A message's prefix announces more than the limit; raised before any of it is kept."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it stood on the wire."""

    payload: bytes
    compressed: bool
    """Whether ``payload`` is encoded as the call's ``grpc-encoding`` says."""


def frame(payload: bytes, flag: int = 0) -> bytes:
    """One framed message. ``flag`` 1 says that the payload is compressed."""
    return _PREFIX.pack(flag, len(payload)) + payload


class MessageReader:
    """Cuts a stream of DATA, however it was split or joined, into messages.

    Keeps at most one incomplete message, and never more than ``size_bytes_max`` of it plus the last
    chunk fed.
    """

    __slots__ = ("_buffer", "_size_bytes_max")

    def __init__(self, size_bytes_max: int) -> None:
        self._buffer = bytearray()
        self._size_bytes_max = size_bytes_max

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes, in order.

        Raises FramingError for a flag that is neither 0 nor 1, MessageTooLargeError beyond the limit.
        """
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        start = 0
        while len(buffer) - start >= PREFIX_BYTES:
            flag, size = _PREFIX.unpack_from(buffer, start)
            if flag > 1:
                raise FramingError(f"message flag {flag} is neither 0 nor 1")
            if size > self._size_bytes_max:
                raise MessageTooLargeError(f"message of {size} bytes, {self._size_bytes_max} are allowed")
            end = start + PREFIX_BYTES + size
            if len(buffer) < end:
                break
            messages.append(Message(bytes(buffer[start + PREFIX_BYTES : end]), bool(flag)))
            start = end
        if start:
            del buffer[:start]
        return messages

    @property
    def incomplete(self) -> bool:
        """Whether bytes are left that make no whole message; an error once the stream has ended."""
        return bool(self._buffer)
