"""How often callers asked for a higher class than they may have, as Prometheus text."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class CapsCollector(Collector):
    """Shows what ``capped`` tells at the moment of the scrape."""

    def __init__(self, capped: Callable[[], int]) -> None:
        self._capped = capped

    def collect(self) -> Iterator[Metric]:
        """The one family; called by the registry for each scrape."""
        yield CounterMetricFamily(
            "relay_criticality_capped",
            "Calls that asked for a higher class than their caller may have.",
            value=self._capped(),
        )
