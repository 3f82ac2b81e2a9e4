"""What the operator decided, as frozen values: the core reads these and nothing else.

No value here knows where it came from: the policy file is parsed elsewhere, and the same values can be
made in Python. Every constructor refuses a value that could not mean anything (`ValueError` naming the
field). A pattern that is switched off is `None` or its neutral value, said at the field; so "off" needs
no flag and no second code path. Times are seconds, sizes bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from relay_service.core.alert_policy import AlertPolicy
from relay_service.core.criticality import Criticality
from relay_service.core.evidence import Safety
from relay_service.core.jitter import Jitter
from relay_service.core.job_policy import BatchPolicy, JobPolicy
from relay_service.core.key_policy import IdempotencyPolicy, KeyLimits
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.status import Code


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number greater than 0, not {value}")


def _positive_or_off(name: str, value: float | None) -> None:
    if value is not None:
        _positive(name, value)


def _at_least(name: str, value: float, minimum: float) -> None:
    if not (math.isfinite(value) and value >= minimum):
        raise ValueError(f"{name} must be a finite number of at least {minimum}, not {value}")


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, not {value}")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how far apart attempts are made. Off is ``max_attempts=1``.

    Meaning of the fields: gRFC A6 (https://github.com/grpc/proposal/blob/master/A6-client-retries.md),
    except that ``max_attempts`` may exceed gRPC's 5 and that the jitter can be chosen.
    """

    max_attempts: int = 4
    """The first attempt included."""
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    backoff_multiplier: float = 2.0
    jitter: Jitter = Jitter.FULL
    retryable_codes: frozenset[Code] = frozenset({Code.UNAVAILABLE})
    """Codes the upstream answers without having executed anything, on the operator's word."""

    def __post_init__(self) -> None:
        _at_least("max_attempts", self.max_attempts, 1)
        _positive("initial_backoff_s", self.initial_backoff_s)
        _at_least("max_backoff_s", self.max_backoff_s, self.initial_backoff_s)
        _at_least("backoff_multiplier", self.backoff_multiplier, 1)
        if Code.OK in self.retryable_codes:
            raise ValueError("retryable_codes must not hold OK: a success is never retried")


NO_RETRY = RetryPolicy(max_attempts=1, retryable_codes=frozenset())
"""One attempt; and without an operator's word no answered code means that nothing was executed."""

HEDGE_QUANTILE = 0.95
"""With it at most one call in twenty is hedged."""


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """When a second attempt is made beside a first that is still under way. Off is no `HedgePolicy`.

    Source: gRFC A6 for attempts, delay and codes; "The Tail at Scale" (Dean and Barroso, CACM 2013) for
    waiting until the attempt is slower than most.
    """

    max_attempts: int = 2
    """No hedge is made once the call has made so many attempts of any kind, the first included."""
    quantile: float | None = HEDGE_QUANTILE
    """Hedge an attempt that takes longer than this share of the method's attempts do. None learns nothing:
    ``min_delay_s`` is then the whole wait, as in gRPC."""
    min_delay_s: float = 0.01
    """The shortest wait before a hedge."""
    min_samples: int = 100
    """So many attempts must have been answered before the quantile says anything."""
    non_fatal_codes: frozenset[Code] | None = None
    """Any other answer ends the call, as in gRPC. None goes by the evidence: what is not definite waits
    for the other attempts."""

    def __post_init__(self) -> None:
        _at_least("hedging.max_attempts", self.max_attempts, 2)
        _at_least("hedging.min_delay_s", self.min_delay_s, 0)
        _at_least("hedging.min_samples", self.min_samples, 1)
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ValueError(f"hedging.quantile must be between 0 and 1, not {self.quantile}")


@dataclass(frozen=True, slots=True)
class RetryBudgetPolicy:
    """Retries ≤ ``ratio`` x first attempts + ``burst`` + ``floor_per_s`` x seconds, in every window (I4)."""

    ratio: float = 0.2
    """Retries earned by each first attempt."""
    burst: float = 10.0
    """Retries that may be saved up; the budget starts full."""
    floor_per_s: float = 0.0
    """Retries earned by time alone, so that a method that is seldom called can retry at all."""

    def __post_init__(self) -> None:
        _at_least("ratio", self.ratio, 0)
        _at_least("burst", self.burst, 1)
        _at_least("floor_per_s", self.floor_per_s, 0)


@dataclass(frozen=True, slots=True)
class RetryThrottling:
    """gRFC A6 throttling: a failure takes one token, a success gives ``token_ratio`` back.

    No retry is made while half of ``max_tokens`` or less is left.
    """

    max_tokens: int
    token_ratio: float

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= 1000:
            raise ValueError(f"max_tokens must be from 1 to 1000, not {self.max_tokens}")
        _positive("token_ratio", self.token_ratio)


