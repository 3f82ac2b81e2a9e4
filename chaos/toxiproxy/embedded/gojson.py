"""JSON the way Go's encoding/json reads and writes it, because clients compare the error texts.

What differs from Python's `json` and matters here: the decoder reads one value and ignores what follows; keys
match their fields whatever their case; null leaves a field as it was; a value of the wrong type is an error
that names the field and Go's type for it; integers must be written as integers.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from typing import Final, TypeAlias

INT64_MAX: Final = 2**63 - 1
FLOAT32_MAX: Final = 3.4028234663852886e38
SPACE: Final = " \t\r\n"

Scalar: TypeAlias = str | bool | int | float


class GoJsonError(ValueError):
    """A body Go's decoder would not take; the text is what Go says."""


class _Number(str):
    """A JSON number as it was written: Go's errors quote it, and 5.0 is no integer."""

    __slots__ = ()


def decode(body: bytes) -> object:
    """The first JSON value of `body`; what follows it is ignored, as Go's stream decoder does.

    Numbers come back as written, to be converted by `fields`. Raises GoJsonError.
    """
    text = body.decode("utf-8", errors="replace").lstrip(SPACE)
    if not text:
        raise GoJsonError("EOF")
    decoder = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_no_constant)
    try:
        value, _ = decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        raise GoJsonError(_syntax_error(text, error)) from None
    except RecursionError:
        raise GoJsonError("exceeded max depth") from None
    return value


def fields(value: object, go_type: str, struct_name: str, wanted: Mapping[str, str]) -> dict[str, Scalar]:
    """What an object says about the `wanted` fields (name -> Go type), converted; null counts as absent.

    `go_type` names the whole value in an error, `struct_name` the struct a field belongs to; both may be
    what Go prints for an anonymous struct. Raises GoJsonError at the first value of the wrong type.
    """
    found: dict[str, Scalar] = {}
    for name, raw in members(value, go_type).items():
        field = next((known for known in wanted if known.lower() == name.lower()), None)
        if field is not None and raw is not None:
            found[field] = _convert(raw, wanted[field], f"Go struct field {struct_name}.{field}")
    return found


def members(value: object, go_type: str) -> dict[str, object]:
    """The object's members; null counts as empty. Raises GoJsonError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise GoJsonError(f"json: cannot unmarshal {_kind(value)} into Go value of type {go_type}")
    return value


def member(value: object, name: str) -> object:
    """The member called `name` in whatever case, or None."""
    found = None
    if isinstance(value, dict):
        for key, raw in value.items():
            if key.lower() == name:
                found = raw
    return found


def elements(value: object, go_type: str) -> list[object]:
    """The array's elements; null counts as empty. Raises GoJsonError for anything else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise GoJsonError(f"json: cannot unmarshal {_kind(value)} into Go value of type {go_type}")
    return value


def struct_field(value: object, go_type: str, path: str) -> dict[str, object]:
    """Like `members`, for an object that is itself the field `path` of a struct."""
    if value is None or isinstance(value, dict):
        return value or {}
    raise GoJsonError(f"json: cannot unmarshal {_kind(value)} into Go struct field {path} of type {go_type}")


