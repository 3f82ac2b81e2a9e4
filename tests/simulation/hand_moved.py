"""A relay before an upstream that the test moves by hand, step by step."""

import base64
from collections.abc import Mapping
from random import Random
from typing import Any

from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from world import Catalog, Clock, Observer, Reply

from relay_service.core.evidence import Delivery
from relay_service.core.policy import (
    AdmissionPolicy,
    BreakerPolicy,
    MethodPolicy,
    RelayPolicy,
    RetryPolicy,
    Route,
    UpstreamPolicy,
)
from relay_service.core.status import Code
from relay_service.envelope import EnvelopeOpener
from relay_service.ports import AttemptEnd, AttemptSink, CallHead, Headers
from relay_service.relay import Relay

UNAVAILABLE = AttemptEnd(Delivery.ANSWERED, Code.UNAVAILABLE, "busy")


OK = AttemptEnd(Delivery.ANSWERED, Code.OK, "", ((b"upstream-trailer", b"1"),))


class HandAttempt:
    """An attempt that the test answers itself."""

    peer = "upstream:1"

    def __init__(self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> None:
        self.method, self.metadata, self.timeout_s, self.sink = method, list(metadata), timeout_s, sink
        self.data = b""
        self.ended = False
        self.cancelled = False
        self.credit_bytes = 0
        self.buffered_bytes = 0

    def send_data(self, data: bytes, *, end: bool) -> None:
        assert not self.ended
        self.data += data
        self.ended = end

    def cancel(self) -> Delivery:
        self.cancelled = True
        return Delivery.UNANSWERED

    def consumed(self, size_bytes: int) -> None:
        self.credit_bytes += size_bytes

    def end(self, end: AttemptEnd) -> None:
        self.sink.on_end(self, end)

    def respond(self, data: bytes = b"\0\0\0\0\0") -> None:
        self.sink.on_response_headers(self, ())
        self.sink.on_response_data(self, data)


class HandUpstream:
    name = "upstream"

    def __init__(self) -> None:
        self.attempts: list[HandAttempt] = []

    def start(
        self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink
    ) -> HandAttempt:
        self.attempts.append(HandAttempt(method, metadata, timeout_s, sink))
        return self.attempts[-1]

    @property
    def last(self) -> HandAttempt:
        return self.attempts[-1]


class Bench:
    """A relay, one hand-moved upstream, and callers."""

    def __init__(
        self,
        method: MethodPolicy | None = None,
        *,
        workers: int = 5,
        queue_capacity: int = 5,
        max_streams: int = 5,
        own_services: Mapping[str, Any] | None = None,
        routes: tuple[Route, ...] = (),
        breakers: Mapping[str, BreakerPolicy] | None = None,
    ) -> None:
        self.clock = Clock()
        self.upstream = HandUpstream()
        self.observer = Observer()
        self.policy = RelayPolicy(
            "test",
            {"upstream": UpstreamPolicy(target="127.0.0.1:1")},
            {"": method or MethodPolicy(retry=RetryPolicy())},
            routes,
            AdmissionPolicy(queue_capacity=queue_capacity, workers=workers, max_streams=max_streams),
            None,
            breakers=breakers or {},
        )
        self.relay = Relay(
            self.policy,
            {"upstream": self.upstream},
            Catalog(),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=Random(1),
            own_services=own_services or {},
        )
        self.opener = EnvelopeOpener(self.relay, Catalog())

    def call(
        self, method: str = "t.S/Unary", metadata: Headers = (), timeout_s: float | None = None
    ) -> tuple[Any, Reply]:
        reply = Reply(self.clock)
        head = CallHead(method, metadata, timeout_s, self.clock.now, "caller:1")
        return self.opener.on_call(head, reply), reply

    def refusal(
        self, method: str = "t.S/Unary", metadata: Headers = (), timeout_s: float | None = None
    ) -> Reply:
        call, reply = self.call(method, metadata, timeout_s)
        assert call is None, "the call was taken"
        return reply


def details_of(reply: Reply) -> list[Any]:
    packed = reply.trailers[b"grpc-status-details-bin"]
    status = Status.FromString(base64.b64decode(packed + b"=" * (-len(packed) % 4)))
    assert (status.code, status.message) == (reply.code, reply.message)
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in (ErrorInfo, RetryInfo, QuotaFailure)}
    return [kinds[detail.TypeName()].FromString(detail.value) for detail in status.details]


def reason_of(reply: Reply) -> str:
    return next(detail.reason for detail in details_of(reply) if isinstance(detail, ErrorInfo))
