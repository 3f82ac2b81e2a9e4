"""The running relay as others may look at it: health and figures, read from the parts that own them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from relay_service.control.sources import (
    AlertView,
    BulkheadStatus,
    Health,
    HedgingStatus,
    PolicyStatus,
    QueueStatus,
    Stats,
    TelemetryStatus,
    UpstreamStatus,
)
from relay_service.core.admission import Admission
from relay_service.core.alerts import Alert
from relay_service.core.quota import QuotaView
from relay_service.hedge_lane import HedgeLane
from relay_service.jobs.office import JobsStatus
from relay_service.ports import CallersStatus
from relay_service.relay import Relay
from relay_service.telemetry.observer import Telemetry
from relay_service.upstream import Upstream, UpstreamState


class Overview:
    """Implements the control plane's ``HealthSource`` and ``StatsSource``.

    ``draining`` is set by the composition root as the first thing of a shutdown.
    """

    def __init__(
        self,
        relay: Relay,
        upstreams: Mapping[str, Upstream],
        telemetry: Telemetry,
        now: Callable[[], float],
        *,
        callers: Callable[[], CallersStatus],
        policy: Callable[[], PolicyStatus],
        hedge_lanes: Mapping[str, HedgeLane],
        jobs: Callable[[], JobsStatus] | None = None,
        alerts: Callable[[], Sequence[Alert]] = list,
    ) -> None:
        """``jobs`` tells of durable jobs where there is a store for them, ``alerts`` of those that fire."""
        self.draining = False
        self._policy = policy
        self._relay = relay
        self._upstreams = upstreams
        self._hedge_lanes = hedge_lanes
        self._telemetry = telemetry
        self._now = now
        self._jobs = jobs
        self._alerts = alerts
        self._callers = callers
        self._started_at = now()

    def health(self) -> Health:
        """Whether calls are taken, and which upstreams could be given one."""
        ready = {name: upstream.state is UpstreamState.READY for name, upstream in self._upstreams.items()}
        jobs = self._jobs() if self._jobs is not None else None
        return Health(
            draining=self.draining,
            upstreams_ready=ready,
            refusing_jobs=jobs.refusing if jobs is not None else "",
        )

    def stats(self) -> Stats:
        """All figures now."""
        now = self._now()
        calls = self._telemetry.snapshot()
        told = self._telemetry.stats()
        return Stats(
            observed_at_unix_s=time.time(),
            uptime_s=now - self._started_at,
            calls=calls.calls,
            methods=calls.methods,
            queue=replace(
                _queue(self._relay.admission, now), quotas=self.quotas(), capped=self._relay.capped
            ),
            upstreams=[self._upstream(name, upstream, now) for name, upstream in self._upstreams.items()],
            telemetry=TelemetryStatus(told.spans.exported, told.spans.dropped, told.afterwards_suppressed),
            jobs=self._jobs() if self._jobs is not None else None,
            policy=self._policy(),
            callers=self._callers(),
            keys=self._relay.keys.state() if self._relay.keys is not None else None,
            alerts=[AlertView(alert, now - alert.since) for alert in self._alerts()],
        )

    def _hedging(self, name: str) -> HedgingStatus | None:
        lane = self._hedge_lanes.get(name)
        if lane is None or not self._relay.policy.hedges:
            return None
        return HedgingStatus(lane.connections, self._relay.hedging[name].state(), lane.pool())

    def quotas(self) -> Sequence[QuotaView]:
        """The clients' quotas now."""
        quotas = self._relay.quotas
        return list(quotas.views()) if quotas else ()

    def _upstream(self, name: str, upstream: Upstream, now: float) -> UpstreamStatus:
        throttles = self._relay.throttles.get(name)
        bulkheads = self._relay.bulkheads
        return UpstreamStatus(
            name=name,
            target=upstream.target,
            state=upstream.state.name,
            connections=upstream.connections,
            streams=upstream.streams,
            connects=upstream.counters.connects,
            disconnects=upstream.counters.disconnects,
            last_error=upstream.counters.last_error,
            retry_budget=self._relay.gates[name].state(),
            breakers=self._relay.breakers.of_upstream(name, now),
            fallbacks=self._relay.fallbacks[name],
            throttles=throttles.states(now) if throttles else {},
            hedging=self._hedging(name),
            pool=upstream.pool(),
            bulkheads=[
                BulkheadStatus(one.methods, _queue(one.admission, now))
                for one in (bulkheads.of_upstream(name) if bulkheads is not None else ())
            ],
        )


def _queue(admission: Admission[Any], now: float) -> QueueStatus:
    limits = admission.policy
    return QueueStatus(
        length=admission.queued,
        capacity=limits.queue_capacity,
        workers_busy=admission.busy,
        workers=admission.workers,
        streams=admission.streams,
        streams_max=limits.max_streams,
        drain_per_s=admission.drain_per_second(now),
        admission=admission.state(),
    )
