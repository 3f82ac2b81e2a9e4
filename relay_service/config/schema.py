"""The policy file's shape: gRPC's service config and a ``relay`` block beside it.

Each model checks one JSON object by itself; what concerns several objects at once is in `checks`.
A field has the name of the core value it fills and is spelt in the file as gRPC spells its own: in
camelCase and, since a duration carries its unit, without the ``_s``.

Source of the gRPC part: https://github.com/grpc/grpc-proto/blob/master/grpc/service_config/service_config.proto
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from relay_service.config.addresses import parse_target
from relay_service.config.durations import parse_duration
from relay_service.core.alert_policy import AlertPolicy
from relay_service.core.job_policy import (
    BatchItems,
    BatchPolicy,
    BatchResults,
    JobPolicy,
    JobRetryPolicy,
)
from relay_service.core.key_policy import IdempotencyPolicy, KeyLimits
from relay_service.core.letter_policy import LetterPolicy, Recovery, RecoveryRule
from relay_service.core.policy import (
    HEDGE_QUANTILE,
    AdmissionPolicy,
    BreakerPolicy,
    CallersPolicy,
    HedgePolicy,
    MethodPolicy,
    RetryBudgetPolicy,
    ThrottlePolicy,
    UpstreamPolicy,
)
from relay_service.core.status import Code

# The core's own defaults, so that there is one place where each is written down.
_METHOD = MethodPolicy()
_UPSTREAM = UpstreamPolicy(target="host:1")
_ADMISSION = AdmissionPolicy()
_BUDGET = RetryBudgetPolicy()
_CALLERS = CallersPolicy()
_BREAKER = BreakerPolicy()
_JOBS = JobPolicy()
_JOB_RETRY = JobRetryPolicy()
_BATCH = BatchPolicy(method="S/M")
_ITEMS = BatchItems()
_RESULTS = BatchResults()
_RULE = RecoveryRule(Recovery.REQUEUE)
_THROTTLE = ThrottlePolicy()
_HEDGING = HedgePolicy()
_KEEPING = IdempotencyPolicy()
_KEYS = KeyLimits()
_LETTERS = LetterPolicy()
_ALERTS = AlertPolicy()


def _duration(value: Any) -> float:
    if not isinstance(value, str):
        wanted = f'"{value}s"' if isinstance(value, int | float) and not isinstance(value, bool) else '"0.1s"'
        raise ValueError(f"must be a duration in quotes such as {wanted}")  # noqa: TRY004 (pydantic wants ValueError)
    return parse_duration(value)


def _positive_duration(value: Any) -> float:
    seconds = _duration(value)
    if seconds == 0:
        raise ValueError("must be longer than 0s")
    return seconds


def _code(value: Any) -> Code:
    """A status code by name (any case) or number, as gRPC allows."""
    try:
        if isinstance(value, bool):
            raise ValueError(value)  # noqa: TRY004, TRY301 (True is 1 to Python, and no code to anyone)
        code = Code[value.upper()] if isinstance(value, str) else Code(value)
    except (KeyError, ValueError):
        names = ", ".join(code.name for code in Code if code is not Code.OK)
        raise ValueError(f"must be one of {names}, or its number") from None
    if code is Code.OK:
        raise ValueError("must not be OK: a success is never retried")
    return code


def _target(value: str) -> str:
    return str(parse_target(value))


PositiveDuration = Annotated[float, BeforeValidator(_positive_duration)]
Duration = Annotated[float, BeforeValidator(_duration)]
RetryableCode = Annotated[Code, BeforeValidator(_code)]
Target = Annotated[str, AfterValidator(_target)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ServiceName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*$", max_length=255)]
MethodName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$", max_length=255)]
UpstreamName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,62}$")]
FileName = Annotated[str, Field(min_length=1, max_length=4096)]
Ratio = Annotated[float, Field(gt=0, le=1)]
ClientName = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
Switch = Literal[
    "retry",
    "hedging",
    "retryBudget",
    "retryThrottling",
    "adaptiveThrottle",
    "fallback",
    "breaker",
    "admission",
    "bulkhead",
    "clientQuotas",
    "attemptTimeout",
    "deadlines",
]


def _spelling(field_name: str) -> str:
    return to_camel(field_name.removesuffix("_s"))


class Block(BaseModel):
    """One JSON object of the file: unknown fields are errors, and a string is never taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=_spelling)

    def fields_given(self) -> dict[str, Any]:
        """Only what the file says, by core name: what a later layer lays over an earlier one."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Name(Block):
    """Which methods an entry is for: one method, one service, or (empty) all."""

    service: ServiceName | None = None
    method: MethodName | None = None

    @property
    def pattern(self) -> str:
        """``package.Service/Method``, ``package.Service`` or an empty string."""
        return f"{self.service or ''}/{self.method}" if self.method else self.service or ""


Names = Annotated[list[Name], Field(min_length=1, max_length=1000)]


class RetryBlock(Block):
    """gRPC's ``retryPolicy``; ``maxAttempts`` may exceed 5 and the list of codes may be empty."""

    max_attempts: Annotated[int, Field(ge=2, le=100)]
    initial_backoff_s: PositiveDuration
    max_backoff_s: PositiveDuration
    backoff_multiplier: Annotated[float, Field(ge=1, le=1000)]
    retryable_codes: list[RetryableCode] = Field(alias="retryableStatusCodes")


