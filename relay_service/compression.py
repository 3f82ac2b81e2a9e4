"""The message inside a gRPC frame, decompressed."""

import zlib

from relay_service.message import FRAME_PREFIX_BYTES, is_one_message

ENCODING = b"grpc-encoding"
ACCEPT_ENCODING = b"grpc-accept-encoding"
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}


class UnframeError(Exception):
    """There is no message to be had from these bytes; says why."""


def unframe(framed: bytes, encoding: bytes | None, max_bytes: int) -> bytes:
    """The one message in ``framed``, decompressed; raises `UnframeError` when it is not one."""
    if not is_one_message(framed):
        raise UnframeError("it is not exactly one gRPC message within the size limit")
    message = framed[FRAME_PREFIX_BYTES:]
    if framed[0] == 0:
        return message
    window_bits = _WINDOW_BITS.get(encoding or b"")
    if window_bits is None:
        raise UnframeError("it is compressed in a way the relay does not know; use gzip, deflate or none")
    inflater = zlib.decompressobj(window_bits)
    try:
        plain = inflater.decompress(message, max_bytes)
    except zlib.error as error:
        raise UnframeError(f"it cannot be decompressed: {error}") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise UnframeError(f"it is cut off or larger than {max_bytes} bytes when decompressed")
    return plain
