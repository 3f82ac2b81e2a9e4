"""A gRPC server that does what a call's plan says, and a client that does its part.

Both are stock grpcio (the synchronous one; its asyncio sibling is what the reference proxy is made of).
Nothing here knows of proxies: what server and client saw are values, to be compared by the tests.
"""

import hashlib
import itertools
import random
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection

from tests.conformance.plans import DEADLINE_S, Ending, Kind, Metadata, Plan

SERVICE = "conformance.Programmable"
BOUND_S = 20.0
"""For waits that end at once when all is well."""
CALL_ID = "x-call-id"
WORKERS = 64


def method_path(kind: Kind) -> str:
    """The path of the method of this kind."""
    return f"/{SERVICE}/{kind}"


def payload(place: int, size_bytes: int) -> bytes:
    """The content of the message at ``place``: half noise, half zeros, so that compression does something."""
    noise = random.Random(size_bytes * 31 + place).randbytes((size_bytes + 1) // 2)
    return noise + bytes(size_bytes - len(noise))


def digest(message: bytes) -> tuple[int, str]:
    """What is compared of a message, and short enough to be shown."""
    return len(message), hashlib.sha256(message).hexdigest()[:16]


# -- the server --------------------------------------------------------------------------------------------


@dataclass
class Served:
    """One call (or one attempt of it) as the server saw it."""

    method: str
    metadata: Metadata
    time_left_s: float | None
    requests: list[tuple[int, str]] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)
    """Set when all responses are sent and only the client can end the call."""
    over: threading.Event = field(default_factory=threading.Event)


