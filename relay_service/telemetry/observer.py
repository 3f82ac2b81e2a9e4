"""What the relay's calls tell, brought together: one `CallTelemetry` per call feeds spans, counters and logs.

A call that succeeds and is not sampled pays for one small object, one traceparent and a few integers.
"""

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from structlog.typing import FilteringBoundLogger

from relay_service.core.evidence import Evidence
from relay_service.core.verdict import Fate, Verdict
from relay_service.jobs.sending import Sender, Untraced
from relay_service.ports import AttemptEnd, CallHead, Headers
from relay_service.telemetry import attributes as key
from relay_service.telemetry.export import SpanCounts, build_pipeline, build_resource
from relay_service.telemetry.exposition import RelayCollector, TelemetryStats, render
from relay_service.telemetry.logs import LOGGER_NAME, CallLog
from relay_service.telemetry.metrics import CallMetrics, Snapshot
from relay_service.telemetry.sending import JobSender
from relay_service.telemetry.settings import TelemetrySettings
from relay_service.telemetry.throttle import TokenBucket
from relay_service.telemetry.trace_context import (
    SAMPLED,
    HeadSampler,
    ParentBasedSampler,
    PassThroughSampler,
    TraceHead,
    follow_causes,
)
from relay_service.telemetry.tracing import CallSpans, SpanTarget, address_attributes

_FAILED = (Fate.ERROR, Fate.REFUSED)


def wall_minus_monotonic_ns() -> int:
    """What to add to a monotonic time to get wall time, right now."""
    return time.time_ns() - time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class _Sinks:
    """What all calls feed."""

    metrics: CallMetrics
    log: CallLog
    spans: SpanTarget
    afterwards: TokenBucket | None
    """Limits the spans of failed calls that were not sampled; None when spans go nowhere."""


class CallTelemetry:
    """Hears the life of one call; see `relay_service.ports.CallObserver`.

    State: the call's place in its trace, its spans when it is sampled, the counters it is counted in
    under, the start of the wait under way, and the one trace context that an unsampled call sends.
    """

    __slots__ = ("_context", "_counters", "_head", "_offset_ns", "_queued_at", "_sinks", "_spans", "_trace")

    def __init__(self, sinks: _Sinks, head: CallHead, trace: TraceHead, offset_ns: int) -> None:
        self._sinks = sinks
        self._head = head
        self._trace = trace
        self._offset_ns = offset_ns
        self._counters = sinks.metrics.started(head.method)
        self._queued_at: float | None = None
        self._context: Headers | None = None
        self._spans: CallSpans | None = None
        if trace.flags & SAMPLED and sinks.afterwards is not None:
            self._spans = CallSpans(sinks.spans, trace, head, offset_ns)

    @property
    def trace_id(self) -> str:
        """See `CallObserver.trace_id`."""
        return self._trace.trace_id

    def queued(self, now: float) -> None:
        """See `CallObserver.queued`."""
        self._queued_at = now
        if self._spans is not None:
            self._spans.queued(now)

    def dequeued(self, now: float) -> None:
        """See `CallObserver.dequeued`."""
        if self._queued_at is not None:
            self._sinks.metrics.queue_wait.record(now - self._queued_at)
            self._queued_at = None
        if self._spans is not None:
            self._spans.dequeued(now)

    def attempt_started(self, number: int, upstream: str, now: float) -> Headers:
        """See `CallObserver.attempt_started`.

        Unsampled attempts all name the call's own span id: should the call fail and get its span
        afterwards, whatever the upstream recorded finds its parent.
        """
        if self._spans is not None:
            return self._trace.outgoing(self._spans.attempt_started(number, upstream, now))
        if self._context is None:
            self._context = self._trace.outgoing(self._trace.span_id)
        return self._context

    def hedge_started(self, number: int, upstream: str, now: float) -> Headers:
        """See `CallObserver.hedge_started`."""
        if self._spans is not None:
            return self._trace.outgoing(self._spans.hedge_started(number, upstream, now))
        return self.attempt_started(number, upstream, now)

    def attempt_ended(self, number: int, peer: str, end: AttemptEnd, evidence: Evidence, now: float) -> None:
        """See `CallObserver.attempt_ended`."""
        if self._spans is not None:
            self._spans.attempt_ended(number, peer, end, evidence, now)

    def finished(self, verdict: Verdict, now: float) -> None:
        """See `CallObserver.finished`."""
        head = self._head
        sinks = self._sinks
        sinks.metrics.finished(head.method, self._counters, verdict, now - head.received_at)
        if self._spans is not None:
            self._spans.finished(verdict, now)
        if verdict.fate in _FAILED:
            sinks.log.failed(head, self._trace, verdict, now)
            if self._spans is None and sinks.afterwards is not None and sinks.afterwards.take(now):
                CallSpans(sinks.spans, self._trace, head, self._offset_ns).recorded_afterwards(verdict, now)


