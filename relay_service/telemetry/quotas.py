"""The clients' quotas as Prometheus text. Only clients that the policy names have a label of their own."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.quota import QuotaView

_LABELS = ("client",)

_COUNTERS: tuple[tuple[str, str, Callable[[QuotaView], int]], ...] = (
    ("relay_client_quota_granted", "Calls within the quota.", lambda view: view.granted),
    ("relay_client_quota_refused", "Calls beyond the quota.", lambda view: view.refused),
    (
        "relay_client_quota_overflowed",
        "Calls counted in the bucket of the clients for whom there is no room.",
        lambda view: view.overflowed,
    ),
)


class QuotaCollector(Collector):
    """Shows what ``views`` tells at the moment of the scrape."""

    def __init__(self, views: Callable[[], Iterable[QuotaView]]) -> None:
        self._views = views

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        views = list(self._views())
        clients = GaugeMetricFamily("relay_quota_clients", "Clients that have a bucket.", labels=_LABELS)
        for view in views:
            clients.add_metric([view.client], view.clients)
        yield clients
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            for view in views:
                counter.add_metric([view.client], read(view))
            yield counter