@dataclass(frozen=True, slots=True)
class ThrottlePolicy:
    """When an upstream that refuses most of what it is asked is asked less. Off is a relay policy without."""

    k: float = 2.0
    """In the long run the upstream is asked for so many times what it accepts."""
    window_s: float = 5.0
    """How far back requests and accepts are counted."""
    min_calls: int = 20
    """With fewer requests in the window everything is let through."""
    max_rejection: float = 0.9
    """The largest share that is not let through: the rest finds out whether the upstream is well again."""

    def __post_init__(self) -> None:
        _at_least("k", self.k, 1)
        _positive("window_s", self.window_s)
        _at_least("min_calls", self.min_calls, 1)
        if not 0 < self.max_rejection < 1:
            raise ValueError(f"max_rejection must be between 0 and 1, not {self.max_rejection}")


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When attempts stop because they keep failing, and how they begin again.

    Each of the four limits may be None, which switches it off. A call that is stuck counts as a failure,
    so ``stuck_call_s`` opens nothing by itself. Off altogether is a relay policy without breakers.
    """

    consecutive_failures: int | None = None
    """Open after so many failures without a success between them."""
    failure_ratio: float | None = 0.8
    """Open when this share of the window's attempts failed."""
    slow_ratio: float = 0.8
    """Open when this share of the window's attempts took ``slow_call_s`` or longer."""
    slow_call_s: float | None = None
    stuck_call_s: float | None = None
    """An attempt that has run for so long counts as failed now and not only when it ends."""
    window_s: float = 10.0
    """How far back both ratios look."""
    min_calls: int = 20
    """With fewer attempts in the window neither ratio says anything."""
    open_s: float = 1.0
    """How long nothing is let through before the upstream is probed."""
    probes: int = 1
    """Probes under way at once."""
    probe_successes: int = 3
    """Probes that must succeed before the breaker closes."""
    probe_timeout_s: float = 10.0
    """A probe without an outcome after so long is given up as lost, and the breaker opens again."""
    ramp_s: float | None = 2.0
    """How long the share of attempts let through grows after closing; None lets all through at once."""

    def __post_init__(self) -> None:
        if self.consecutive_failures is not None:
            _at_least("consecutive_failures", self.consecutive_failures, 1)
        for name in ("failure_ratio", "slow_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not 0 < ratio <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, not {ratio}")
        _positive_or_off("slow_call_s", self.slow_call_s)
        _positive_or_off("stuck_call_s", self.stuck_call_s)
        _positive("window_s", self.window_s)
        _at_least("min_calls", self.min_calls, 1)
        _positive("open_s", self.open_s)
        _at_least("probes", self.probes, 1)
        _at_least("probe_successes", self.probe_successes, 1)
        _positive("probe_timeout_s", self.probe_timeout_s)
        _positive_or_off("ramp_s", self.ramp_s)


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """What holds for the calls of one method."""

    safety: Safety | None = None
    """None takes the proto's ``idempotency_level`` when the upstream's reflection tells it, else NONE."""
    unary: bool | None = None
    """One message each way. None takes what the upstream's reflection tells; a method of which nothing is
    known is carried as a stream, unless it is KEYED."""
    key_required: bool = False
    """Refuse a call without an idempotency key."""
    default_timeout_s: float | None = 15.0
    """The deadline of a call that came without one; None leaves it without."""
    max_timeout_s: float | None = 60.0
    """The longest deadline a caller may ask for; None does not cap."""
    attempt_timeout_s: float | None = 5.0
    """The longest one attempt may take; None leaves it the time to the deadline."""
    retry: RetryPolicy = RetryPolicy()
    hedging: HedgePolicy | None = None
    """None never hedges. Only unary calls that may harmlessly be executed twice are."""
    fallback: tuple[str, ...] = ()
    """Upstreams, in this order, for calls that theirs certainly has not executed and cannot take now."""
    replay_buffer_bytes: int = 64 * 1024
    """How much of a streaming request is kept for a retry; 0 never retries a streaming call."""
    max_message_bytes: int = 4 * 1024 * 1024
    """The largest single message, request or response, as it stands on the wire."""
    batch: BatchPolicy | None = None
    """How durable jobs of the method are joined; None runs each by itself."""
    idempotency: IdempotencyPolicy | None = None
    """How idempotency keys are kept; None only passes them on."""

    def __post_init__(self) -> None:
        _positive_or_off("default_timeout_s", self.default_timeout_s)
        _positive_or_off("max_timeout_s", self.max_timeout_s)
        _positive_or_off("attempt_timeout_s", self.attempt_timeout_s)
        _at_least("replay_buffer_bytes", self.replay_buffer_bytes, 0)
        _at_least("max_message_bytes", self.max_message_bytes, 1)


