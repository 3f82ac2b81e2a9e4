"""How gRPC writes durations and messages into header values.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Timeout" and "Status-Message".
"""

import math
from urllib.parse import unquote_to_bytes

_SECONDS_PER_UNIT = {
    b"n": 1e-9,
    b"u": 1e-6,
    b"m": 1e-3,
    b"S": 1.0,
    b"M": 60.0,
    b"H": 3600.0,
}
_DIGITS_MAX = 8
_AMOUNT_MAX = 10**_DIGITS_MAX - 1
_COARSER_UNITS = ((b"m", 1e-3), (b"S", 1.0), (b"M", 60.0), (b"H", 3600.0))


def encode_timeout(timeout_s: float) -> bytes:
    """The value of ``grpc-timeout``: the finest unit from microseconds up that holds it in eight digits.

    Rounds up, so the peer never gives up before we do. A deadline already past becomes the shortest
    timeout there is; one beyond eleven thousand years becomes that.
    """
    if timeout_s <= 0:
        return b"1n"
    if timeout_s < 99:
        return b"%du" % math.ceil(timeout_s * 1e6)
    for unit, seconds in _COARSER_UNITS:
        if timeout_s <= _AMOUNT_MAX * seconds:
            return b"%d%b" % (math.ceil(timeout_s / seconds), unit)
    return b"%dH" % _AMOUNT_MAX


def decode_timeout(value: bytes) -> float:
    """Seconds in a ``grpc-timeout``. ValueError when it is not one to eight digits and a unit."""
    digits = value[:-1]
    seconds = _SECONDS_PER_UNIT.get(value[-1:])
    if seconds is None or not digits.isdigit() or len(digits) > _DIGITS_MAX:
        raise ValueError(f"malformed grpc-timeout: {value[:32]!r}")
    return int(digits) * seconds


_PERCENT = tuple(
    bytes([byte]) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in range(256)
)


MESSAGE_BYTES_MAX = 4 * 1024
"""Longest message sent, before its encoding makes it up to three times as long: many clients take no more
than 8 or 16 KiB of trailers in all."""


def encode_message(message: str) -> bytes:
    """The value of ``grpc-message``: UTF-8 cut at 4 KiB, percent-encoded but for printable ASCII.

    A space at either end is encoded too, although gRPC would not ask for it: HTTP/2 forbids field
    values that begin or end with one (RFC 9113 section 8.2.1).
    """
    raw = message.encode("utf-8", "replace")
    if len(raw) > MESSAGE_BYTES_MAX:
        raw = raw[:MESSAGE_BYTES_MAX].decode("utf-8", "ignore").encode("utf-8")
    plain = message.isascii() and message.isprintable() and "%" not in message
    if not plain:
        raw = b"".join([_PERCENT[byte] for byte in raw])
    if raw[:1] == b" ":
        raw = b"%20" + raw[1:]
    if raw[-1:] == b" ":
        raw = raw[:-1] + b"%20"
    return raw


def decode_message(value: bytes) -> str:
    """The text of a ``grpc-message``. Never fails: what is not well encoded is kept as it stands."""
    if b"%" in value:
        value = unquote_to_bytes(value)
    return value.decode("utf-8", "replace")
