"""The counters as Prometheus text: a collector that reads them from the side when someone asks.

Names follow https://prometheus.io/docs/practices/naming/: the ``relay_`` prefix, base units, ``_total``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.admission import AdmissionState
from relay_service.telemetry.export import SpanCounts
from relay_service.telemetry.histogram import LogHistogram
from relay_service.telemetry.metrics import Snapshot

UPPER_BOUNDS_MS = tuple(2.0**power for power in range(-2, 18))
"""The buckets shown: 0.25 ms to 131 s, each twice the one before."""


@dataclass(frozen=True, slots=True)
class TelemetryStats:
    """What telemetry says about itself."""

    spans: SpanCounts
    afterwards_suppressed: int
    """Failed calls that got no span afterwards because too many did."""
    log_lines_suppressed: int
    """Refused and failed calls that were not logged because too many were."""


class RelayCollector(Collector):
    """Shows what its two sources say at the moment of the scrape."""

    def __init__(self, calls: Callable[[], Snapshot], telemetry: Callable[[], TelemetryStats]) -> None:
        self._calls = calls
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        snapshot = self._calls()
        yield from _totals(snapshot)
        yield from _methods(snapshot)
        yield from _telemetry(self._telemetry())


class AdmissionCollector(Collector):
    """Shows the admission's queue at the moment of the scrape."""

    def __init__(self, admission: Callable[[], AdmissionState]) -> None:
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        state = self._admission()
        queued = GaugeMetricFamily("relay_queued", "Calls that wait for a worker.", labels=["criticality"])
        for criticality, count in state.queued.items():
            queued.add_metric([criticality.name], count)
        yield queued
        for name, text, counts in (
            ("relay_taken", "Calls and retries that were given a worker.", state.taken),
            ("relay_turned_away", "Calls and retries that the admission refused or shed.", state.refused),
        ):
            counter = CounterMetricFamily(name, text, labels=["criticality"])
            for criticality, count in counts.items():
                counter.add_metric([criticality.name], count)
            yield counter
        yield GaugeMetricFamily("relay_queue_standing", "1 while the queue stands.", value=state.standing)
        yield CounterMetricFamily(
            "relay_standing_shed",
            "Calls shed because the queue stood, or refused at its door.",
            value=state.standing_shed,
        )
        yield CounterMetricFamily(
            "relay_displaced", "Calls that lost their place in the queue to another.", value=state.displaced
        )
        yield GaugeMetricFamily(
            "relay_service_time_seconds",
            "How long an attempt holds a worker: the quantile that feasibility is judged by.",
            value=state.service_s,
        )
        yield GaugeMetricFamily("relay_workers_limit", "Attempts that may be under way.", value=state.workers)
        yield GaugeMetricFamily(
            "relay_baseline_seconds",
            "What an attempt takes without load, as far as an adaptive limit has learned it.",
            value=state.baseline_s,
        )


def render(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """The registry's text in the format that the ``Accept`` header asks for, as (content type, body)."""
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)


def _totals(snapshot: Snapshot) -> Iterator[Metric]:
    calls = snapshot.calls
    yield CounterMetricFamily("relay_calls_received", "Calls received.", value=calls.received)
    ended = CounterMetricFamily("relay_calls", "Calls that are over, by how they ended.", labels=["fate"])
    ended.add_metric(["ok"], calls.ok)
    ended.add_metric(["error"], calls.errors)
    ended.add_metric(["refused"], calls.refused)
    ended.add_metric(["cancelled"], calls.cancelled)
    yield ended
    yield GaugeMetricFamily("relay_calls_in_flight", "Calls that are not over.", value=calls.in_flight)
    reasons = CounterMetricFamily(
        "relay_reasons", "Refusals and failures, by the relay's reason for them.", labels=["reason"]
    )
    for reason, count in sorted(calls.by_reason.items()):
        reasons.add_metric([reason], count)
    yield reasons
    waits = HistogramMetricFamily("relay_queue_wait_seconds", "How long calls waited for a worker.")
    waits.add_metric([], *buckets(snapshot.queue_wait))
    yield waits


def _methods(snapshot: Snapshot) -> Iterator[Metric]:
    received = CounterMetricFamily("relay_method_calls_received", "Calls received.", labels=["method"])
    by_code = CounterMetricFamily(
        "relay_method_calls", "Calls that are over, by status code.", labels=["method", "code"]
    )
    attempts = CounterMetricFamily("relay_attempts", "Attempts made at upstreams.", labels=["method"])
    retries = CounterMetricFamily(
        "relay_retries", "Attempts made because earlier ones failed.", labels=["method"]
    )
    hedges = CounterMetricFamily(
        "relay_hedges", "Attempts made because earlier ones took long.", labels=["method"]
    )
    durations = HistogramMetricFamily(
        "relay_call_duration_seconds",
        "How long calls took that ended with OK or an error, from their headers to their trailers.",
        labels=["method"],
    )
    for stats in snapshot.methods:
        label = [stats.method.encode("utf-8", "replace").decode()]
        received.add_metric(label, stats.received)
        for code, count in stats.by_code.items():
            by_code.add_metric([*label, code], count)
        attempts.add_metric(label, stats.attempts)
        retries.add_metric(label, stats.retries)
        hedges.add_metric(label, stats.hedges)
        durations.add_metric(label, *buckets(stats.latency))
    yield from (received, by_code, attempts, retries, hedges, durations)


def _telemetry(stats: TelemetryStats) -> Iterator[Metric]:
    yield CounterMetricFamily("relay_spans_exported", "Spans delivered.", value=stats.spans.exported)
    yield CounterMetricFamily("relay_spans_dropped", "Spans lost.", value=stats.spans.dropped)
    yield GaugeMetricFamily(
        "relay_spans_waiting", "Spans queued for their exporter.", value=stats.spans.waiting
    )
    yield CounterMetricFamily(
        "relay_spans_afterwards_suppressed",
        "Failed calls of unsampled traces without a span, because there were too many.",
        value=stats.afterwards_suppressed,
    )
    yield CounterMetricFamily(
        "relay_log_lines_suppressed",
        "Refused and failed calls not logged, because there were too many.",
        value=stats.log_lines_suppressed,
    )


def buckets(histogram: LogHistogram) -> tuple[list[tuple[str, float]], float]:
    """A histogram as Prometheus wants it: (upper bound in seconds, count up to there), and the sum."""
    counts = histogram.cumulative(UPPER_BOUNDS_MS)
    shown = [
        (repr(bound_ms / 1000), float(count)) for bound_ms, count in zip(UPPER_BOUNDS_MS, counts, strict=True)
    ]
    return [*shown, ("+Inf", float(histogram.count))], histogram.sum_s
