"""What the telemetry tests share: a real OTLP sink, one view of spans from anywhere, and calls to tell."""

import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan

from relay_service.core.evidence import Delivery, Evidence
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.ports import AttemptEnd, CallHead, CallObserver
from relay_service.telemetry.observer import Telemetry
from relay_service.telemetry.settings import TelemetrySettings

METHOD = "downstream.v1.PaymentService/Charge"
CALLER_TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN = "b7ad6b7169203331"
STATUS = {0: "UNSET", 1: "OK", 2: "ERROR"}


@dataclass(frozen=True)
class SeenSpan:
    """A span as a backend gets it."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    status: str
    message: str
    start_ns: int
    end_ns: int
    trace_state: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: tuple[tuple[str, str], ...] = ()
    """Trace and span ids."""


def _seen_in_proto(request: ExportTraceServiceRequest) -> Iterator[SeenSpan]:
    def plain(pairs: Any) -> dict[str, Any]:
        return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}

    for resource_spans in request.resource_spans:
        resource = plain(resource_spans.resource.attributes)
        for span in (span for scope in resource_spans.scope_spans for span in scope.spans):
            yield SeenSpan(
                span.name,
                ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                STATUS[span.status.code],
                span.status.message,
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                span.trace_state,
                plain(span.attributes),
                resource,
                tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
            )


def _seen_in_json(batch: dict[str, Any]) -> Iterator[SeenSpan]:
    def plain(pairs: list[dict[str, Any]]) -> dict[str, Any]:
        values = ((pair["key"], *pair["value"].items()) for pair in pairs)
        return {key: int(value) if kind == "intValue" else value for key, (kind, value) in values}

    for resource_spans in batch["resourceSpans"]:
        resource = plain(resource_spans["resource"]["attributes"])
        for span in (span for scope in resource_spans["scopeSpans"] for span in scope["spans"]):
            yield SeenSpan(
                span["name"],
                ProtoSpan.SpanKind.Name(span["kind"]).removeprefix("SPAN_KIND_"),
                span["traceId"],
                span["spanId"],
                span.get("parentSpanId", ""),
                STATUS[span["status"].get("code", 0)],
                span["status"].get("message", ""),
                int(span["startTimeUnixNano"]),
                int(span["endTimeUnixNano"]),
                span.get("traceState", ""),
                plain(span["attributes"]),
                resource,
            )


class OtlpSink(TraceServiceServicer):
    """A real OTLP/gRPC backend. `gate`, once cleared, holds every export until it is set again."""

    def __init__(self) -> None:
        self.spans: list[SeenSpan] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self.asked.set()
        if not self.gate.wait(timeout=20):
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the test never opened the gate")
        self.spans.extend(_seen_in_proto(request))
        return ExportTraceServiceResponse()

    def close(self) -> None:
        self.gate.set()
        assert self._server.stop(grace=None).wait(timeout=5)


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    sink = OtlpSink()
    yield sink
    sink.close()


@dataclass
class WallClock:
    """A wall clock that can be stepped; monotonic time stays what the test says."""

    offset_ns: int = 1_700_000_000 * 10**9
    reads: int = 0

    def __call__(self) -> int:
        self.reads += 1
        return self.offset_ns


@dataclass
class LogBook:
    """The lines that would have been logged."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def logger(self) -> Any:
        def keep(_logger: object, method: str, event: dict[str, Any]) -> dict[str, Any]:
            self.lines.append({**event, "level": method})
            raise structlog.DropEvent

        return structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[keep],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )


@pytest.fixture
def wall() -> WallClock:
    return WallClock()


@pytest.fixture
def log_book() -> LogBook:
    return LogBook()


MakeTelemetry = Callable[..., Telemetry]