class GrpcHedgingBlock(Block):
    """gRPC's ``hedgingPolicy``; ``maxAttempts`` may exceed 5."""

    max_attempts: Annotated[int, Field(ge=2, le=100)]
    hedging_delay_s: Duration = 0.0
    non_fatal_codes: list[RetryableCode] = Field(default=[], alias="nonFatalStatusCodes")


class MethodConfig(Block):
    """An entry of gRPC's ``methodConfig``. Without one of the two policies nothing is repeated."""

    name: Names
    timeout_s: PositiveDuration | None = None
    retry_policy: RetryBlock | None = None
    hedging_policy: GrpcHedgingBlock | None = None


class ThrottlingBlock(Block):
    """gRPC's ``retryThrottling``."""

    max_tokens: Annotated[int, Field(ge=1, le=1000)]
    token_ratio: Positive


class BreakerBlock(Block):
    """``relay.breaker``, and the ``breaker`` of an entry of ``relay.methods``."""

    consecutive_failures: Annotated[int, Field(ge=1, le=1_000_000)] | None = _BREAKER.consecutive_failures
    failure_ratio: Ratio | None = _BREAKER.failure_ratio
    slow_ratio: Ratio = _BREAKER.slow_ratio
    slow_call_s: PositiveDuration | None = _BREAKER.slow_call_s
    stuck_call_s: PositiveDuration | None = _BREAKER.stuck_call_s
    window_s: PositiveDuration = _BREAKER.window_s
    min_calls: Annotated[int, Field(ge=1, le=1_000_000)] = _BREAKER.min_calls
    open_s: PositiveDuration = Field(default=_BREAKER.open_s, alias="openTime")
    probes: Annotated[int, Field(ge=1, le=1000)] = _BREAKER.probes
    probe_successes: Annotated[int, Field(ge=1, le=1000)] = _BREAKER.probe_successes
    probe_timeout_s: PositiveDuration = _BREAKER.probe_timeout_s
    ramp_s: PositiveDuration | None = Field(default=_BREAKER.ramp_s, alias="rampTime")


FieldNumber = Annotated[int, Field(ge=1, le=536_870_911)]


class BatchItemsBlock(Block):
    """``relay.methods[].batch.items``, by protobuf field number."""

    field: FieldNumber = _ITEMS.field
    request_field: FieldNumber | None = _ITEMS.request_field
    key_field: FieldNumber | None = _ITEMS.key_field


class BatchResultsBlock(Block):
    """``relay.methods[].batch.results``, by protobuf field number."""

    field: FieldNumber = _RESULTS.field
    code_field: FieldNumber | None = _RESULTS.code_field
    message_field: FieldNumber | None = _RESULTS.message_field
    answer_field: FieldNumber | None = _RESULTS.answer_field
    answer_as: FieldNumber | None = _RESULTS.answer_as


