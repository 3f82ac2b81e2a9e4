"""A gRPC client for methods that are only known by name: descriptors by reflection, messages as JSON."""

import base64
import binascii
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2  # noqa: F401 (its messages are found by name when details are shown)
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2  # noqa: F401 (known without reflection, as no server lists it reliably)

from relay_service.control.channel import open_channel
from relay_service.control.descriptor_set import DescriptorSet, resolve
from relay_service.control.reflection_client import (
    ReflectionLimits,
    ReflectionNotOfferedError,
    UpstreamUnreachableError,
    learn,
)
from relay_service.core.policy import UpstreamTls

RECEIVE_BYTES_MAX = 64 * 1024 * 1024
REFLECTION_TIMEOUT_MAX_S = 5.0

Metadata = tuple[tuple[str, str], ...]
_HEADER = re.compile(r"(?P<name>[0-9a-z_.-]+)\s*:\s*(?P<value>[\x20-\x7e]*)", re.ASCII)


class UnusableCallError(Exception):
    """The call cannot be made as it was asked for; the text says what to change."""


class UnreachableError(Exception):
    """Nobody answered at the address."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call to make."""

    target: str
    method: str
    """``package.Service/Method``."""
    request_json: str
    metadata: tuple[tuple[str, str | bytes], ...]
    timeout_s: float
    tls: UpstreamTls | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the call ended; ``details`` are the error details, one text each."""

    code: str
    message: str
    initial_metadata: Metadata
    trailers: Metadata
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Method:
    """A method that was found, and the pool its messages live in."""

    descriptor: MethodDescriptor
    pool: DescriptorPool

    def parse(self, json_value: Any) -> bytes:
        kind = message_factory.GetMessageClass(self.descriptor.input_type)
        return json_format.ParseDict(json_value, kind(), descriptor_pool=self.pool).SerializeToString()

    def show(self, response: bytes) -> str:
        kind = message_factory.GetMessageClass(self.descriptor.output_type)
        return _to_json(kind.FromString(response), self.pool)


def parse_header(text: str) -> tuple[str, str | bytes]:
    """``name: value`` as metadata; the value of a ``-bin`` name is base64.

    Raises `UnusableCallError`.
    """
    match = _HEADER.fullmatch(text.strip())
    if match is None:
        raise UnusableCallError(f"--header: got {text!r}; must be name:value, the name in lower case")
    if not match["name"].endswith("-bin"):
        return match["name"], match["value"]
    try:
        return match["name"], base64.b64decode(
            match["value"] + "=" * (-len(match["value"]) % 4), validate=True
        )
    except binascii.Error as error:
        raise UnusableCallError(f"--header: the value of {match['name']} must be base64: {error}") from error


async def make_call(wanted: Wanted, show: Callable[[str], None]) -> Outcome:
    """Make the call, hand each response to ``show`` as JSON, and say how it ended.

    Ends within the reflection's time and ``wanted.timeout_s``. Raises `UnusableCallError` or
    `UnreachableError` when it comes to no call.
    """
    try:
        channel = open_channel(wanted.target, receive_bytes_max=RECEIVE_BYTES_MAX, tls=wanted.tls)
    except OSError as error:
        raise UnusableCallError(f"{error.filename} cannot be read: {error.strerror}") from error
    async with channel:
        method = _find(await _descriptors(channel, wanted), wanted.method)
        requests = _requests(method, wanted.request_json)
        return await _perform(channel, wanted, method, requests, show)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request message and the full name of its type."""

    type_name: str
    message: bytes


async def encode(target: str, method: str, requests_json: Sequence[str]) -> list[Encoded]:
    """Requests of a method, one each, from JSON to bytes. Raises `UnusableCallError`, which says which
    of several cannot be used, or `UnreachableError`."""
    wanted = Wanted(target, method, "{}", (), REFLECTION_TIMEOUT_MAX_S)
    async with grpc.aio.insecure_channel(target) as channel:
        found = _find(await _descriptors(channel, wanted), method)
    if found.descriptor.client_streaming or found.descriptor.server_streaming:
        raise UnusableCallError(f"{method} is a streaming method; one message each way is needed")
    type_name = found.descriptor.input_type.full_name
    encoded = []
    for number, text in enumerate(requests_json, start=1):
        try:
            (message,) = _requests(found, text)
        except UnusableCallError as error:
            if len(requests_json) == 1:
                raise
            raise UnusableCallError(f"request {number}: {error}") from error
        encoded.append(Encoded(type_name, message))
    return encoded


async def types_at(target: str) -> DescriptorPool | None:
    """The types that the server at ``target`` tells of; None when it tells of none."""
    async with grpc.aio.insecure_channel(target) as channel:
        try:
            return _pool_of(await offered(channel))
        except (UpstreamUnreachableError, ReflectionNotOfferedError):
            return None


async def offered(channel: grpc.aio.Channel, timeout_s: float = REFLECTION_TIMEOUT_MAX_S) -> DescriptorSet:
    """What the server tells of by reflection. Raises as `relay_service.control.reflection_client.learn`."""
    learned = await learn(channel, ReflectionLimits(timeout_s=timeout_s))
    return resolve(learned.services, learned.files)


