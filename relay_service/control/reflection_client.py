"""Learn what an upstream offers by the server reflection protocol, in one bounded conversation.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md. The protocol has two names
for the same messages; ``v1`` is asked first, then ``v1alpha``, which many servers still speak alone.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import google.protobuf.any_pb2
import google.protobuf.api_pb2
import google.protobuf.descriptor_pb2
import google.protobuf.duration_pb2
import google.protobuf.empty_pb2
import google.protobuf.field_mask_pb2
import google.protobuf.struct_pb2
import google.protobuf.timestamp_pb2
import google.protobuf.type_pb2
import google.protobuf.wrappers_pb2
import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from relay_service.control.descriptor_set import FAULTS_MAX, file_imports
from relay_service.control.names import FORWARDED_SERVICES, REFLECTION_V1, REFLECTION_V1ALPHA

_WELL_KNOWN = {
    module.DESCRIPTOR.name: module.DESCRIPTOR.serialized_pb
    for module in (
        google.protobuf.any_pb2,
        google.protobuf.api_pb2,
        google.protobuf.descriptor_pb2,
        google.protobuf.duration_pb2,
        google.protobuf.empty_pb2,
        google.protobuf.field_mask_pb2,
        google.protobuf.struct_pb2,
        google.protobuf.timestamp_pb2,
        google.protobuf.type_pb2,
        google.protobuf.wrappers_pb2,
    )
}
"""For upstreams that leave the files out which every protobuf runtime brings along."""

_TRY_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)
"""Codes that say nothing of whether the upstream offers reflection."""

_PIPELINED_REQUESTS = 16
"""Requests written before their answers are read: fewer round trips, far below any flow-control window."""

_END_WAIT_S = 1.0
"""How long the upstream may take to end the stream after everything was learned."""


@dataclass(frozen=True, slots=True)
class ReflectionLimits:
    """How much of an upstream's description is taken in before the relay has had enough."""

    timeout_s: float = 5.0
    services_max: int = 500
    files_max: int = 2_000
    size_bytes_max: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Learned:
    """What an upstream told: services by full name, serialised files by name, and what was wrong."""

    services: tuple[str, ...]
    files: Mapping[str, bytes]
    faults: tuple[str, ...]


class ReflectionError(Exception):
    """No description could be had; the text says why."""


class UpstreamUnreachableError(ReflectionError):
    """Nothing is known of the upstream: it is down, too slow, or busy. Ask again soon."""


class ReflectionNotOfferedError(ReflectionError):
    """The upstream answered, but with no reflection. Asking again soon would change nothing."""


async def learn(channel: grpc.aio.Channel, limits: ReflectionLimits) -> Learned:
    """Ask for every service and every file it needs.

    Ends within twice ``limits.timeout_s``. Raises `UpstreamUnreachableError` or
    `ReflectionNotOfferedError`. What exceeds the other limits is left out and named in the faults.
    """
    try:
        return await _learn_as(channel, REFLECTION_V1, limits)
    except ReflectionNotOfferedError:
        return await _learn_as(channel, REFLECTION_V1ALPHA, limits)


async def _learn_as(channel: grpc.aio.Channel, service: str, limits: ReflectionLimits) -> Learned:
    method: grpc.aio.StreamStreamMultiCallable[Any, Any] = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        # Parsed here and not by grpcio, which turns what it cannot parse into an error of its own making.
        response_deserializer=None,
    )
    call = method(timeout=limits.timeout_s)
    try:
        return await _Conversation(call, limits).run()
    except grpc.aio.AioRpcError as error:
        raise _failure(error.code(), error.details()) from error
    except asyncio.InvalidStateError as error:
        # What grpcio says to a write after the end of the call; the end itself says more.
        raise _failure(await call.code(), await call.details()) from error
    finally:
        call.cancel()


def _failure(code: grpc.StatusCode, details: str | None) -> ReflectionError:
    kind = UpstreamUnreachableError if code in _TRY_AGAIN else ReflectionNotOfferedError
    return kind(f"{code.name}: {details or 'no details'}")