class BatchBlock(Block):
    """``relay.methods[].batch``: durable jobs of the method joined into calls of another."""

    method: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*/[A-Za-z_]\w*$", max_length=511)]
    max_size: Annotated[int, Field(ge=2, le=10_000)] = _BATCH.max_size
    max_delay_s: Duration = _BATCH.max_delay_s
    items: BatchItemsBlock = BatchItemsBlock()
    results: BatchResultsBlock = BatchResultsBlock()


class HedgingBlock(Block):
    """The ``hedging`` of an entry of ``relay.methods``."""

    quantile: Annotated[float, Field(ge=0.5, le=0.999)] = HEDGE_QUANTILE
    min_delay_s: Duration = _HEDGING.min_delay_s
    max_attempts: Annotated[int, Field(ge=2, le=10)] = _HEDGING.max_attempts
    min_samples: Annotated[int, Field(ge=1, le=10_000)] = _HEDGING.min_samples


class IdempotencyBlock(Block):
    """The ``idempotency`` of an entry of ``relay.methods``."""

    in_flight: Literal["wait", "abort"] = _KEEPING.in_flight.value
    keep_s: PositiveDuration = _KEEPING.keep_s
    keep_errors_s: PositiveDuration = _KEEPING.keep_errors_s
    settle_s: Duration = Field(default=_KEEPING.settle_s, alias="settleTimeout")
    payload_keys: bool = _KEEPING.payload_keys


class LimitBlock(Block):
    """The ``limit`` of ``relay.admission`` and of a ``bulkhead``."""

    kind: Literal["fixed", "aimd", "gradient"]
    min: Annotated[int, Field(ge=1, le=1_000_000)] = _ADMISSION.limit.min
    max: Annotated[int, Field(ge=1, le=1_000_000)] = _ADMISSION.limit.max
    initial: Annotated[int, Field(ge=1, le=1_000_000)] = _ADMISSION.limit.initial
    latency_objective_s: PositiveDuration | None = _ADMISSION.limit.latency_objective_s


class AdmissionBlock(Block):
    """``relay.admission``, and each ``bulkhead``, which is laid over it."""

    queue_capacity: Annotated[int, Field(ge=0, le=1_000_000)] = _ADMISSION.queue_capacity
    workers: Annotated[int, Field(ge=1, le=1_000_000)] = _ADMISSION.workers
    limit: LimitBlock | None = None
    max_streams: Annotated[int, Field(ge=0, le=1_000_000)] = _ADMISSION.max_streams
    sheddable_share: Annotated[float, Field(ge=0, le=1)] = _ADMISSION.sheddable_share
    sheddable_plus_share: Annotated[float, Field(ge=0, le=1)] = _ADMISSION.sheddable_plus_share
    feasibility_quantile: Annotated[float, Field(ge=0.01, le=0.99)] | None = _ADMISSION.feasibility_quantile
    queue_order: Literal["fifo", "adaptive-lifo"] = "fifo"
    standing_shed: Literal["none", "codel", "door"] = "none"
    standing_target_s: PositiveDuration = _ADMISSION.standing_target_s
    standing_interval_s: PositiveDuration = _ADMISSION.standing_interval_s


class MethodBlock(Block):
    """An entry of ``relay.methods``: what gRPC has no words for."""

    name: Names
    safety: Literal["NO_SIDE_EFFECTS", "IDEMPOTENT", "KEYED", "NONE"] | None = None
    unary: bool | None = None
    key_required: bool = _METHOD.key_required
    default_timeout_s: PositiveDuration | None = _METHOD.default_timeout_s
    max_timeout_s: PositiveDuration | None = _METHOD.max_timeout_s
    attempt_timeout_s: PositiveDuration | None = _METHOD.attempt_timeout_s
    jitter: Literal["none", "full", "equal", "decorrelated"] = "full"
    fallback: Annotated[list[UpstreamName], Field(max_length=10)] = []
    replay_buffer_bytes: Annotated[int, Field(ge=0, le=64 * 1024 * 1024)] = _METHOD.replay_buffer_bytes
    max_message_bytes: Annotated[int, Field(ge=1, le=1024 * 1024 * 1024)] = _METHOD.max_message_bytes
    hedging: HedgingBlock | None = None
    breaker: BreakerBlock | None = None
    bulkhead: AdmissionBlock | None = None
    batch: BatchBlock | None = None
    idempotency: IdempotencyBlock | None = None


