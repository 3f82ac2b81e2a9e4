"""What Envoy counts, in the words in which a relay tells it. What Envoy does not count stays 0."""

from collections.abc import Mapping

from chaos.envoy.configuration import CLUSTER, STAT_PREFIX
from protos.relay.v1 import admin_pb2

_HTTP = f"http.{STAT_PREFIX}"
_UPSTREAM = f"cluster.{CLUSTER}"
_LIMIT = f"{_HTTP}.adaptive_concurrency.gradient_controller.concurrency_limit"
WANTED = r"/stats?filter=^(http\.relay\.(downstream_rq_|adaptive)|cluster\.upstream\.)"
"""Where the admin pages have it, and no more of what they have."""


def parse(text: str) -> dict[str, int]:
    """The lines ``name: value`` of Envoy's ``/stats``; histograms are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        if value.isdecimal():
            found[name] = int(value)
    return found


def as_stats(counted: Mapping[str, int], requests_max: int, uptime_s: float) -> admin_pb2.Stats:
    """The statistics of a relay that did what this Envoy did.

    ``requests_max`` is the limit it was told (0: none); one that it found itself goes before. ``received``
    and ``in_flight`` are requests of callers; how those ended Envoy does not say by gRPC's codes.
    """

    def count(name: str) -> int:
        return counted.get(name, 0)

    stats = admin_pb2.Stats()
    stats.uptime.FromMilliseconds(round(uptime_s * 1000))
    stats.calls.received = count(f"{_HTTP}.downstream_rq_total")
    stats.calls.in_flight = count(f"{_HTTP}.downstream_rq_active")
    stats.queue.workers_busy = count(f"{_UPSTREAM}.upstream_rq_active")
    stats.queue.length = count(f"{_UPSTREAM}.upstream_rq_pending_active")
    stats.queue.workers = counted.get(_LIMIT, requests_max)
    method = stats.methods.add(method="*")
    method.attempts = count(f"{_UPSTREAM}.upstream_rq_total")
    method.retries = count(f"{_UPSTREAM}.upstream_rq_retry")
    breaker = stats.upstreams.add().breakers.add()
    breaker.state = "OPEN" if count(f"{_UPSTREAM}.outlier_detection.ejections_active") else "CLOSED"
    breaker.refused = count(f"{_UPSTREAM}.upstream_rq_pending_overflow")
    return stats
