"""One SERVER span per call, joined to the caller's by W3C trace context; the only module that makes spans.

Written by hand because opentelemetry-instrumentation-grpc breaks cancellation in asyncio servers. Spans
leave through a bounded queue and a thread of their own: a collector that is down costs spans, never a
call's time.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    # Half of what the process would load, and needed only where spans are exported.
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

ATTR_SYSTEM: Final = "rpc.system.name"
ATTR_METHOD: Final = "rpc.method"
# The semantic conventions still move here: installed constants say this, their main branch `rpc.status_code`.
ATTR_STATUS: Final = "rpc.response.status_code"
ATTR_ERROR_TYPE: Final = "error.type"
ATTR_FAULT: Final = "downstream.fault"
ATTR_SEQUENCE: Final = "downstream.ledger.sequence"
ATTR_REPLAYED: Final = "downstream.ledger.replayed"

# The conventions for servers: the other codes are the caller's doing, and no error of this service.
SERVER_ERRORS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

ENDPOINT_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
TIMEOUT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_TIMEOUT"
EXPORT_TIMEOUT_S: Final = 2.0
SHUTDOWN_TIMEOUT_S: Final = 3.0
QUEUE_SIZE_SPANS: Final = 8_192
BATCH_SIZE_SPANS: Final = 512
EXPORT_INTERVAL_MS: Final = 500


class TelemetryError(Exception):
    """Telemetry cannot be set up as asked."""


@dataclass(frozen=True, slots=True)
class CallSpan:
    """The span of one call; what it is told is dropped when the call is not sampled."""

    span: Span

    def struck(self, names: Sequence[str]) -> None:
        """Say which faults struck."""
        self.span.set_attribute(ATTR_FAULT, ",".join(names))

    def posted(self, sequence: int) -> None:
        """Say where in the ledger the effect is."""
        self.span.set_attribute(ATTR_SEQUENCE, sequence)

    def replayed(self) -> None:
        """Say that the effect was there before."""
        self.span.set_attribute(ATTR_REPLAYED, True)

    def end(self, code: grpc.StatusCode, message: str = "") -> None:
        """End the span with the status the caller got, or would have got had it stayed."""
        self.span.set_attribute(ATTR_STATUS, code.name)
        if code is not grpc.StatusCode.OK:
            self.span.set_attribute(ATTR_ERROR_TYPE, code.name)
        if code in SERVER_ERRORS:
            self.span.set_status(Status(StatusCode.ERROR, message))
        self.span.end()

    def ids(self) -> dict[str, str]:
        """Return trace and span id for a log line; empty when the call belongs to no trace."""
        context = self.span.get_span_context()
        if not context.is_valid:
            return {}
        return {
            "trace_id": trace.format_trace_id(context.trace_id),
            "span_id": trace.format_span_id(context.span_id),
        }


class Telemetry:
    """Makes spans and sees that they leave."""

    def __init__(self, exporters: "Sequence[SpanExporter]") -> None:
        """Export to all of these; with none, spans cost next to nothing and go nowhere."""
        self._propagator = TraceContextTextMapPropagator()
        self._provider = _provider_for(exporters) if exporters else None
        provider = self._provider or trace.NoOpTracerProvider()
        self._tracer = provider.get_tracer("downstream_service")

    def start(self, method: str, metadata: dict[str, str]) -> CallSpan:
        """Start the span of a call of ``method`` ("downstream.v1.PaymentService/Charge")."""
        parent = self._propagator.extract(metadata)
        return CallSpan(
            self._tracer.start_span(
                method,
                context=parent,
                kind=SpanKind.SERVER,
                attributes={ATTR_SYSTEM: "grpc", ATTR_METHOD: method},
            )
        )

    def shut_down(self) -> None:
        """Export what is left, for at most ``SHUTDOWN_TIMEOUT_S``; blocks."""
        if self._provider is None:
            return
        # The exporters' own bounds add up to half a minute when the collector is down.
        last_export = threading.Thread(target=self._provider.shutdown, name="telemetry-shutdown", daemon=True)
        last_export.start()
        last_export.join(SHUTDOWN_TIMEOUT_S)


def exporters_for(trace_file: Path | None) -> "list[SpanExporter]":
    """Return an exporter for OTLP/gRPC if the environment names an endpoint, and one for the file, if any.

    Raises ``TelemetryError`` when the file cannot be written.
    """
    exporters: list[SpanExporter] = []
    if any(os.environ.get(variable) for variable in ENDPOINT_VARIABLES):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        timeout_s = None if os.environ.get(TIMEOUT_VARIABLE) else EXPORT_TIMEOUT_S
        exporters.append(OTLPSpanExporter(timeout=timeout_s))
    if trace_file is not None:
        from opentelemetry.exporter.otlp.json.file import FileSpanExporter

        try:
            exporters.append(FileSpanExporter(str(trace_file)))
        except OSError as error:
            raise TelemetryError(f"cannot write the trace file {trace_file}: {error.strerror}") from error
    return exporters


def _provider_for(exporters: "Sequence[SpanExporter]") -> "TracerProvider":
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Without a sampler of ours the SDK follows the caller's decision, or OTEL_TRACES_SAMPLER.
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "downstream"}), shutdown_on_exit=False)
    for exporter in exporters:
        processor = BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUE_SIZE_SPANS,
            schedule_delay_millis=EXPORT_INTERVAL_MS,
            max_export_batch_size=BATCH_SIZE_SPANS,
        )
        provider.add_span_processor(processor)
    return provider