class TlsBlock(Block):
    """``tls`` of one of ``relay.upstreams``; empty means the system's authorities and no certificate."""

    ca: FileName | None = None
    certificate: FileName | None = None
    key: FileName | None = None
    server_name: FileName | None = None

    @model_validator(mode="after")
    def _together(self) -> "TlsBlock":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("must hold certificate and key together or neither")
        return self


class UpstreamBlock(Block):
    """One of ``relay.upstreams``."""

    target: Target
    connections: Annotated[int, Field(ge=1, le=64)] = _UPSTREAM.connections
    connect_timeout_s: PositiveDuration = _UPSTREAM.connect_timeout_s
    silence_s: PositiveDuration = _UPSTREAM.silence_s
    ping_timeout_s: PositiveDuration = _UPSTREAM.ping_timeout_s
    reconnect_backoff_min_s: PositiveDuration = _UPSTREAM.reconnect_backoff_min_s
    reconnect_backoff_max_s: PositiveDuration = _UPSTREAM.reconnect_backoff_max_s
    patience_s: Duration = _UPSTREAM.patience_s
    tls: TlsBlock | None = None
    bulkhead: AdmissionBlock | None = None


class RouteBlock(Block):
    """One of ``relay.routes``."""

    service: ServiceName | None = None
    method: MethodName | None = None
    upstream: UpstreamName


Class = Literal["CRITICAL_PLUS", "CRITICAL", "SHEDDABLE_PLUS", "SHEDDABLE"]
Identity = Annotated[str, Field(min_length=1, max_length=1024)]


class CriticalityBlock(Block):
    """``relay.criticality``: the highest class that callers get."""

    anonymous: Class = "CRITICAL_PLUS"
    identified: Class = "CRITICAL_PLUS"
    identities: Annotated[dict[Identity, Class], Field(max_length=10_000)] = {}


class QuotaBlock(Block):
    """``relay.clients.default``, and an entry of ``relay.clients.named``."""

    rate_per_s: Positive = Field(alias="ratePerSecond")
    burst: Annotated[float, Field(ge=1, le=1_000_000)]


class ClientsBlock(Block):
    """``relay.clients``."""

    default: QuotaBlock | None = None
    named: Annotated[dict[ClientName, QuotaBlock], Field(max_length=10_000)] = {}


class CallersBlock(Block):
    """``relay.callers``."""

    connections: Annotated[int, Field(ge=1, le=1_000_000)] = _CALLERS.connections
    connections_per_peer: Annotated[int, Field(ge=1, le=1_000_000)] = _CALLERS.connections_per_peer


class BudgetBlock(Block):
    """``relay.retryBudget``."""

    ratio: Annotated[float, Field(ge=0, le=10)] = _BUDGET.ratio
    burst: Annotated[float, Field(ge=1, le=1_000_000)] = _BUDGET.burst
    floor_per_s: NotNegative = Field(default=_BUDGET.floor_per_s, alias="floorPerSecond")


class JobsBlock(Block):
    """``relay.jobs``: durable jobs."""

    workers: Annotated[int, Field(ge=1, le=10_000)] = _JOBS.workers
    lease_s: PositiveDuration = _JOBS.lease_s
    progress_s: PositiveDuration = Field(default=_JOBS.progress_s, alias="progressLimit")
    ttl_s: PositiveDuration = Field(default=_JOBS.ttl_s, alias="timeToLive")
    keep_s: Duration = _JOBS.keep_s
    max_unfinished: Annotated[int, Field(ge=1, le=1_000_000_000)] = _JOBS.max_unfinished
    poison_after: Annotated[int, Field(ge=1, le=1000)] = _JOBS.poison_after
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = _JOB_RETRY.max_attempts
    initial_backoff_s: PositiveDuration = _JOB_RETRY.initial_backoff_s
    max_backoff_s: PositiveDuration = _JOB_RETRY.max_backoff_s
    backoff_multiplier: Annotated[float, Field(ge=1, le=1000)] = _JOB_RETRY.backoff_multiplier
    jitter: Literal["none", "full", "equal"] = "equal"


