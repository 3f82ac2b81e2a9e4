"""The idempotency keys and their store as Prometheus text, read from the side like all other metrics."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.idempotency import Decision
from relay_service.idempotency.counters import SETTLEMENTS, KeysState
from relay_service.telemetry.exposition import buckets
from relay_service.telemetry.histogram import LogHistogram


class StoreTimes:
    """How long the store took, by operation; there are three. State: a histogram for each."""

    def __init__(self) -> None:
        self.by_operation: dict[str, LogHistogram] = {}

    def took(self, operation: str, seconds: float) -> None:
        """One operation has ended."""
        if operation not in self.by_operation:
            self.by_operation[operation] = LogHistogram()
        self.by_operation[operation].record(seconds)


class KeysCollector(Collector):
    """Shows what the keys tell at the moment of the scrape."""

    def __init__(self, state: Callable[[], KeysState], times: StoreTimes) -> None:
        self._state = state
        self._times = times

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        state = self._state()
        counters = state.counters
        yield GaugeMetricFamily(
            "relay_keys_flights", "Keys whose calls are under way here.", value=state.flights
        )
        yield GaugeMetricFamily(
            "relay_keys_waiting", "Keyed calls that wait without a slot.", value=state.waiting
        )
        yield GaugeMetricFamily("relay_keys_leases", "Claims that are held.", value=state.leases)
        decisions = CounterMetricFamily(
            "relay_keys_decisions", "What became of the keys that calls brought.", labels=["decision"]
        )
        for decision in Decision:
            decisions.add_metric([decision.value], counters.decisions[decision])
        yield decisions
        settled = CounterMetricFamily(
            "relay_keys_settled", "Claims that ended, by what was written of them.", labels=["settlement"]
        )
        for settlement in SETTLEMENTS:
            settled.add_metric([settlement], counters.settled[settlement])
        yield settled
        yield CounterMetricFamily(
            "relay_keys_coalesced", "Calls that got the answer of one under way.", value=counters.coalesced
        )
        yield CounterMetricFamily(
            "relay_keys_stale_writes", "Writes whose fence was outdated.", value=counters.stale
        )
        yield CounterMetricFamily(
            "relay_store_errors", "Store operations of keyed calls that failed.", value=counters.store_errors
        )
        times = HistogramMetricFamily(
            "relay_store_duration_seconds", "How long the store took.", labels=["operation"]
        )
        for operation, histogram in self._times.by_operation.items():
            times.add_metric([operation], *buckets(histogram))
        yield times
