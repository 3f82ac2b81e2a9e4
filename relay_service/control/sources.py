"""What the control plane wants to know of the running relay, as values, and who tells it.

The rest of the relay implements `HealthSource` and `StatsSource`; everything that is shown by
AdminService, by health checks and by the HTTP port is read through these two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from relay_service.core.admission import AdmissionState
from relay_service.core.alerts import Alert
from relay_service.core.breakers import BreakerView
from relay_service.core.budget import BudgetState
from relay_service.core.criticality import Criticality
from relay_service.core.hedge import HedgingState
from relay_service.core.quota import QuotaView
from relay_service.core.throttle import ThrottleState
from relay_service.idempotency.counters import KeysState
from relay_service.jobs.office import JobsStatus
from relay_service.ports import CallersStatus, PoolStatus
from relay_service.telemetry.metrics import CallTotals, MethodStats


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """The bounded queue, its workers, and the streaming calls, which have a limit of their own."""

    length: int = 0
    capacity: int = 0
    workers_busy: int = 0
    workers: int = 0
    streams: int = 0
    streams_max: int = 0
    drain_per_s: float = 0.0
    """Attempts that ended per second, smoothed; what pushback is computed from."""
    admission: AdmissionState = field(default_factory=AdmissionState)
    """Who waits, and what became of those who do not."""
    quotas: Sequence[QuotaView] = ()
    """The clients' quotas; empty without any in the policy."""
    capped: int = 0
    """Calls that asked for a higher class than their caller may have."""


@dataclass(frozen=True, slots=True)
class HedgingStatus:
    """The hedges of the calls to one upstream."""

    connections: int
    """Of their own, that may take hedges now."""
    state: HedgingState
    pool: PoolStatus = field(default_factory=PoolStatus)


@dataclass(frozen=True, slots=True)
class BulkheadStatus:
    """A compartment of one upstream's calls."""

    methods: str
    """``package.Service/Method`` or ``package.Service`` when only these; empty for all that have no own."""
    queue: QueueStatus


@dataclass(frozen=True, slots=True)
class UpstreamStatus:
    """The data plane's connections to one upstream."""

    name: str
    target: str
    state: str
    """CONNECTING, READY, BACKING_OFF or CLOSED."""
    connections: int = 0
    streams: int = 0
    connects: int = 0
    disconnects: int = 0
    last_error: str = ""
    retry_budget: BudgetState = field(default_factory=lambda: BudgetState(0.0, 0.0, 0, 0))
    breakers: Sequence[BreakerView] = ()
    hedging: HedgingStatus | None = None
    """None when the policy hedges nothing."""
    fallbacks: int = 0
    """Calls that came here because their own upstream could not take them."""
    throttles: Mapping[Criticality, ThrottleState] = field(default_factory=dict)
    """By class; empty when the policy has no adaptive throttle."""
    pool: PoolStatus = field(default_factory=PoolStatus)
    bulkheads: Sequence[BulkheadStatus] = ()
    """Empty when the policy has none."""


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """The policy in force, and what became of those that were to take its place."""

    name: str = ""
    version: str = ""
    """A hash of what it says."""
    loaded_at_unix_s: float = 0.0
    reloads: int = 0
    """Policies put into force since the start."""
    refused: int = 0
    """Policies that had errors."""
    last_refusal: str = ""
    """What was wrong with the last of these, a line for each fault; empty when there was none."""
    last_refusal_at_unix_s: float = 0.0


class ShuttingDownError(Exception):
    """The relay is going away and takes no other policy."""


@dataclass(frozen=True, slots=True)
class TelemetryStatus:
    """What became of the spans."""

    spans_exported: int = 0
    spans_dropped: int = 0
    afterwards_suppressed: int = 0
    """Failed calls of unsampled traces that got no span, because too many failed at once."""


@dataclass(frozen=True, slots=True)
class AlertView:
    """Something that has been wrong for too long, and for how long."""

    alert: Alert
    age_s: float


@dataclass(frozen=True, slots=True)
class Stats:
    """One look at the relay."""

    observed_at_unix_s: float
    """Wall time, for people."""
    uptime_s: float
    calls: CallTotals
    methods: Sequence[MethodStats]
    queue: QueueStatus
    upstreams: Sequence[UpstreamStatus]
    telemetry: TelemetryStatus
    jobs: JobsStatus | None = None
    """None without a store."""
    policy: PolicyStatus = PolicyStatus()
    callers: CallersStatus = field(default_factory=CallersStatus)
    keys: KeysState | None = None
    """None without a store."""
    alerts: Sequence[AlertView] = ()
    """That were told and are not over."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the relay takes calls, and which of its upstreams could be given one."""

    draining: bool
    upstreams_ready: Mapping[str, bool]
    """By the upstream's name: whether a call to it has a chance."""
    refusing_jobs: str = ""
    """Why no durable job is accepted; calls are, so the relay serves all the same. Empty when they are."""

    @property
    def serving(self) -> bool:
        """True while calls are taken and at least one upstream is ready."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the relay is not serving, for people; empty when it is."""
        if self.draining:
            return ("the relay is draining",)
        if not self.upstreams_ready:
            return ("no upstream is configured",)
        if not any(self.upstreams_ready.values()):
            return tuple(f"upstream {name} is not ready" for name in self.upstreams_ready)
        return ()


class HealthSource(Protocol):
    """Tells how the relay is."""

    def health(self) -> Health:
        """The state now. Called a few times a second; must not block."""


class StatsSource(Protocol):
    """Tells what the relay has done."""

    def stats(self) -> Stats:
        """The counters now. Called on the event loop; must not block."""