class ProgrammableServer:
    """Serves plans. With reflection, so that a relay can learn which of its methods are unary."""

    def __init__(self) -> None:
        self._plans: dict[str, Plan] = {}
        self._served: dict[str, list[Served]] = {}
        self._arrived = threading.Condition()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(WORKERS),
            handlers=(_Handler(self),),
            options=[("grpc.so_reuseport", 0)],
        )
        reflection.enable_server_reflection((SERVICE, reflection.SERVICE_NAME), self._server, _descriptors())
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        """End all calls."""
        self._server.stop(0).wait(BOUND_S)

    def expect(self, call_id: str, plan: Plan) -> None:
        """Do this when the call with this id comes, however often."""
        self._plans[call_id] = plan
        self._served[call_id] = []

    def served(self, call_id: str) -> list[Served]:
        """What came under this id, in order; forgotten afterwards."""
        del self._plans[call_id]
        return self._served.pop(call_id)

    def first_served(self, call_id: str) -> Served:
        """Wait for the call to come."""
        with self._arrived:
            came = self._arrived.wait_for(lambda: self._served[call_id], BOUND_S)
        assert came, f"call {call_id} never reached the server"
        return self._served[call_id][0]

    def begin(self, method: str, context: grpc.ServicerContext) -> tuple[Plan, Served]:
        """Look up the plan and note the call."""
        metadata = tuple((name, value) for name, value in context.invocation_metadata())
        call_id = str(dict(metadata)[CALL_ID])
        seen = Served(method, metadata, context.time_remaining())
        with self._arrived:
            self._served[call_id].append(seen)
            self._arrived.notify_all()
        if not context.add_callback(seen.over.set):
            seen.over.set()
        return self._plans[call_id], seen


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: ProgrammableServer) -> None:
        self._server = server

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        service, _, name = handler_call_details.method[1:].partition("/")
        if service != SERVICE or name not in list(Kind):
            return None
        kind = Kind(name)

        def many(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            plan, seen = self._server.begin(handler_call_details.method, context)
            return _perform(plan, seen, requests, context)

        def one(requests: Iterator[bytes], context: Any) -> bytes:
            return next(many(requests, context), b"")

        match kind:
            case Kind.UNARY:
                return grpc.unary_unary_rpc_method_handler(
                    lambda request, context: one(iter([request]), context)
                )
            case Kind.COLLECT:
                return grpc.stream_unary_rpc_method_handler(one)
            case Kind.EXPAND:
                return grpc.unary_stream_rpc_method_handler(
                    lambda request, context: many(iter([request]), context)
                )
            case Kind.CHAT:
                return grpc.stream_stream_rpc_method_handler(many)


def _perform(
    plan: Plan, seen: Served, requests: Iterator[bytes], context: grpc.ServicerContext
) -> Iterator[bytes]:
    if plan.compress_responses:
        context.set_compression(grpc.Compression.Gzip)
    if plan.headers is not None:
        context.send_initial_metadata(plan.headers)
    responses = [payload(place, size) for place, size in enumerate(plan.responses)]
    if plan.lockstep:
        for request, response in zip(requests, responses, strict=False):
            seen.requests.append(digest(request))
            yield response
        seen.requests += [digest(request) for request in requests]
        responses = []
    else:
        seen.requests += [digest(request) for request in itertools.islice(requests, plan.requests_read)]
    if plan.ending is not Ending.STATUS:
        yield from responses
        seen.hanging.set()
        seen.over.wait(BOUND_S)
        return
    context.set_trailing_metadata(plan.trailers)
    if plan.code is not grpc.StatusCode.OK:
        yield from responses
        context.abort(plan.code, plan.message)
    context.set_details(plan.message)
    yield from responses


def _descriptors() -> DescriptorPool:
    """The service, described with messages that hold bytes; it does not look inside them itself."""
    file = descriptor_pb2.FileDescriptorProto(
        name="conformance.proto", package="conformance", syntax="proto3"
    )
    data = file.message_type.add(name="Payload").field.add(name="data", number=1)
    data.type, data.label = data.TYPE_BYTES, data.LABEL_OPTIONAL
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for kind in Kind:
        service.method.add(
            name=kind,
            input_type=".conformance.Payload",
            output_type=".conformance.Payload",
            client_streaming=kind.requests_stream,
            server_streaming=kind.responses_stream,
        )
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


# -- the client --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One call as the client saw it."""

    code: grpc.StatusCode
    message: str
    headers: Metadata
    responses: tuple[tuple[int, str], ...]
    trailers: Metadata


def call(channel: grpc.Channel, plan: Plan, call_id: str, server: ProgrammableServer) -> Outcome:
    """Do the client's part. ``server`` is asked only whether a call that is to be cancelled has come."""
    arrived = threading.Semaphore(0)
    requests = _requests(plan, arrived)
    options: dict[str, Any] = {
        "metadata": ((CALL_ID, call_id), *plan.metadata),
        "timeout": DEADLINE_S if plan.ending is Ending.DEADLINE else BOUND_S,
        "compression": grpc.Compression.Gzip if plan.compress_requests else grpc.Compression.NoCompression,
    }
    path = method_path(plan.kind)
    match plan.kind:
        case Kind.UNARY:
            rpc = channel.unary_unary(path).future(next(requests), **options)
        case Kind.COLLECT:
            rpc = channel.stream_unary(path).future(requests, **options)
        case Kind.EXPAND:
            rpc = channel.unary_stream(path)(next(requests), **options)
        case Kind.CHAT:
            rpc = channel.stream_stream(path)(requests, **options)
    responses: list[tuple[int, str]] = []
    try:
        if plan.kind.responses_stream:
            _read(rpc, plan, responses, arrived)
        if plan.ending is Ending.CANCEL:
            assert server.first_served(call_id).hanging.wait(BOUND_S), "the server never came to its end"
            rpc.cancel()
        if not plan.kind.responses_stream:
            responses.append(digest(rpc.result(BOUND_S)))
        else:
            _read(rpc, None, responses, arrived)
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass
    finally:
        arrived.release(len(plan.requests) + 1)
    return Outcome(
        rpc.code(),
        rpc.details() or "",
        _pairs(rpc.initial_metadata()),
        tuple(responses),
        _pairs(rpc.trailing_metadata()),
    )


def _read(rpc: Any, plan: Plan | None, into: list[tuple[int, str]], arrived: threading.Semaphore) -> None:
    """All responses; with a plan only those that come before its end."""
    for response in rpc if plan is None else itertools.islice(rpc, len(plan.responses)):
        into.append(digest(response))
        arrived.release()


def _requests(plan: Plan, arrived: threading.Semaphore) -> Iterator[bytes]:
    for place, size in enumerate(plan.requests):
        if plan.lockstep and place and not arrived.acquire(timeout=BOUND_S):
            return
        yield payload(place, size)


def _pairs(metadata: Any) -> Metadata:
    return tuple((name, value) for name, value in metadata or ())
