"""The adaptive throttles as Prometheus text, read from the side like all other metrics."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.criticality import Criticality
from relay_service.core.throttle import ThrottleState

_LABELS = ("upstream", "criticality")


class ThrottleCollector(Collector):
    """Shows what ``states`` tells, by upstream and class, at the moment of the scrape."""

    def __init__(self, states: Callable[[], Mapping[str, Mapping[Criticality, ThrottleState]]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        rejection = GaugeMetricFamily(
            "relay_throttle_rejection_ratio", "Of the attempts, how many are held back now.", labels=_LABELS
        )
        refused = CounterMetricFamily(
            "relay_throttle_refused", "Attempts that were not let through.", labels=_LABELS
        )
        for upstream, accounts in self._states().items():
            for criticality, state in accounts.items():
                labels = [upstream, criticality.name]
                rejection.add_metric(labels, state.rejection)
                refused.add_metric(labels, state.refused)
        yield rejection
        yield refused