class Telemetry:
    """The relay's telemetry: an `Observer`, what it has counted, and the exporters behind it.

    ``rng`` makes trace and span ids and so decides what is sampled; ``wall_offset_ns`` is read once per call.
    Everything but `shutdown` belongs to the event loop's thread.
    """

    def __init__(
        self,
        settings: TelemetrySettings,
        *,
        rng: random.Random,
        wall_offset_ns: Callable[[], int] = wall_minus_monotonic_ns,
        logger: FilteringBoundLogger | None = None,
    ) -> None:
        """Raises `TelemetryError` when the settings name no usable exporter; opens nothing."""
        self._pipeline = build_pipeline(settings)
        self._wall_offset_ns = wall_offset_ns
        self.instance_id = settings.instance_id or str(uuid.UUID(int=rng.getrandbits(128), version=4))
        """``service.instance.id`` of this relay's spans."""
        self._sampler: HeadSampler = PassThroughSampler(rng)
        self._afterwards = TokenBucket(settings.afterwards_per_s, settings.afterwards_burst)
        if self._pipeline.is_recording:
            self._sampler = ParentBasedSampler(settings.sample_ratio, rng)
        self._sinks = _Sinks(
            metrics=CallMetrics(settings.max_methods),
            log=CallLog(
                logger or structlog.get_logger(LOGGER_NAME),
                TokenBucket(settings.log_lines_per_s, settings.log_burst),
            ),
            spans=SpanTarget(
                offer=self._pipeline.offer,
                new_span_id=lambda: rng.getrandbits(64) or 1,
                resource=build_resource(settings, self.instance_id),
                scope=InstrumentationScope("relay_service", settings.service_version),
                listen=address_attributes(settings.listen_address, key.SERVER_ADDRESS, key.SERVER_PORT),
            ),
            afterwards=self._afterwards if self._pipeline.is_recording else None,
        )
        self.registry = CollectorRegistry()
        """Where others may register collectors of their own; `prometheus_text` shows all of it."""
        self.registry.register(RelayCollector(self.snapshot, self.stats))

    def start(self) -> None:
        """Open the exporters. Raises `TelemetryError` when one cannot be opened."""
        self._pipeline.start()

    def call_started(self, head: CallHead, now: float) -> CallTelemetry:  # noqa: ARG002 (the head has its time)
        """See `Observer.call_started`."""
        trace = self._sampler.begin(head.metadata)
        if head.runs:
            follow_causes(trace, (run.traceparent for run in head.runs))
        return CallTelemetry(self._sinks, head, trace, self._wall_offset_ns())

    def call_refused(self, head: CallHead, verdict: Verdict, now: float) -> None:
        """See `Observer.call_refused`."""
        self.call_started(head, now).finished(verdict, now)

    def job_sender(self) -> Sender:
        """What records jobs that are sent on their way."""
        if not self._pipeline.is_recording:
            return Untraced()
        return JobSender(
            self._sinks.spans, self._sampler, now=time.monotonic, wall_offset_ns=self._wall_offset_ns
        )

    def snapshot(self, method_prefix: str = "") -> Snapshot:
        """All counters of calls now."""
        return self._sinks.metrics.snapshot(method_prefix)

    def stats(self) -> TelemetryStats:
        """What telemetry says about itself."""
        return TelemetryStats(self.span_counts, self._afterwards.refused, self._sinks.log.suppressed)

    @property
    def span_counts(self) -> SpanCounts:
        """Spans exported, dropped and waiting."""
        return self._pipeline.counts

    def prometheus_text(self, accept: str = "") -> tuple[str, bytes]:
        """The metrics as (content type, body), in the format that the ``Accept`` header asks for."""
        return render(self.registry, accept)

    def shutdown(self) -> None:
        """Flush and close the exporters within ``shutdown_timeout_s``.

        Blocks: call it in a thread, after the last call.
        """
        self._pipeline.shutdown()