class LimitKind(Enum):
    """Who says how many attempts may be under way."""

    FIXED = "fixed"
    """The policy."""
    AIMD = "aimd"
    """Losses: one more while all is well, a tenth less when attempts are lost or too slow."""
    GRADIENT = "gradient"
    """Latency: as many as the service takes before it only queues them."""


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """The limit of attempts under way, and the bounds of one that adapts itself."""

    kind: LimitKind = LimitKind.FIXED
    min: int = 4
    max: int = 1000
    initial: int = 20
    latency_objective_s: float | None = None
    """Slower than this is never normal: AIMD lowers the limit, GRADIENT takes no higher baseline."""

    def __post_init__(self) -> None:
        _at_least("limit.min", self.min, 1)
        _at_least("limit.max", self.max, self.min)
        _at_least("limit.initial", self.initial, 1)
        _positive_or_off("limit.latency_objective_s", self.latency_objective_s)


class QueueOrder(Enum):
    """Which of a client's waiting calls is served first; the classes come before this."""

    FIFO = "fifo"
    """The oldest."""
    ADAPTIVE_LIFO = "adaptive-lifo"
    """The oldest, but the newest while the queue stands: it still has time."""


class StandingShed(Enum):
    """What becomes of the calls in a queue that stands."""

    NONE = "none"
    """They wait to their deadlines."""
    CODEL = "codel"
    """They are refused one after the other, the sooner the longer it stands."""
    DOOR = "door"
    """They are served; who would have to wait behind too many of them is refused on arrival."""


@dataclass(frozen=True, slots=True)
class ClientQuota:
    """A token bucket: ``rate_per_s`` calls a second, and ``burst`` at once."""

    rate_per_s: float
    burst: float

    def __post_init__(self) -> None:
        _positive("rate_per_s", self.rate_per_s)
        _at_least("burst", self.burst, 1)


@dataclass(frozen=True, slots=True)
class ClientsPolicy:
    """How many calls clients may make. None and nothing named is off."""

    default: ClientQuota | None = None
    """Each client that is not named has one of these; those that give no name share one."""
    named: Mapping[str, ClientQuota] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "" in self.named:
            raise ValueError("named must not hold an empty name: default is for those that give none")
        object.__setattr__(self, "named", MappingProxyType(dict(self.named)))


@dataclass(frozen=True, slots=True)
class CriticalityCaps:
    """The highest class that a caller gets, by who it has proved to be. Off is a relay policy without."""

    anonymous: Criticality = Criticality.CRITICAL_PLUS
    """Of callers without a verified identity."""
    identified: Criticality = Criticality.CRITICAL_PLUS
    """Of those who have one that is not named."""
    named: Mapping[str, Criticality] = field(default_factory=dict)
    """By identity."""

    def __post_init__(self) -> None:
        if "" in self.named:
            raise ValueError("named must not hold an empty identity: anonymous is for callers without")
        object.__setattr__(self, "named", MappingProxyType(dict(self.named)))

    def of(self, identity: str) -> Criticality:
        """The highest class of a caller with ``identity``, which is empty for one without."""
        return self.named.get(identity, self.identified) if identity else self.anonymous


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """How much the relay takes on at once. There is no unlimited: off is `WIDE_OPEN`."""

    queue_capacity: int = 1000
    """Calls that may wait for a worker; 0 refuses as soon as all are busy."""
    workers: int = 256
    """Calls with an attempt in flight, when the limit is FIXED."""
    limit: LimitPolicy = LimitPolicy()
    max_streams: int = 1000
    """Streaming calls open at once; they occupy no worker."""
    sheddable_share: float = 0.5
    """How full the queue may be when a SHEDDABLE call still joins it."""
    sheddable_plus_share: float = 0.8
    """The same for SHEDDABLE_PLUS; the two critical classes may fill the queue."""
    feasibility_quantile: float | None = 0.9
    """A call that would have to wait is refused when its expected wait and this quantile of the service
    time exceed what is left of its deadline; None refuses none for that."""
    queue_order: QueueOrder = QueueOrder.FIFO
    standing_shed: StandingShed = StandingShed.NONE
    standing_target_s: float = 0.05
    """The queue stands when its oldest call has waited longer than this for a whole interval; with DOOR it is
    what a call may have to wait once the queue has not been empty for an interval."""
    standing_interval_s: float = 0.2
    """Also the time from the first call that is shed to the second."""

    @property
    def workers_max(self) -> int:
        """The most calls that can ever have an attempt in flight."""
        return self.workers if self.limit.kind is LimitKind.FIXED else self.limit.max

    def __post_init__(self) -> None:
        _at_least("queue_capacity", self.queue_capacity, 0)
        _at_least("workers", self.workers, 1)
        _at_least("max_streams", self.max_streams, 0)
        _share("sheddable_share", self.sheddable_share)
        _share("sheddable_plus_share", self.sheddable_plus_share)
        if self.feasibility_quantile is not None:
            _share("feasibility_quantile", self.feasibility_quantile)
        _positive("standing_target_s", self.standing_target_s)
        _positive("standing_interval_s", self.standing_interval_s)


