"""The client's side of every trace: a CLIENT span per sampled call, a trace id for every call.

A recorded span costs more CPU than the call itself may, so whether a call is traced is decided in the
plan; the others carry a trace id and an unset sampled flag (W3C Trace Context) and cost a draw.
"""

import random
from pathlib import Path
from types import TracebackType
from typing import Self

from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, StatusCode

CLIENT_SERVICE_NAME = "chaos-client"
STATUS_CODE_KEY = "rpc.response.status_code"
"""The key of the installed semantic conventions; a later release candidate calls it ``rpc.status_code``."""
_QUEUE_SPANS_MAX = 8192
_EXPORT_DELAY_MS = 500


class SeededIds(IdGenerator):
    """Trace and span ids from a seed, so that a replay has the ids of the run it repeats."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"{seed}/trace-ids")

    def generate_trace_id(self) -> int:
        """128 bits, never 0."""
        return self._rng.getrandbits(128) or 1

    def generate_span_id(self) -> int:
        """64 bits, never 0."""
        return self._rng.getrandbits(64) or 1


class CallTrace:
    """One call's place in its trace."""

    __slots__ = ("_span", "trace_id", "traceparent")

    def __init__(self, trace_id: int, span_id: int, span: Span | None) -> None:
        self.trace_id = f"{trace_id:032x}"
        self.traceparent = f"00-{self.trace_id}-{span_id:016x}-{0 if span is None else 1:02x}"
        self._span = span

    @property
    def recorded(self) -> bool:
        """Whether it has a span."""
        return self._span is not None

    def end(self, code: str) -> None:
        """The call ended with this gRPC status. A client counts everything but OK as an error."""
        if self._span is None:
            return
        self._span.set_attribute(STATUS_CODE_KEY, code)
        if code != "OK":
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class ClientTracing:
    """Writes the client's spans to a file of OTLP JSON lines; use it in ``with``, the end flushes."""

    def __init__(self, path: Path, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._ids = SeededIds(seed)
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource({SERVICE_NAME: CLIENT_SERVICE_NAME}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                FileSpanExporter(path),
                max_queue_size=_QUEUE_SPANS_MAX,
                schedule_delay_millis=_EXPORT_DELAY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("chaos.client")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._provider.shutdown()

    def begin(self, method: str, address: str, *, recorded: bool) -> CallTrace:
        """Begin the trace of one call to ``package.Service/Method``."""
        if not recorded:
            return CallTrace(self._ids.generate_trace_id(), self._ids.generate_span_id(), None)
        span = self._tracer.start_span(
            method,
            kind=SpanKind.CLIENT,
            attributes={"rpc.system.name": "grpc", "rpc.method": method, "server.address": address},
        )
        context = span.get_span_context()
        return CallTrace(context.trace_id, context.span_id, span)
