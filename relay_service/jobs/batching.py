"""Jobs joined into one call and taken apart again, on the protobuf wire format itself.

The relay knows no message types, and needs none: a repeated field is its tag, a length and the item,
over and over. Source: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from relay_service.core.evidence import Delivery, Ending, Evidence, judge
from relay_service.core.job_policy import BatchItems, BatchResults
from relay_service.core.job_step import Run
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict

LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


class MalformedBatchError(ValueError):
    """A batch response that does not hold one result for each item."""


@dataclass(frozen=True, slots=True)
class Item:
    """One job's share of a batch request."""

    request: bytes
    key: bytes
    """Its derived idempotency key."""


def join(items: Sequence[Item], shape: BatchItems) -> bytes:
    """The batch request."""
    return b"".join(_field(shape.field, _item(item, shape)) for item in items)


def split(response: bytes, count: int, shape: BatchResults, retryable: frozenset[Code]) -> list[Run]:
    """Each item's own end, in the items' order. Raises `MalformedBatchError` unless there are ``count``."""
    results = [value for number, value in fields(response) if number == shape.field]
    if len(results) != count or not all(isinstance(value, bytes) for value in results):
        raise MalformedBatchError(f"{len(results)} results came for {count} items")
    return [_result(value, shape, retryable) for value in results if isinstance(value, bytes)]


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Each field's number and value. Raises `MalformedBatchError` where the bytes are no message."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        match tag & 7:
            case 0:
                value, at = _read_varint(message, at)
                yield tag >> 3, value
            case 2:
                size, at = _read_varint(message, at)
                yield tag >> 3, _cut(message, at, size)
                at += size
            case 1 | 5 as kind:
                yield tag >> 3, _cut(message, at, _FIXED_BYTES[kind])
                at += _FIXED_BYTES[kind]
            case kind:
                raise MalformedBatchError(f"wire type {kind}")


def _item(item: Item, shape: BatchItems) -> bytes:
    if shape.request_field is None:
        return item.request
    key = _field(shape.key_field, item.key) if shape.key_field is not None else b""
    return _field(shape.request_field, item.request) + key


def _result(result: bytes, shape: BatchResults, retryable: frozenset[Code]) -> Run:
    known = dict(fields(result))
    code = _code(known.get(shape.code_field or 0, 0))
    if code is Code.OK:
        return Run(_verdict(code, "", Evidence.DEFINITE), Delivery.ANSWERED, _answer(result, known, shape))
    message = known.get(shape.message_field or 0, b"")
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else ""
    evidence = judge(Ending(Delivery.ANSWERED, code), retryable).evidence
    return Run(_verdict(code, text, evidence), Delivery.ANSWERED)


def _answer(result: bytes, known: dict[int, int | bytes], shape: BatchResults) -> bytes:
    if shape.answer_field is None:
        return result
    answer = known.get(shape.answer_field, b"")
    if not isinstance(answer, bytes):
        raise MalformedBatchError(f"field {shape.answer_field} of a result is no message")
    return answer if shape.answer_as is None else _field(shape.answer_as, answer)


def _verdict(code: Code, message: str, evidence: Evidence) -> Verdict:
    fate = Fate.OK if code is Code.OK else Fate.ERROR
    return Verdict(code, message, Origin.UPSTREAM, fate, evidence=evidence, attempts=1)


def _code(value: int | bytes) -> Code:
    """An unknown number is UNKNOWN, as gRPC has it."""
    return Code(value) if isinstance(value, int) and 0 <= value <= max(Code) else Code.UNKNOWN


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedBatchError("a number that does not end")


def _cut(message: bytes, at: int, size: int) -> bytes:
    if at + size > len(message):
        raise MalformedBatchError("a field longer than its message")
    return message[at : at + size]