WIDE_OPEN = AdmissionPolicy(queue_capacity=0, workers=100_000, max_streams=100_000)
"""Admission switched off: limits no single process reaches, so that nothing is ever without one."""


@dataclass(frozen=True, slots=True)
class BulkheadsPolicy:
    """Which calls have workers, a queue and streams of their own. Nothing named is off: all share one set.

    Compartments do not overlap: a call is in that of its method, else in that of its upstream, else in what
    is left over for all. What is full in one of them is nothing to the others.
    """

    upstreams: Mapping[str, AdmissionPolicy] = field(default_factory=dict)
    """By the upstream's name."""
    methods: Mapping[str, AdmissionPolicy] = field(default_factory=dict)
    """By ``package.Service/Method``, ``package.Service`` or an empty string, the longest match first; the
    calls of each pattern to each upstream are a compartment."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "upstreams", MappingProxyType(dict(self.upstreams)))
        object.__setattr__(self, "methods", MappingProxyType(dict(self.methods)))


@dataclass(frozen=True, slots=True)
class CallersPolicy:
    """How many connections callers may hold. One too many is closed at once, before it costs anything."""

    connections: int = 10_000
    connections_per_peer: int = 2_000
    """Of one address, or of one verified identity (TLS) where there is one. A proxy in front of the relay
    is one peer for all who come through it."""

    def __post_init__(self) -> None:
        _at_least("connections", self.connections, 1)
        _at_least("connections_per_peer", self.connections_per_peer, 1)


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How an upstream is spoken to over TLS. Names of PEM files; what they hold is nobody's business here."""

    ca: str = ""
    """The authorities that sign the upstream's certificate; empty takes the system's."""
    certificate: str = ""
    """What the relay presents of itself when the upstream asks (mTLS); empty presents nothing."""
    key: str = ""
    server_name: str = ""
    """The name that the upstream's certificate must be for; empty takes the target's host."""

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key must be given together")


@dataclass(frozen=True, slots=True)
class UpstreamPolicy:
    """A service the relay forwards to, and how its connections are kept."""

    target: str
    """``host:port`` or ``unix:path``."""
    connections: int = 1
    connect_timeout_s: float = 2.0
    silence_s: float = 0.75
    """With calls in flight and nothing received for so long, a PING asks whether anyone is there."""
    ping_timeout_s: float = 0.5
    """A connection whose PING is unanswered for so long is given up."""
    reconnect_backoff_min_s: float = 0.1
    reconnect_backoff_max_s: float = 0.5
    patience_s: float = 1.0
    """An outage this short is waited out; in a longer one attempts fail at once. 0 never waits."""
    tls: UpstreamTls | None = None
    """None speaks in cleartext."""

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("target must be host:port or unix:path, not empty")
        _at_least("connections", self.connections, 1)
        _positive("connect_timeout_s", self.connect_timeout_s)
        _positive("silence_s", self.silence_s)
        _positive("ping_timeout_s", self.ping_timeout_s)
        _positive("reconnect_backoff_min_s", self.reconnect_backoff_min_s)
        _at_least("reconnect_backoff_max_s", self.reconnect_backoff_max_s, self.reconnect_backoff_min_s)
        _at_least("patience_s", self.patience_s, 0)


