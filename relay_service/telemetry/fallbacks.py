"""Which upstreams took calls that others could not, as Prometheus text, read from the side."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class FallbackCollector(Collector):
    """Shows what ``counts`` tells, by upstream, at the moment of the scrape."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """The one family; called by the registry for each scrape."""
        taken = CounterMetricFamily(
            "relay_fallbacks",
            "Calls that came here because their own upstream could not.",
            labels=["upstream"],
        )
        for upstream, count in self._counts().items():
            taken.add_metric([upstream], count)
        yield taken
