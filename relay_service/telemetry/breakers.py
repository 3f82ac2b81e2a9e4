"""The circuit breakers as Prometheus text, read from the side like all other metrics."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.breaker import BreakerState, BreakerStatus
from relay_service.core.breakers import BreakerView

_LABELS = ("upstream", "methods")

_COUNTERS: tuple[tuple[str, str, Callable[[BreakerStatus], int]], ...] = (
    ("relay_breaker_opened", "Times the breaker opened.", lambda status: status.opened),
    ("relay_breaker_refused", "Calls and retries it did not let through.", lambda status: status.refused),
    ("relay_breaker_probes_lost", "Probes whose lease ran out.", lambda status: status.probes_lost),
    (
        "relay_breaker_stuck",
        "Attempts that counted as failed before they ended.",
        lambda status: status.stuck,
    ),
    ("relay_breaker_late", "Outcomes dropped because the breaker had moved on.", lambda status: status.late),
)


class BreakerCollector(Collector):
    """Shows what ``views`` tells at the moment of the scrape."""

    def __init__(self, views: Callable[[], Iterable[BreakerView]]) -> None:
        self._views = views

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        views = list(self._views())
        yield self._states(views)
        share = GaugeMetricFamily(
            "relay_breaker_share_ratio", "Of the attempts, how many are let through.", labels=_LABELS
        )
        for view in views:
            share.add_metric([view.upstream, view.methods], view.status.share)
        yield share
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            for view in views:
                counter.add_metric([view.upstream, view.methods], read(view.status))
            yield counter

    def _states(self, views: Iterable[BreakerView]) -> Metric:
        """One series a state, of which one is 1: so that a query can name the state."""
        states = GaugeMetricFamily(
            "relay_breaker_state", "1 for the state it is in, else 0.", labels=(*_LABELS, "state")
        )
        for view in views:
            for state in BreakerState:
                labels = [view.upstream, view.methods, state.value]
                states.add_metric(labels, float(view.status.state is state))
        return states