@pytest.fixture
def make_telemetry(wall: WallClock, log_book: LogBook) -> Iterator[MakeTelemetry]:
    """Builds and starts a `Telemetry` with these settings, and shuts all of them down in the end."""
    made: list[Telemetry] = []

    def make(**settings: Any) -> Telemetry:
        seed = settings.pop("seed", 7)
        print(f"seed {seed}")
        telemetry = Telemetry(
            TelemetrySettings(**{"sample_ratio": 1.0, "batch_delay_s": 0.05, **settings}),
            rng=random.Random(seed),
            wall_offset_ns=wall,
            logger=log_book.logger,
        )
        made.append(telemetry)
        telemetry.start()
        return telemetry

    yield make
    for telemetry in made:
        telemetry.shutdown()


OK_END = AttemptEnd(Delivery.ANSWERED, Code.OK, "")
UNAVAILABLE_END = AttemptEnd(Delivery.ANSWERED, Code.UNAVAILABLE, "try again")
OK = Verdict(Code.OK, "", Origin.UPSTREAM, Fate.OK, None, Evidence.DEFINITE, 1)
QUEUE_FULL = Verdict(
    Code.RESOURCE_EXHAUSTED, "the queue is full", Origin.RELAY, Fate.REFUSED, Reason.QUEUE_FULL
)


class Calls:
    """Tells the observer of whole calls, with monotonic times that begin at 100 s."""

    METHOD, CALLER_TRACE, CALLER_SPAN = METHOD, CALLER_TRACE, CALLER_SPAN
    OK, QUEUE_FULL, OK_END, UNAVAILABLE_END = OK, QUEUE_FULL, OK_END, UNAVAILABLE_END

    @staticmethod
    def head(*metadata: tuple[bytes, bytes], method: str = METHOD, received_at: float = 100.0) -> CallHead:
        return CallHead(method, metadata, None, received_at, "127.0.0.1:40000")

    @staticmethod
    def traceparent(flags: str) -> tuple[bytes, bytes]:
        return b"traceparent", f"00-{CALLER_TRACE}-{CALLER_SPAN}-{flags}".encode()

    @staticmethod
    def succeed(telemetry: Telemetry, head: CallHead, now: float = 100.0) -> CallObserver:
        call = telemetry.call_started(head, now)
        call.attempt_started(1, "payments", now)
        call.attempt_ended(1, "127.0.0.1:50052", OK_END, Evidence.DEFINITE, now + 0.01)
        call.finished(OK, now + 0.01)
        return call

    @staticmethod
    def refuse(
        telemetry: Telemetry, head: CallHead, now: float = 100.0, verdict: Verdict = QUEUE_FULL
    ) -> CallObserver:
        call = telemetry.call_started(head, now)
        call.finished(verdict, now)
        return call

    @staticmethod
    def retried(telemetry: Telemetry, head: CallHead) -> list[tuple[tuple[bytes, bytes], ...]]:
        """A wait of 20 ms, an attempt that fails, another wait of 30 ms, one that succeeds."""
        call = telemetry.call_started(head, 100.001)
        call.queued(100.01)
        call.dequeued(100.03)
        sent = [tuple(call.attempt_started(1, "payments", 100.03))]
        call.attempt_ended(1, "127.0.0.1:50052", UNAVAILABLE_END, Evidence.REFUSED, 100.05)
        call.queued(100.1)
        call.dequeued(100.13)
        sent.append(tuple(call.attempt_started(2, "payments", 100.13)))
        call.attempt_ended(2, "127.0.0.1:50052", OK_END, Evidence.DEFINITE, 100.2)
        call.finished(replace(OK, attempts=2), 100.2)
        return sent

    @staticmethod
    def spans_in(path: Path) -> list[SeenSpan]:
        """What a file of OTLP JSON lines holds."""
        lines = path.read_text(encoding="utf-8").splitlines()
        return [span for line in lines for span in _seen_in_json(json.loads(line))]

    @staticmethod
    def only(spans: Sequence[SeenSpan], name: str, kind: str = "") -> SeenSpan:
        found = [span for span in spans if span.name == name and kind in ("", span.kind)]
        assert len(found) == 1, [span.name for span in spans]
        return found[0]


@pytest.fixture
def calls() -> Calls:
    return Calls()