@dataclass(frozen=True, slots=True)
class Route:
    """Where the calls of a service, or of one method of it, go."""

    service: str
    """``package.Service``; empty matches everything."""
    method: str | None
    """``Method``; None matches every method of the service."""
    upstream: str

    def __post_init__(self) -> None:
        if self.method and not self.service:
            raise ValueError(f"a route to method {self.method!r} must name its service")

    @property
    def pattern(self) -> str:
        """``package.Service/Method``, ``package.Service`` or an empty string."""
        return f"{self.service}/{self.method}" if self.method else self.service


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """Everything the operator decided.

    ``methods`` is keyed as routes match: ``package.Service/Method``, ``package.Service`` or ``""`` (the
    default for all). The longest match wins as a whole; nothing is merged here. With one upstream and
    no routes everything goes there. ``breakers`` is keyed likewise: the calls of one upstream that match
    one pattern share a breaker, and a call that matches none has none.

    Both look-ups are two or three probes of a dict made once. They remember nothing, so no stream of
    made-up method names can make them grow.
    """

    name: str
    upstreams: Mapping[str, UpstreamPolicy]
    methods: Mapping[str, MethodPolicy] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    admission: AdmissionPolicy = AdmissionPolicy()
    budget: RetryBudgetPolicy | None = RetryBudgetPolicy()
    throttling: RetryThrottling | None = None
    adaptive_throttle: ThrottlePolicy | None = None
    breakers: Mapping[str, BreakerPolicy] = field(default_factory=dict)
    jobs: JobPolicy = field(default_factory=JobPolicy)
    max_hops: int = 3
    """Relays a call may pass through, this one included, before it is taken for a loop."""
    clients: ClientsPolicy | None = None
    callers: CallersPolicy = CallersPolicy()
    keys: KeyLimits = field(default_factory=KeyLimits)
    dead_letters: LetterPolicy = field(default_factory=LetterPolicy)
    bulkheads: BulkheadsPolicy = field(default_factory=BulkheadsPolicy)
    alerts: AlertPolicy | None = None
    """None tells nobody."""
    criticality_caps: CriticalityCaps | None = None
    _default_method: MethodPolicy = field(init=False, repr=False, compare=False)
    _upstream_by_pattern: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _at_least("max_hops", self.max_hops, 1)
        if not self.upstreams:
            raise ValueError("upstreams must name at least one")
        if not self.routes and len(self.upstreams) > 1:
            raise ValueError(f"routes are needed to choose between the upstreams {sorted(self.upstreams)}")
        by_pattern = {route.pattern: route.upstream for route in self.routes} or {
            "": next(iter(self.upstreams))
        }
        if len(by_pattern) < len(self.routes):
            raise ValueError("routes must not name the same service and method twice")
        if unknown := set(by_pattern.values()) - set(self.upstreams):
            raise ValueError(f"routes lead to upstreams that are not there: {sorted(unknown)}")
        if unknown := set(self.bulkheads.upstreams) - set(self.upstreams):
            raise ValueError(f"bulkheads are for upstreams that are not there: {sorted(unknown)}")
        for pattern, method in self.methods.items():
            if unknown := set(method.fallback) - set(self.upstreams):
                raise ValueError(f"the fallback of {pattern!r} leads to no upstream: {sorted(unknown)}")
        # The only writes to a frozen value: its own copies and indexes, before anyone can see it.
        object.__setattr__(self, "upstreams", MappingProxyType(dict(self.upstreams)))
        object.__setattr__(self, "methods", MappingProxyType(dict(self.methods)))
        object.__setattr__(self, "breakers", MappingProxyType(dict(self.breakers)))
        object.__setattr__(self, "_default_method", self.methods.get("", MethodPolicy()))
        object.__setattr__(self, "_upstream_by_pattern", MappingProxyType(by_pattern))

    @property
    def keeps_keys(self) -> bool:
        """Whether the calls of any method need a store."""
        return any(method.idempotency is not None for method in self.methods.values())

    def method_policy(self, full_method: str) -> MethodPolicy:
        """The policy of ``package.Service/Method``: its own, else its service's, else the default."""
        return (
            self.methods.get(full_method)
            or self.methods.get(full_method.rpartition("/")[0])
            or self._default_method
        )

    @property
    def hedges(self) -> bool:
        """Whether any method may be hedged."""
        return any(method.hedging is not None for method in self.methods.values())

    def route(self, full_method: str) -> str | None:
        """The name of the upstream ``package.Service/Method`` goes to; None when no route matches."""
        routes = self._upstream_by_pattern
        return routes.get(full_method) or routes.get(full_method.rpartition("/")[0]) or routes.get("")

    def upstreams_of(self, pattern: str) -> frozenset[str]:
        """The upstreams that calls matching ``pattern`` (as in ``methods``) may go to."""
        if not pattern:
            return frozenset(self.upstreams)
        inside = {route.upstream for route in self.routes if route.pattern.startswith(f"{pattern}/")}
        whole = self.route(pattern if "/" in pattern else f"{pattern}/")
        return frozenset(inside | {whole} if whole else inside)
