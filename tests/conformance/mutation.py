"""Valid HTTP/2 byte streams, and seeded ways to spoil them.

The streams are made with the engine itself and a few frames written by hand; what is done to them follows
from a `random.Random`, so a run can be repeated from its seed.
"""

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import ngh2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = struct.Struct(">BHBBL")
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
_UNKNOWN = 0xEE
MUTATIONS_MAX = 4
CHUNKS_MAX = 12


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame, or (with ``raw``) bytes that need not be one."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes
    raw: bool = False

    def encode(self) -> bytes:
        """The bytes on the wire."""
        if self.raw:
            return self.payload
        size = len(self.payload)
        return _HEAD.pack(size >> 16, size & 0xFFFF, self.kind, self.flags, self.stream_id) + self.payload


def frames_of(data: bytes) -> list[Frame]:
    """Cut valid bytes into frames; a client's preface becomes a raw one."""
    found: list[Frame] = []
    if data.startswith(PREFACE):
        found.append(Frame(0, 0, 0, PREFACE, raw=True))
        data = data[len(PREFACE) :]
    while len(data) >= _HEAD.size:
        high, low, kind, flags, stream_id = _HEAD.unpack_from(data)
        end = _HEAD.size + (high << 16 | low)
        found.append(Frame(kind, flags, stream_id, data[_HEAD.size : end]))
        data = data[end:]
    return found


# -- what a caller may send --------------------------------------------------------------------------------


def recordings(method: str) -> list[list[Frame]]:
    """What well-behaved callers send: calls of all shapes to ``method`` and to the relay's own services."""
    return [
        frames_of(make(_Caller(), method))
        for make in (_unary_calls, _a_conversation, _cancelled_calls, _large_headers, _odd_but_legal)
    ]


class _Caller:
    """A client engine with its preface said."""

    def __init__(self) -> None:
        self.engine = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
        self.engine.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: 1_000_000})
        self.said = self.engine.data_to_send()

    def request(self, method: str, *extra: tuple[bytes, bytes], verb: bytes = b"POST") -> int:
        """Send a request's headers."""
        fields = [
            (b":method", verb),
            (b":scheme", b"http"),
            (b":path", method.encode()),
            (b":authority", b"fuzz"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *extra,
        ]
        return self.engine.send_request(fields)

    def say(self, raw: bytes = b"") -> None:
        """Note what the engine has to send, then ``raw``."""
        self.said += self.engine.data_to_send() + raw


def message(payload: bytes, flag: int = 0) -> bytes:
    """One gRPC message in its frame."""
    return struct.pack(">BL", flag, len(payload)) + payload


def _unary_calls(caller: _Caller, method: str) -> bytes:
    for number in range(6):
        stream = caller.request(method, (b"grpc-timeout", b"2S"), (b"x-n-bin", b"AAEC"))
        caller.engine.send_data(stream, message(b"x" * 50 * number), end_stream=True)
        caller.say()
    return caller.said


def _a_conversation(caller: _Caller, method: str) -> bytes:
    stream = caller.request(method)
    for number in range(12):
        caller.engine.send_data(stream, message(b"y" * 900), end_stream=number == 11)
        caller.say(Frame(WINDOW_UPDATE, 0, stream if number % 2 else 0, struct.pack(">L", 1000)).encode())
    caller.engine.ping(b"12345678")
    caller.say()
    return caller.said


def _cancelled_calls(caller: _Caller, method: str) -> bytes:
    for number in range(8):
        stream = caller.request(method)
        caller.engine.send_data(stream, message(b"z" * 100), end_stream=number % 2 == 0)
        caller.say()
        caller.engine.reset_stream(stream, ngh2.ErrorCode.CANCEL)
        caller.say()
    return caller.said


def _large_headers(caller: _Caller, method: str) -> bytes:
    stream = caller.request(method, *[(b"x-large-%d" % number, b"v" * 900) for number in range(22)])
    caller.engine.send_data(stream, message(b"after CONTINUATION"), end_stream=True)
    caller.say()
    return caller.said


def _odd_but_legal(caller: _Caller, method: str) -> bytes:
    caller.request(method, verb=b"GET")
    caller.say(Frame(_UNKNOWN, 0, 0, b"whatever").encode())
    stream = caller.request(method, (b"grpc-timeout", b"soon"), (b"grpc-encoding", b"gzip"))
    caller.engine.send_data(stream, message(b"not gzip", flag=1), end_stream=True)
    caller.say(Frame(PRIORITY, 0, stream, b"\0\0\0\0\x10").encode())
    for own in ("/grpc.health.v1.Health/Check", "/relay.v1.RelayService/Relay", "/nobody.Knows/It"):
        stream = caller.request(own)
        caller.engine.send_data(stream, message(b"\x0a\x03abc"), end_stream=True)
    caller.say(Frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 65_535)).encode())
    caller.engine.send_goaway(ngh2.ErrorCode.NO_ERROR)
    caller.say()
    return caller.said


