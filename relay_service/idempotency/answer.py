"""An answer as a value: what a caller got, whole, so that another caller can get it byte for byte."""

import struct
from dataclasses import dataclass

from relay_service.core.status import Code
from relay_service.ports import Headers, Reply

VERSION = 1
"""The first byte of an encoded answer. A relay that meets a newer one says so and replays nothing."""

_NO_HEADERS = 0xFFFF
_COUNT = struct.Struct("!H")
_LENGTH = struct.Struct("!I")


class UnreadableAnswerError(ValueError):
    """These bytes are no answer, or one of a newer relay."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers, framed messages and trailers; ``headers`` None means Trailers-Only."""

    code: Code
    message: str
    headers: Headers | None
    body: bytes
    trailers: Headers

    def send(self, reply: Reply, more_trailers: Headers = ()) -> None:
        """Give it to a caller."""
        if self.headers is not None:
            reply.send_headers(self.headers)
            if self.body:
                reply.send_data(self.body)
        reply.send_trailers(self.code, self.message, (*self.trailers, *more_trailers))

    def encode(self) -> bytes:
        """Bytes for a store: a version, the code, then text, headers, body and trailers by their lengths."""
        parts = [bytes((VERSION, int(self.code)))]
        _put(parts, self.message.encode("utf-8", "surrogatepass"))
        _put_fields(parts, self.headers)
        _put(parts, self.body)
        _put_fields(parts, self.trailers)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> "Answer":
        """The answer that `encode` made. Raises `UnreadableAnswerError`."""
        if not data or data[0] != VERSION:
            raise UnreadableAnswerError(f"a stored answer of version {data[:1].hex() or 'none'} is not known")
        try:
            reader = _Reader(data, 2)
            return cls(
                Code(data[1]),
                reader.bytes().decode("utf-8", "surrogatepass"),
                reader.fields(),
                reader.bytes(),
                reader.fields() or (),
            )
        except (ValueError, IndexError, struct.error) as error:
            raise UnreadableAnswerError("a stored answer is cut short or damaged") from error


def _put(parts: list[bytes], value: bytes) -> None:
    parts += (_LENGTH.pack(len(value)), value)


def _put_fields(parts: list[bytes], fields: Headers | None) -> None:
    parts.append(_COUNT.pack(_NO_HEADERS if fields is None else len(fields)))
    for name, value in fields or ():
        _put(parts, name)
        _put(parts, value)


class _Reader:
    """Reads what `_put` and `_put_fields` wrote. State: how far."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def bytes(self) -> bytes:
        start = self._at + _LENGTH.size
        (length,) = _LENGTH.unpack_from(self._data, self._at)
        self._at = start + length
        if self._at > len(self._data):
            raise IndexError(self._at)
        return self._data[start : self._at]

    def fields(self) -> Headers | None:
        (count,) = _COUNT.unpack_from(self._data, self._at)
        self._at += _COUNT.size
        if count == _NO_HEADERS:
            return None
        return tuple((self.bytes(), self.bytes()) for _ in range(count))


class AnswerCatcher:
    """A `Reply` that nobody reads: it keeps the answer.

    State: the parts so far, and the whole once `send_trailers` was called.
    """

    buffered_bytes = 0

    def __init__(self) -> None:
        self._headers: Headers | None = None
        self._chunks: list[bytes] = []
        self.answer: Answer | None = None

    def send_headers(self, headers: Headers) -> None:
        """See `relay_service.ports.Reply`."""
        self._headers = tuple(headers)

    def send_data(self, data: bytes) -> None:
        """See `relay_service.ports.Reply`."""
        self._chunks.append(data)

    def send_trailers(self, code: Code, message: str, trailers: Headers) -> None:
        """See `relay_service.ports.Reply`."""
        self.answer = Answer(code, message, self._headers, b"".join(self._chunks), tuple(trailers))

    def consumed(self, size_bytes: int) -> None:
        """See `relay_service.ports.Reply`: the request is here already."""