class RecoveryBlock(Block):
    """One of ``relay.deadLetters.recovery``."""

    action: Literal["discard", "retry", "requeue"]
    delay_s: Duration = _RULE.delay_s
    limit: Annotated[int, Field(ge=1, le=100)] = _RULE.limit


CauseName = Literal[
    "RETRIES_EXHAUSTED", "NON_RETRYABLE", "DEADLINE", "AMBIGUOUS", "POISON", "EXPIRED", "OPERATOR"
]


class KeysBlock(Block):
    """``relay.keys``."""

    lease_s: PositiveDuration = _KEYS.lease_s
    waiters: Annotated[int, Field(ge=1, le=1_000_000)] = _KEYS.waiters
    waiters_per_key: Annotated[int, Field(ge=1, le=1_000_000)] = _KEYS.waiters_per_key
    tombstone_s: PositiveDuration = _KEYS.tombstone_s


class DeadLettersBlock(Block):
    """``relay.deadLetters``."""

    on_exhausted: bool = _LETTERS.on_exhausted
    max_entries: Annotated[int, Field(ge=1, le=100_000_000)] = _LETTERS.max_entries
    keep_s: PositiveDuration = _LETTERS.keep_s
    recovery: dict[CauseName, RecoveryBlock] = {}


class AdaptiveThrottleBlock(Block):
    """``relay.adaptiveThrottle``; ``{}`` takes the defaults, and without it there is none."""

    k: Annotated[float, Field(ge=1, le=100)] = _THROTTLE.k
    window_s: PositiveDuration = _THROTTLE.window_s
    min_calls: Annotated[int, Field(ge=1, le=1_000_000)] = _THROTTLE.min_calls
    max_rejection: Annotated[float, Field(ge=0.01, le=0.99)] = _THROTTLE.max_rejection


class AlertsBlock(Block):
    """``relay.alerts``; ``{}`` takes the defaults, and without it there are none."""

    store_away_s: Duration = _ALERTS.store_away_s
    upstream_away_s: Duration = _ALERTS.upstream_away_s
    breaker_open_s: Duration = _ALERTS.breaker_open_s
    oldest_ready_s: PositiveDuration = _ALERTS.oldest_ready_s
    dead_letters_share: Annotated[float, Field(ge=0.001, le=1)] = _ALERTS.dead_letters_share
    error_share: Annotated[float, Field(ge=0.001, le=1)] = _ALERTS.error_share
    error_calls_min: Annotated[int, Field(ge=1, le=1_000_000)] = _ALERTS.error_calls_min
    leases_lost_max: Annotated[int, Field(ge=1, le=1_000_000)] = _ALERTS.leases_lost_max
    window_s: PositiveDuration = _ALERTS.window_s
    repeat_s: PositiveDuration = _ALERTS.repeat_s


class RelayBlock(Block):
    """``relay``: all that is ours."""

    preset: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    methods: Annotated[list[MethodBlock], Field(max_length=1000)] = []
    upstreams: Annotated[dict[UpstreamName, UpstreamBlock], Field(max_length=100)] = {}
    routes: Annotated[list[RouteBlock], Field(max_length=10_000)] = []
    admission: AdmissionBlock = AdmissionBlock()
    bulkhead: AdmissionBlock | None = None
    clients: ClientsBlock = ClientsBlock()
    criticality: CriticalityBlock | None = None
    callers: CallersBlock = CallersBlock()
    retry_budget: BudgetBlock = BudgetBlock()
    adaptive_throttle: AdaptiveThrottleBlock | None = None
    breaker: BreakerBlock = BreakerBlock()
    jobs: JobsBlock = JobsBlock()
    keys: KeysBlock = KeysBlock()
    dead_letters: DeadLettersBlock = DeadLettersBlock()
    alerts: AlertsBlock | None = None
    max_hops: Annotated[int, Field(ge=1, le=100)] = 3
    off: list[Switch] = []


class PolicyFile(Block):
    """The whole file."""

    method_config: Annotated[list[MethodConfig], Field(max_length=1000)] = []
    retry_throttling: ThrottlingBlock | None = None
    relay: RelayBlock = RelayBlock()