async def _descriptors(channel: grpc.aio.Channel, wanted: Wanted) -> DescriptorPool:
    """The server's descriptors; our own where it tells of none."""
    service = wanted.method.partition("/")[0]
    try:
        known = await offered(channel, min(REFLECTION_TIMEOUT_MAX_S, wanted.timeout_s))
    except UpstreamUnreachableError as error:
        raise UnreachableError(f"cannot reach {wanted.target}: {error}. Is it running?") from error
    except ReflectionNotOfferedError as error:
        if _is_known_here(service):
            return descriptor_pool.Default()
        raise UnusableCallError(
            f"{wanted.target} offers no reflection, so {service} is unknown: {error}"
        ) from error
    if service not in known.services and _is_known_here(service):
        return descriptor_pool.Default()
    return _pool_of(known)


def _pool_of(known: DescriptorSet) -> DescriptorPool:
    pool = DescriptorPool()
    for serialized in known.files.values():
        pool.AddSerializedFile(serialized)
    return pool


def _is_known_here(service: str) -> bool:
    try:
        descriptor_pool.Default().FindServiceByName(service)
    except KeyError:
        return False
    return True


def _find(pool: DescriptorPool, full_name: str) -> _Method:
    service_name, _, name = full_name.partition("/")
    try:
        service = pool.FindServiceByName(service_name)
    except KeyError:
        raise UnusableCallError(
            f"no service {service_name!r} at that address; methods are written package.Service/Method"
        ) from None
    method = service.methods_by_name.get(name)
    if method is None:
        names = ", ".join(service.methods_by_name)
        raise UnusableCallError(f"{service_name} has no method {name!r}; it has {names}")
    return _Method(method, pool)


def _requests(method: _Method, text: str) -> list[bytes]:
    """The request messages, serialised: what cannot be must be found before the call is made."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UnusableCallError(f"the request is not JSON: {error}") from error
    if isinstance(given, list) and not method.descriptor.client_streaming:
        raise UnusableCallError(f"{method.descriptor.name} takes one message, not a list")
    messages = given if isinstance(given, list) else [given]
    try:
        return [method.parse(message) for message in messages]
    except json_format.ParseError as error:
        kind = method.descriptor.input_type.full_name
        raise UnusableCallError(f"the request is no {kind}: {error}") from error


async def _perform(
    channel: grpc.aio.Channel,
    wanted: Wanted,
    method: _Method,
    requests: Sequence[bytes],
    show: Callable[[str], None],
) -> Outcome:
    # On the wire every kind of call is a stream each way, so one path serves all four.
    start: grpc.aio.StreamStreamMultiCallable[Any, Any] = channel.stream_stream(f"/{wanted.method}")
    call = start(_each(requests), timeout=wanted.timeout_s, metadata=grpc.aio.Metadata(*wanted.metadata))
    # The call itself says how it ended, below.
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for response in call:
            try:
                show(method.show(response))
            except DecodeError as error:
                kind = method.descriptor.output_type.full_name
                raise UnusableCallError(f"the response is no {kind}: {error}") from error
    return await _outcome(call, method.pool)


async def _each(messages: Sequence[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def _outcome(call: "grpc.aio.StreamStreamCall[Any, Any]", pool: DescriptorPool) -> Outcome:
    trailers = await call.trailing_metadata()
    packed = next((value for name, value in trailers if name == "grpc-status-details-bin"), None)
    return Outcome(
        code=(await call.code()).name,
        message=await call.details() or "",
        initial_metadata=_readable(await call.initial_metadata()),
        trailers=_readable(trailers),
        details=tuple(_details(packed, pool)) if isinstance(packed, bytes) else (),
    )


def _readable(metadata: grpc.aio.Metadata) -> Metadata:
    return tuple(
        (name, value if isinstance(value, str) else base64.b64encode(value).decode())
        for name, value in metadata
    )


def _details(serialized: bytes, pool: DescriptorPool) -> list[str]:
    try:
        status = Status.FromString(serialized)
    except DecodeError:
        return ["error details that are not readable"]
    return [_detail(packed, pool) for packed in status.details]


def _detail(packed: Any, pool: DescriptorPool) -> str:
    """``ErrorInfo {"reason": …}``: the error model's types are known, others as far as reflection tells."""
    name = packed.type_url.rpartition("/")[2]
    for known in (descriptor_pool.Default(), pool):
        try:
            kind = message_factory.GetMessageClass(known.FindMessageTypeByName(name))
            text = _to_json(kind.FromString(packed.value), known, indent=None)
        except (KeyError, DecodeError):
            continue
        return f"{name.rpartition('.')[2]} {text}"
    return f"{name} ({len(packed.value)} bytes)"


def _to_json(message: Message, pool: DescriptorPool, *, indent: int | None = 2) -> str:
    return json_format.MessageToJson(message, descriptor_pool=pool, indent=indent, ensure_ascii=False)
