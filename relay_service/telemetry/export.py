"""From finished spans to their exporters: bounded queues, exact counts, a shutdown that ends in time.

Each exporter has a lane of its own (queue, thread), so that one that is down takes nothing from another.
The SDK's BatchSpanProcessor does the batching; what it lacks is added around it, through its public
surface only: it drops without saying how much, and its shutdown may wait for 30 s.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from relay_service.telemetry.settings import TelemetryError, TelemetrySettings

_FLUSH_SHARE = 0.75
"""The part of the shutdown's time in which an exporter may finish by itself; then it is closed under way."""


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """What became of the spans offered to the exporters; a span that goes to two of them counts twice."""

    exported: int
    dropped: int
    """For a full queue, a failed export or a shutdown that ran out of time."""
    waiting: int


class _CountingExporter(SpanExporter):
    """Counts what an exporter takes and delivers; once closed, it fails at once instead of trying."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._close_lock = threading.Lock()
        self._closed = False
        self.taken = 0
        self.exported = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        # One thread exports, so these counters need no lock; others only read them.
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            if not self._closed:
                result = self._inner.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._inner.shutdown()


class SpanLane:
    """One exporter with its queue and its thread.

    `offer` is called on one thread only. Until `start` and after `shutdown` all spans are dropped.
    """

    def __init__(self, make_exporter: Callable[[], SpanExporter], settings: TelemetrySettings) -> None:
        self._make_exporter = make_exporter
        self._settings = settings
        self._exporter: _CountingExporter | None = None
        self._processor: BatchSpanProcessor | None = None
        self._stopping: threading.Thread | None = None
        self._accepted = 0
        self._rejected = 0

    def start(self) -> None:
        """Open the exporter and start its thread. Raises `TelemetryError` when it cannot be opened."""
        self._exporter = _CountingExporter(self._make_exporter())
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=self._settings.queue_spans,
            max_export_batch_size=self._settings.batch_spans,
            schedule_delay_millis=self._settings.batch_delay_s * 1000,
        )

    def offer(self, span: ReadableSpan) -> None:
        """Queue the span, or drop and count it when the queue is full. Never waits.

        The newest is dropped, so that traces already begun stay whole as far as they go; and the
        SDK's queue, which would drop its oldest without counting, never gets to do so.
        """
        if self._processor is None or self.waiting >= self._settings.queue_spans:
            self._rejected += 1
            return
        self._accepted += 1
        self._processor.on_end(span)

    @property
    def waiting(self) -> int:
        """Spans accepted that the exporter has not taken yet."""
        return 0 if self._exporter is None else self._accepted - self._exporter.taken

    @property
    def counts(self) -> SpanCounts:
        """What became of the spans so far."""
        if self._exporter is None:
            return SpanCounts(0, self._rejected, 0)
        dropped = self._rejected + self._exporter.failed
        if self._processor is not None:
            return SpanCounts(self._exporter.exported, dropped, self.waiting)
        return SpanCounts(self._exporter.exported, dropped + self.waiting, 0)

    def begin_shutdown(self) -> None:
        """Refuse further spans and flush, in a thread of its own: the SDK's shutdown has no bound."""
        if self._processor is not None:
            self._stopping = threading.Thread(
                target=self._processor.shutdown, name="span-lane-shutdown", daemon=True
            )
            self._processor = None
            self._stopping.start()

    def end_shutdown(self, flush_until: float, give_up_at: float) -> None:
        """Wait for the flush; past ``flush_until`` close the exporter, which cuts a running export short.

        Both are monotonic seconds. Returns by ``give_up_at``.
        """
        if self._stopping is None or self._exporter is None:
            return
        self._stopping.join(max(0.0, flush_until - time.monotonic()))
        if self._stopping.is_alive():
            closing = threading.Thread(target=self._exporter.shutdown, name="span-lane-close", daemon=True)
            closing.start()
            self._stopping.join(max(0.0, give_up_at - time.monotonic()))
        self._stopping = None


class SpanPipeline:
    """All exporters of a relay; with none of them, spans are not worth making (`is_recording`)."""

    def __init__(self, lanes: Sequence[SpanLane], shutdown_timeout_s: float) -> None:
        self._lanes = tuple(lanes)
        self._shutdown_timeout_s = shutdown_timeout_s

    @property
    def is_recording(self) -> bool:
        """Whether spans go anywhere."""
        return bool(self._lanes)

    def start(self) -> None:
        """Open all exporters. Raises `TelemetryError` when one cannot be opened."""
        for lane in self._lanes:
            lane.start()

    def offer(self, span: ReadableSpan) -> None:
        """Hand a finished span to every exporter. Never waits."""
        for lane in self._lanes:
            lane.offer(span)

    @property
    def counts(self) -> SpanCounts:
        """The sum over all exporters."""
        counts = [lane.counts for lane in self._lanes]
        return SpanCounts(
            exported=sum(each.exported for each in counts),
            dropped=sum(each.dropped for each in counts),
            waiting=sum(each.waiting for each in counts),
        )

    def shutdown(self) -> None:
        """Flush all exporters at once and close them, within the time set.

        What did not go out counts as dropped. Blocks: call it in a thread, or when no call can be delayed.
        """
        give_up_at = time.monotonic() + self._shutdown_timeout_s
        flush_until = give_up_at - self._shutdown_timeout_s * (1 - _FLUSH_SHARE)
        for lane in self._lanes:
            lane.begin_shutdown()
        for lane in self._lanes:
            lane.end_shutdown(flush_until, give_up_at)


def build_pipeline(settings: TelemetrySettings) -> SpanPipeline:
    """The exporters that the settings ask for; nothing is opened before `SpanPipeline.start`.

    Raises:
        TelemetryError: the OTLP endpoint has a scheme other than http and https.
    """
    lanes = []
    if settings.otlp_endpoint is not None:
        lanes.append(SpanLane(_otlp_exporter(settings.otlp_endpoint, settings.export_timeout_s), settings))
    if settings.trace_file is not None:
        lanes.append(SpanLane(_file_exporter(settings.trace_file), settings))
    return SpanPipeline(lanes, settings.shutdown_timeout_s)


def build_resource(settings: TelemetrySettings, instance_id: str) -> Resource:
    """Who the spans come from, beside what ``OTEL_RESOURCE_ATTRIBUTES`` says."""
    return Resource.create(
        {
            "service.name": "relay",
            "service.version": settings.service_version,
            "service.instance.id": instance_id,
        }
    )


def _otlp_exporter(endpoint: str, timeout_s: float) -> Callable[[], SpanExporter]:
    scheme, separator, _ = endpoint.partition("://")
    if separator and scheme not in {"http", "https"}:
        raise TelemetryError(
            f"the OTLP endpoint {endpoint!r} must be host:port, http://host:port or https://host:port"
        )
    # Said outright: by itself the exporter takes a plain host:port to mean TLS.
    insecure = scheme != "https" or not separator
    return lambda: OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=timeout_s)


def _file_exporter(path: Path) -> Callable[[], SpanExporter]:
    def open_file() -> SpanExporter:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return FileSpanExporter(path)
        except OSError as error:
            raise TelemetryError(f"the trace file {path} cannot be written: {error.strerror}") from error

    return open_file
