"""The connections to upstreams as Prometheus text, read from the side like all other metrics."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.ports import PoolStatus

_LABELS = ("upstream", "lane")

_GAUGES: tuple[tuple[str, str, Callable[[PoolStatus], float]], ...] = (
    ("relay_upstream_streams", "Attempts under way on its connections.", lambda pool: pool.streams),
    (
        "relay_upstream_waiting",
        "Attempts that wait for a connection, or for the upstream to allow another stream.",
        lambda pool: pool.waiting,
    ),
    (
        "relay_upstream_ping_round_trip_seconds",
        "What the last answered ping took; 0 before the first.",
        lambda pool: pool.ping_round_trip_s,
    ),
    (
        "relay_upstream_ping_round_trip_max_seconds",
        "What the slowest answered ping took.",
        lambda pool: pool.ping_round_trip_max_s,
    ),
)

_COUNTERS: tuple[tuple[str, str, Callable[[PoolStatus], int]], ...] = (
    ("relay_upstream_connects", "Connections made.", lambda pool: pool.connects),
    (
        "relay_upstream_connect_failures",
        "Connections that could not be made.",
        lambda pool: pool.connect_failures,
    ),
    ("relay_upstream_reconnects", "Connections made in place of lost ones.", lambda pool: pool.reconnects),
    ("relay_upstream_disconnects", "Connections lost, whoever ended them.", lambda pool: pool.disconnects),
    (
        "relay_upstream_goaways",
        "Connections that the upstream said it would close.",
        lambda pool: pool.goaways,
    ),
    (
        "relay_upstream_pings",
        "Questions to a connection that was silent with calls under way.",
        lambda pool: pool.pings,
    ),
    ("relay_upstream_pings_answered", "Of these, answered.", lambda pool: pool.pings_answered),
    (
        "relay_upstream_zombies",
        "Connections given up because they did not answer a ping.",
        lambda pool: pool.zombies,
    ),
    (
        "relay_upstream_attempts_unsent",
        "Attempts that failed at once: the upstream was away, or too many waited.",
        lambda pool: pool.attempts_unsent,
    ),
)


class PoolView(NamedTuple):
    """The connections of one upstream that serve one purpose."""

    upstream: str
    lane: str
    """``calls``, or ``hedges`` for those kept apart for these."""
    pool: PoolStatus


class PoolCollector(Collector):
    """Shows what ``views`` tells at the moment of the scrape."""

    def __init__(self, views: Callable[[], Iterable[PoolView]]) -> None:
        self._views = views

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        views = list(self._views())
        connections = GaugeMetricFamily(
            "relay_upstream_connections", "Connections there are, by state.", labels=(*_LABELS, "state")
        )
        for view in views:
            for state, count in view.pool.connections.items():
                connections.add_metric([view.upstream, view.lane, state.lower()], count)
        yield connections
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for view in views:
                gauge.add_metric([view.upstream, view.lane], value(view.pool))
            yield gauge
        for name, text, count_of in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            for view in views:
                counter.add_metric([view.upstream, view.lane], count_of(view.pool))
            yield counter
