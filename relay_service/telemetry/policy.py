"""The policy in force as Prometheus text, read from the side like all other metrics."""

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class PolicyFigures(Protocol):
    """What is shown of a policy."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def version(self) -> str:
        """A hash of what it says."""

    @property
    def loaded_at_unix_s(self) -> float:
        """Since when it is in force."""

    @property
    def reloads(self) -> int:
        """Policies put into force since the start."""

    @property
    def refused(self) -> int:
        """Policies that had errors."""


class PolicyCollector(Collector):
    """Shows what ``status`` tells at the moment of the scrape."""

    def __init__(self, status: Callable[[], PolicyFigures]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        status = self._status()
        info = GaugeMetricFamily(
            "relay_policy_info", "1, for the policy in force.", labels=["name", "version"]
        )
        info.add_metric([status.name, status.version], 1.0)
        yield info
        yield GaugeMetricFamily(
            "relay_policy_load_time_seconds", "When it came into force.", value=status.loaded_at_unix_s
        )
        reloads = CounterMetricFamily(
            "relay_policy_reloads", "Policies read while running, by what became of them.", labels=["outcome"]
        )
        reloads.add_metric(["in_force"], status.reloads)
        reloads.add_metric(["refused"], status.refused)
        yield reloads
