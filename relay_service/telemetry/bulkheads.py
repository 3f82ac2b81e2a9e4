"""The compartments as Prometheus text, read from the side like all other metrics."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.admission import Admission
from relay_service.core.bulkheads import Bulkhead

_LABELS = ("upstream", "methods")

_GAUGES: tuple[tuple[str, str, Callable[[Admission[Any]], float]], ...] = (
    ("relay_bulkhead_busy", "Attempts under way in the compartment.", lambda one: one.busy),
    ("relay_bulkhead_workers_limit", "Attempts that may be.", lambda one: one.workers),
    ("relay_bulkhead_queued", "Calls that wait there for a worker.", lambda one: one.queued),
    ("relay_bulkhead_streams", "Streaming calls open in it.", lambda one: one.streams),
)


class BulkheadCollector(Collector):
    """Shows what ``views`` tells at the moment of the scrape."""

    def __init__(self, views: Callable[[], Iterable[Bulkhead[Any]]]) -> None:
        self._views = views

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        views = list(self._views())
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for view in views:
                gauge.add_metric([view.upstream, view.methods], value(view.admission))
            yield gauge
        taken = CounterMetricFamily(
            "relay_bulkhead_taken",
            "Calls and retries that were given a worker in it.",
            labels=(*_LABELS, "criticality"),
        )
        refused = CounterMetricFamily(
            "relay_bulkhead_turned_away",
            "Calls and retries that it refused or shed.",
            labels=(*_LABELS, "criticality"),
        )
        for view in views:
            state = view.admission.state()
            for criticality, count in state.taken.items():
                taken.add_metric([view.upstream, view.methods, criticality.name], count)
            for criticality, count in state.refused.items():
                refused.add_metric([view.upstream, view.methods, criticality.name], count)
        yield from (taken, refused)
