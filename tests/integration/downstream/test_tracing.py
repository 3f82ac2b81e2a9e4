"""Spans as they leave the process: by file and by OTLP/gRPC, and never at a call's expense."""

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from protos.downstream.v1 import payment_pb2

TIMEOUT_S = 20.0
PARENT_ID = "b7ad6b7169203331"
SAMPLED = "01"
UNSAMPLED = "00"
SERVER = 2
ERROR = 2


class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that keeps what it gets."""

    def __init__(self) -> None:
        self.exports: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.exports.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def sink() -> Iterator[Sink]:
    collector = Sink()
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
        collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"  # type: ignore[attr-defined]
        server.start()
        yield collector
        server.stop(None).wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def traced(start_module_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service that writes a trace file and every log line, and the file."""
    trace_file = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    return start_module_service("--trace-file", str(trace_file), "--log-level", "debug"), trace_file


@pytest.fixture
def trace_id() -> str:
    """A trace of the test's own."""
    return uuid.uuid4().hex


def traceparent(trace_id: str, flags: str = SAMPLED) -> tuple[str, str]:
    return ("traceparent", f"00-{trace_id}-{PARENT_ID}-{flags}")


def spans_in(path: Path) -> list[dict[str, Any]]:
    # The last line may still be on its way to the disk.
    whole_lines = path.read_text().rpartition("\n")[0].splitlines()
    return [
        {**span, "resource": attributes_of(resource["resource"]), "attributes": attributes_of(span)}
        for line in whole_lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def attributes_of(owner: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in owner["attributes"]}


async def span_of(trace_id: str, path: Path) -> dict[str, Any]:
    """Wait for the one span of a trace to be exported."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = [span for span in spans_in(path) if span["traceId"] == trace_id]
            if found:
                assert len(found) == 1
                return found[0]
            await asyncio.sleep(0.05)


async def test_every_call_has_one_server_span_joined_to_its_caller(
    traced: Any, connect: Any, purchase: Any, trace_id: str
) -> None:
    service, trace_file = traced
    async with connect(service) as stubs:
        call = stubs.payments.Charge(purchase(), metadata=[traceparent(trace_id)], timeout=TIMEOUT_S)
        sequence = (await call).charge.sequence
    span = await span_of(trace_id, trace_file)
    assert span["parentSpanId"] == PARENT_ID
    assert (span["name"], span["kind"]) == ("downstream.v1.PaymentService/Charge", SERVER)
    assert span["attributes"] == {
        "rpc.system.name": "grpc",
        "rpc.method": "downstream.v1.PaymentService/Charge",
        "rpc.response.status_code": "OK",
        "downstream.ledger.sequence": str(sequence),
    }
    assert span["resource"]["service.name"] == "downstream"
    assert int(span["endTimeUnixNano"]) > int(span["startTimeUnixNano"])


@pytest.mark.parametrize(
    ("kind", "code", "is_error"),
    [
        ({"failure": {"code": 14}}, "UNAVAILABLE", True),
        ({"failure": {"code": 13}}, "INTERNAL", True),
        ({"failure": {"code": 5}}, "NOT_FOUND", False),
        ({"failure": {"code": 8}}, "RESOURCE_EXHAUSTED", False),
        ({"hang": {}}, "DEADLINE_EXCEEDED", True),
    ],
)
async def test_a_fault_is_in_the_span_and_only_the_servers_own_errors_are_errors(  # noqa: PLR0917 (fixtures)
    traced: Any, connect: Any, purchase: Any, trace_id: str, kind: dict[str, Any], code: str, is_error: bool
) -> None:
    service, trace_file = traced
    fault = ("fault", json.dumps({"name": "f", **kind}))
    async with connect(service) as stubs:
        with pytest.raises(grpc.aio.AioRpcError):
            await stubs.payments.Charge(purchase(), metadata=[traceparent(trace_id), fault], timeout=1.0)
    span = await span_of(trace_id, trace_file)
    assert span["attributes"]["downstream.fault"] == "f"
    assert span["attributes"]["rpc.response.status_code"] == code
    assert span["attributes"]["error.type"] == code
    assert (span["status"].get("code") == ERROR) is is_error


async def test_a_caller_that_cancels_is_no_error(traced: Any, connect: Any, trace_id: str) -> None:
    service, trace_file = traced
    async with connect(service) as stubs:
        request = payment_pb2.WatchChargesRequest(synthetic=True)
        watch = stubs.payments.WatchCharges(request, metadata=[traceparent(trace_id)])
        await watch.read()
        watch.cancel()
    span = await span_of(trace_id, trace_file)
    assert span["attributes"]["rpc.response.status_code"] == "CANCELLED"
    assert span["status"].get("code", 0) == 0


async def test_an_unsampled_call_leaves_no_span_and_a_call_without_a_trace_is_a_root(
    traced: Any, connect: Any, purchase: Any, trace_id: str
) -> None:
    service, trace_file = traced
    marked = ("fault", json.dumps({"name": trace_id, "latency": {"fixed": "0s"}}))
    last = uuid.uuid4().hex
    async with connect(service) as stubs:
        for metadata in ([traceparent(trace_id, UNSAMPLED), marked], [marked], [traceparent(last)]):
            await stubs.payments.Charge(purchase(), metadata=metadata, timeout=TIMEOUT_S)
    # Spans are exported in order: with the last one, all are there.
    await span_of(last, trace_file)
    (root,) = [
        span for span in spans_in(trace_file) if span["attributes"].get("downstream.fault") == trace_id
    ]
    assert root["traceId"] != trace_id
    assert not root.get("parentSpanId")


async def test_a_log_line_of_a_call_bears_its_trace(
    traced: Any, connect: Any, purchase: Any, trace_id: str
) -> None:
    service, _ = traced
    async with connect(service) as stubs:
        metadata = [traceparent(trace_id), ("fault", '{"latency": {"fixed": "0.001s"}}')]
        await stubs.payments.Charge(purchase(), metadata=metadata, timeout=TIMEOUT_S)
    (line,) = [line for line in service.log() if line.get("trace_id") == trace_id]
    assert (line["event"], line["fault"]) == ("fault", ["latency"])


async def test_spans_reach_a_collector(
    start_service: Any, connect: Any, purchase: Any, sink: Any, trace_id: str
) -> None:
    service = start_service(environment={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"})
    async with connect(service) as stubs:
        await stubs.payments.Charge(purchase(), metadata=[traceparent(trace_id)], timeout=TIMEOUT_S)
    assert service.terminate() == 0
    (export,) = sink.exports
    (span,) = export.resource_spans[0].scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace_id, PARENT_ID)


async def test_a_collector_that_is_down_delays_neither_calls_nor_the_end(
    start_service: Any, connect: Any, purchase: Any
) -> None:
    service = start_service(environment={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    slowest_s = 0.0
    async with connect(service) as stubs:
        for _ in range(200):
            start_s = time.monotonic()
            await stubs.charge(purchase())
            slowest_s = max(slowest_s, time.monotonic() - start_s)
    start_s = time.monotonic()
    assert service.terminate() == 0
    print(f"slowest call {slowest_s:.3f} s, end after {time.monotonic() - start_s:.2f} s")
    # An export that calls had to wait for would take its two seconds.
    assert slowest_s < 1.5
    assert time.monotonic() - start_s < 8.0