class _Conversation:
    """One reflection stream: list, then a file for each service, then imports until none is missing.

    State: ``_files`` what was taken, ``_missing`` imports not yet asked for, ``_asked`` what was asked
    (so that nothing is asked twice and the conversation ends), ``_size_bytes``, ``_faults``.
    """

    def __init__(self, call: "grpc.aio.StreamStreamCall[Any, Any]", limits: ReflectionLimits) -> None:
        self._call = call
        self._limits = limits
        self._files: dict[str, bytes] = {}
        self._missing: dict[str, None] = {}
        self._asked: set[str] = set()
        self._size_bytes = 0
        self._faults: list[str] = []

    async def run(self) -> Learned:
        services = await self._list_services()
        await self._take_files(
            {service: ServerReflectionRequest(file_containing_symbol=service) for service in services}
        )
        while wanted := self._next_imports():
            await self._take_files({name: ServerReflectionRequest(file_by_filename=name) for name in wanted})
        await self._end()
        return Learned(tuple(services), self._files, tuple(self._faults))

    async def _end(self) -> None:
        # A stream that is cancelled instead would stand in the upstream's logs and traces as a failure.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_WAIT_S):
                await self._call.done_writing()
                await self._call.code()

    async def _list_services(self) -> list[str]:
        (response,) = await self._ask([ServerReflectionRequest(list_services="*")])
        if not response.HasField("list_services_response"):
            raise ReflectionNotOfferedError(f"no list of services: {_error_text(response)}")
        # The relay answers these itself, whatever the upstream makes of them.
        names = [s.name for s in response.list_services_response.service if s.name not in FORWARDED_SERVICES]
        return self._within(names, self._limits.services_max, "services")

    async def _take_files(self, requests: Mapping[str, ServerReflectionRequest]) -> None:
        for subject, response in zip(requests, await self._ask(requests.values()), strict=True):
            if response.HasField("file_descriptor_response"):
                for serialized in response.file_descriptor_response.file_descriptor_proto:
                    self._take_file(subject, serialized)
            elif subject in _WELL_KNOWN:
                self._take_file(subject, _WELL_KNOWN[subject])
            else:
                self._fault(f"{subject}: {_error_text(response)}")

    def _take_file(self, subject: str, serialized: bytes) -> None:
        try:
            name, imports = file_imports(serialized)
        except ValueError as error:
            self._fault(f"{subject}: {error}")
            return
        known = self._files.get(name)
        if known is not None:
            if known != serialized:
                self._fault(f"{name}: given twice, with different contents; the first is used")
            return
        if len(self._files) >= self._limits.files_max:
            self._fault(f"{name}: left out, more than {self._limits.files_max} files")
            return
        if self._size_bytes + len(serialized) > self._limits.size_bytes_max:
            self._fault(f"{name}: left out, more than {self._limits.size_bytes_max} bytes of files")
            return
        self._files[name] = serialized
        self._size_bytes += len(serialized)
        self._missing.update(dict.fromkeys(imports))

    def _next_imports(self) -> list[str]:
        wanted = [name for name in self._missing if name not in self._files and name not in self._asked]
        self._missing.clear()
        room = self._limits.files_max - len(self._files)
        wanted = self._within(wanted, room, "files")
        self._asked.update(wanted)
        return wanted

    def _within(self, names: list[str], limit: int, what: str) -> list[str]:
        if len(names) > limit:
            self._fault(f"{len(names) - limit} {what} left out, the limit is reached")
        return names[: max(limit, 0)]

    def _fault(self, text: str) -> None:
        if len(self._faults) < FAULTS_MAX:
            self._faults.append(text)

    async def _ask(self, requests: Iterable[ServerReflectionRequest]) -> list[ServerReflectionResponse]:
        waiting = list(requests)
        responses: list[ServerReflectionResponse] = []
        for start in range(0, len(waiting), _PIPELINED_REQUESTS):
            wave = waiting[start : start + _PIPELINED_REQUESTS]
            for request in wave:
                await self._call.write(request)
            responses.extend([await self._read() for _ in wave])
        return responses

    async def _read(self) -> ServerReflectionResponse:
        answer: Any = await self._call.read()
        if answer is grpc.aio.EOF:
            raise ReflectionNotOfferedError("the reflection stream ended before it had answered")
        try:
            return ServerReflectionResponse.FromString(answer)
        except DecodeError as error:
            raise ReflectionNotOfferedError(f"an answer that is no reflection message: {error}") from error


def _error_text(response: ServerReflectionResponse) -> str:
    kind = response.WhichOneof("message_response")
    if kind == "error_response":
        error = response.error_response
        return f"the upstream says {error.error_message!r} (code {error.error_code})"
    return f"the upstream answered with {kind or 'nothing'}"
