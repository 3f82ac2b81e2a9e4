"""What became of hedges as Prometheus text, read from the side like all other metrics."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.hedge import HedgingState

_COUNTERS: tuple[tuple[str, str, Callable[[HedgingState], int]], ...] = (
    ("relay_hedges_started", "Hedges made.", lambda state: state.started),
    ("relay_hedges_won", "Hedges that answered their call.", lambda state: state.won),
    (
        "relay_hedges_cancelled",
        "Hedges given up: another attempt was answered first, or the call ended.",
        lambda state: state.cancelled,
    ),
)


class HedgingCollector(Collector):
    """Shows what ``states``, by upstream, tells at the moment of the scrape."""

    def __init__(self, states: Callable[[], Mapping[str, HedgingState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        states = self._states()
        for name, text, read in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["upstream"])
            for upstream, state in states.items():
                counter.add_metric([upstream], read(state))
            yield counter
        held_back = CounterMetricFamily(
            "relay_hedges_held_back", "Hedges that were due and not made.", labels=["upstream", "why"]
        )
        quantile = GaugeMetricFamily(
            "relay_hedge_quantile_seconds",
            "The learned quantile of a method's first attempts, after which they are hedged.",
            labels=["upstream", "method"],
        )
        for upstream, state in states.items():
            for why, count in state.held_back.items():
                held_back.add_metric([upstream, why.name.lower()], count)
            for learned in state.methods:
                quantile.add_metric([upstream, learned.method], learned.quantile_s)
        yield from (held_back, quantile)