def encode(value: object) -> str:
    """Compact JSON with Go's escapes of HTML characters and Go's shortest form of a float32."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def float32(value: float) -> int | float:
    """The shortest decimal that reads back as the same 32-bit float; whole numbers as int, as in Go."""
    exact = struct.unpack("f", struct.pack("f", value))[0]
    if exact.is_integer() and abs(exact) < 1e21:
        return int(exact)
    for digits in range(1, 10):
        short = float(f"{exact:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", exact):
            return short
    return float(exact)


def _convert(raw: object, go_type: str, target: str) -> Scalar:
    kind = _kind(raw)
    if go_type == "string" and kind == "string":
        return str(raw)
    if go_type == "bool" and isinstance(raw, bool):
        return raw
    if isinstance(raw, _Number) and go_type in {"int", "int64", "float32"}:
        number = _integer(raw) if go_type != "float32" else _float32(raw)
        if number is not None:
            return number
        kind = f"number {raw}"
    raise GoJsonError(f"json: cannot unmarshal {kind} into {target} of type {go_type}")


def _integer(raw: _Number) -> int | None:
    if not re.fullmatch(r"-?\d{1,19}", raw):
        return None
    value = int(raw)
    return value if -INT64_MAX - 1 <= value <= INT64_MAX else None


def _float32(raw: _Number) -> float | None:
    value = float(raw)
    return value if abs(value) <= FLOAT32_MAX else None


def _kind(value: object) -> str:
    match value:
        case _Number():
            return "number"
        case bool():
            return "bool"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _no_constant(name: str) -> object:
    char = "I" if name.endswith("Infinity") else name[0]
    where = "in numeric literal" if name.startswith("-") else "looking for beginning of value"
    raise GoJsonError(f"invalid character {_quoted(char)} {where}")


# What Python's decoder expected when it gave up, in Go's words for the character it found instead.
_EXPECTATIONS: Final = {
    "Expecting value": "looking for beginning of value",
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Illegal trailing comma before end of array": "looking for beginning of value",
    "Expecting ':' delimiter": "after object key",
    "Invalid control character at": "in string literal",
    "Invalid \\escape": "in string escape code",
    "Invalid \\uXXXX escape": "in \\u hexadecimal character escape",
}


def _syntax_error(text: str, error: json.JSONDecodeError) -> str:
    if error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    at = error.pos + _past_what_go_accepts(text, error)
    if at >= len(text):
        return "unexpected EOF"
    if error.msg == "Expecting value":
        return _value_error(text, at)
    if error.msg == "Expecting ',' delimiter":
        return _delimiter_error(text, at)
    expected = next(
        (words for start, words in _EXPECTATIONS.items() if error.msg.startswith(start)), error.msg
    )
    return f"invalid character {_quoted(text[at])} {expected}"


def _past_what_go_accepts(text: str, error: json.JSONDecodeError) -> int:
    """How much later than Python Go stumbles: behind the backslash, over the trailing comma."""
    if error.msg.startswith("Invalid \\escape"):
        return 1
    if error.msg.startswith("Illegal trailing comma"):
        rest = text[error.pos + 1 :]
        return 1 + len(rest) - len(rest.lstrip(SPACE))
    return 0


def _value_error(text: str, at: int) -> str:
    """No value begins here, or one began (true, false, null, -) and broke off."""
    if text[at] == "-":
        rest = text[at + 1 :]
        return f"invalid character {_quoted(rest[0])} in numeric literal" if rest else "unexpected EOF"
    for literal in ("true", "false", "null"):
        if text[at] != literal[0]:
            continue
        good = next(n for n in range(1, 6) if text[at : at + n] != literal[:n]) - 1
        if at + good >= len(text):
            return "unexpected EOF"
        found, wanted = _quoted(text[at + good]), _quoted(literal[good])
        return f"invalid character {found} in literal {literal} (expecting {wanted})"
    return f"invalid character {_quoted(text[at])} looking for beginning of value"


def _delimiter_error(text: str, at: int) -> str:
    """Something other than a comma follows a value; a number that broke off looks like that to Python."""
    if text[at] == "." and text[at - 1].isdigit():
        rest = text[at + 1 :]
        if not rest:
            return "unexpected EOF"
        return f"invalid character {_quoted(rest[0])} after decimal point in numeric literal"
    inside = "array element" if _innermost(text[:at]) == "[" else "object key:value pair"
    return f"invalid character {_quoted(text[at])} after {inside}"


def _innermost(text: str) -> str:
    """The bracket that is still open at the end of `text`."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text, flags=re.DOTALL)
    opened: list[str] = []
    for char in bare:
        if char in "[{":
            opened.append(char)
        elif char in "]}" and opened:
            opened.pop()
    return opened[-1] if opened else ""


def _quoted(char: str) -> str:
    """A character as Go quotes it in an error."""
    if char == "'":
        return "'\\''"
    if char == '"':
        return "'\"'"
    return "'" + char.encode("unicode_escape").decode() + "'" if ord(char) < 0x80 else f"'{char}'"