# -- spoiling ----------------------------------------------------------------------------------------------


def spoiled(rng: random.Random, frames: list[Frame], others: list[Frame]) -> bytes:
    """The stream after some mutations (one in ten has none); strange frames come from ``others``."""
    frames = list(frames)
    if rng.random() < 0.9:
        for _ in range(rng.randint(1, MUTATIONS_MAX)):
            rng.choice(_MUTATIONS)(rng, frames, others)
    data = b"".join(frame.encode() for frame in frames)
    return data[: rng.randrange(len(data) + 1)] if data and rng.random() < 0.15 else data


def chunks(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """The bytes cut at random places: rarely at frames' ends, sometimes not at all."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(CHUNKS_MAX)))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if start < end:
            yield data[start:end]


_Mutation = Callable[[random.Random, list[Frame], list[Frame]], None]


def _place(rng: random.Random, frames: list[Frame]) -> int:
    return rng.randrange(len(frames)) if frames else 0


def _flip_a_bit(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    at = _place(rng, frames)
    data = bytearray(frames[at].encode()) if frames else b""
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        frames[at] = Frame(0, 0, 0, bytes(data), raw=True)


def _overwrite(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    at = _place(rng, frames)
    data = bytearray(frames[at].encode()) if frames else b""
    if data:
        start = rng.randrange(len(data))
        noise = rng.randbytes(rng.randint(1, 8))
        data[start : start + len(noise)] = noise
        frames[at] = Frame(0, 0, 0, bytes(data), raw=True)


def _drop(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    if frames:
        del frames[_place(rng, frames)]


def _repeat(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    if frames:
        at = _place(rng, frames)
        frames[at:at] = [frames[at]] * rng.choice((1, 1, 2, 50))


def _swap(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    if frames:
        one, other = _place(rng, frames), _place(rng, frames)
        frames[one], frames[other] = frames[other], frames[one]


def _mix_in(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    frames.insert(_place(rng, frames), rng.choice(others))


def _relabel(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    if frames:
        at = _place(rng, frames)
        change: dict[str, int] = rng.choice(
            (
                {"kind": rng.randrange(11)},
                {"flags": rng.randrange(256)},
                {"stream_id": rng.choice((0, 1, 2, 3, 5, 7, 101, 2**31 - 1))},
            )
        )
        frames[at] = replace(frames[at], **change)


def _resize(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    if frames:
        at = _place(rng, frames)
        payload = frames[at].payload
        longer = payload + rng.randbytes(rng.choice((1, 4, 9, 16_384)))
        frames[at] = replace(frames[at], payload=rng.choice((b"", payload[: len(payload) // 2], longer)))


def _write_by_hand(rng: random.Random, frames: list[Frame], others: list[Frame]) -> None:
    stream_id = rng.choice((0, 1, 3, 5, 9))
    frame = rng.choice(
        (
            Frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">L", rng.choice((0, 1, 2**31 - 1)))),
            Frame(RST_STREAM, 0, stream_id, struct.pack(">L", rng.randrange(14))),
            Frame(
                SETTINGS,
                0,
                0,
                struct.pack(">HL", rng.randrange(1, 9), rng.choice((0, 1, 2**31 - 1, 2**32 - 1))),
            ),
            Frame(SETTINGS, 1, 0, b""),
            Frame(PING, rng.randrange(2), 0, rng.randbytes(8)),
            Frame(GOAWAY, 0, 0, struct.pack(">LL", rng.choice((0, 1, 2**31 - 1)), rng.randrange(14))),
            Frame(DATA, rng.randrange(2), stream_id, rng.randbytes(rng.choice((0, 5, 300)))),
            Frame(HEADERS, rng.choice((4, 5)), stream_id, rng.randbytes(rng.randrange(1, 40))),
            Frame(PUSH_PROMISE, 4, stream_id, struct.pack(">L", 2) + b"\x82"),
            Frame(CONTINUATION, 4, stream_id, b""),
        )
    )
    frames.insert(_place(rng, frames), frame)


_MUTATIONS: tuple[_Mutation, ...] = (
    _flip_a_bit,
    _overwrite,
    _drop,
    _repeat,
    _swap,
    _mix_in,
    _relabel,
    _resize,
    _write_by_hand,
)
