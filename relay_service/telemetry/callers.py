"""The callers' connections as Prometheus metrics."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.ports import CallersStatus


class CallersCollector(Collector):
    """Shows the callers' side of the data plane at the moment of the scrape."""

    def __init__(self, status: Callable[[], CallersStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        status = self._status()
        yield GaugeMetricFamily(
            "relay_caller_connections", "Callers' connections open now.", value=status.connections
        )
        yield GaugeMetricFamily("relay_caller_streams", "Callers' streams open now.", value=status.streams)
        connects = CounterMetricFamily(
            "relay_caller_connects",
            "Connections that callers made, by what became of them.",
            labels=["outcome"],
        )
        for outcome, count in (
            ("accepted", status.accepted),
            ("refused", status.refused),
            ("refused_of_peer", status.refused_of_peer),
        ):
            connects.add_metric([outcome], count)
        yield connects
        yield CounterMetricFamily(
            "relay_caller_connections_failed",
            "Connections that the relay ended: protocol errors, floods, stalls, no handshake.",
            value=status.failed,
        )
        rejected = CounterMetricFamily(
            "relay_requests_rejected", "Requests that never became a call.", labels=["why"]
        )
        rejected.add_metric(["not_grpc"], status.not_grpc)
        rejected.add_metric(["malformed"], status.malformed)
        yield rejected
        yield CounterMetricFamily(
            "relay_replies_given_up",
            "Replies reset because their caller did not take them, or others before them.",
            value=status.replies_given_up,
        )
