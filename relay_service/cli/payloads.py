"""Messages as JSON, whatever types their payloads have.

Protobuf's own JSON has no form for an `Any` of a type that is not known where it is printed, and the relay
and its command line know no types but those that reflection tells. Such a payload is printed as
``{"@type": …, "base64": …}``; exports have this form always, since a payload that went through JSON fields
might come back as other bytes.
"""

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from protos.relay.v1 import dead_letter_pb2

Path = tuple[str, ...]


def as_fields(message: Message, known: DescriptorPool | None = None) -> dict[str, Any]:
    """A message's fields; its payloads by their own fields where ``known`` has their types."""
    bare = type(message)()
    bare.CopyFrom(message)
    payloads = list(_taken_out(bare, ()))
    fields: dict[str, Any] = MessageToDict(
        bare, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for (*path, name), payload in payloads:
        holder = fields
        for step in path:
            holder = holder[step]
        holder[name] = payload_fields(payload, known)
    return fields


def payload_fields(payload: any_pb2.Any, known: DescriptorPool | None) -> dict[str, Any]:
    """One payload."""
    head = {"@type": payload.type_url} if payload.type_url else {}
    if known is not None:
        with contextlib.suppress(KeyError, DecodeError):
            kind = GetMessageClass(known.FindMessageTypeByName(payload.type_url.rpartition("/")[2]))
            shown: Any = MessageToDict(
                kind.FromString(payload.value), preserving_proto_field_name=True, descriptor_pool=known
            )
            # A well-known type (a string's wrapper, say) is no object in JSON.
            return head | (shown if isinstance(shown, dict) else {"value": shown})
    return head | {"base64": base64.b64encode(payload.value).decode()}


def letter_of_line(line: str) -> dead_letter_pb2.DeadLetter:
    """An exported letter. Raises ValueError that says what is wrong with it."""
    fields = json.loads(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("work"), dict):
        raise ValueError("it has no work")  # noqa: TRY004 (a fault of the text, as the others are)
    work = dict(fields["work"])
    request = work.pop("request", None)
    try:
        letter = ParseDict({**fields, "work": work}, dead_letter_pb2.DeadLetter())
    except ParseError as error:
        raise ValueError(str(error)) from error
    letter.work.request.CopyFrom(_payload_of(request))
    return letter


def _payload_of(fields: Any) -> any_pb2.Any:
    encoded = fields.get("base64") if isinstance(fields, dict) else None
    if not isinstance(encoded, str):
        raise ValueError("work.request has no base64, the request's bytes as an export has them")  # noqa: TRY004 (see above)
    try:
        value = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"work.request.base64: {error}") from error
    return any_pb2.Any(type_url=str(fields.get("@type", "")), value=value)


def _taken_out(message: Message, path: Path) -> Iterator[tuple[Path, any_pb2.Any]]:
    """The payloads of a message, which has them no more."""
    for field, value in message.ListFields():
        if field.is_repeated or field.message_type is None:
            continue
        where = (*path, field.name)
        if field.message_type.full_name == any_pb2.Any.DESCRIPTOR.full_name:
            payload = any_pb2.Any()
            payload.CopyFrom(value)
            message.ClearField(field.name)
            yield where, payload
        else:
            yield from _taken_out(value, where)


def as_text(payload: any_pb2.Any, known: DescriptorPool | None) -> str:
    """One payload in a line."""
    return json.dumps(payload_fields(payload, known), ensure_ascii=False)
