"""From a preset's name or a file's path to the `RelayPolicy` that the core reads."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from relay_service.config.addresses import parse_target
from relay_service.config.admissions import admission_policy, bulkheads_policy
from relay_service.config.document import Document, layers, read_document
from relay_service.config.job_policies import batch_policy, dead_letter_policy, job_policy
from relay_service.config.merge import Merged, merge
from relay_service.config.problems import ConfigError, Problem, shown
from relay_service.config.schema import (
    GrpcHedgingBlock,
    IdempotencyBlock,
    MethodConfig,
    TlsBlock,
    UpstreamBlock,
)
from relay_service.config.settings import Settings
from relay_service.core.alert_policy import AlertPolicy
from relay_service.core.criticality import Criticality
from relay_service.core.evidence import Safety
from relay_service.core.jitter import Jitter
from relay_service.core.key_policy import IdempotencyPolicy, InFlight, KeyLimits
from relay_service.core.policy import (
    NO_RETRY,
    WIDE_OPEN,
    BreakerPolicy,
    CallersPolicy,
    ClientQuota,
    ClientsPolicy,
    CriticalityCaps,
    HedgePolicy,
    MethodPolicy,
    RelayPolicy,
    RetryBudgetPolicy,
    RetryPolicy,
    RetryThrottling,
    Route,
    ThrottlePolicy,
    UpstreamPolicy,
    UpstreamTls,
)

HEDGE_RETRY_MIN_S = 0.001
"""Where a ``hedgingPolicy`` has no delay; a wait of nothing would be a loop."""

ONLY_UPSTREAM = "upstream"
"""What the one upstream is called when no file names any."""


def load_policy(source: str, target: str) -> RelayPolicy:
    """Read the policy ``source``: the name of a preset, or the path of a file.

    ``target`` (``host:port`` or ``unix:path``) is the upstream when the policy names none.
    Raises `ConfigError` with everything that is wrong.
    """
    return build_policy(read_document(source), target)


def policy_of(settings: Settings) -> RelayPolicy:
    """The policy the settings ask for.

    Raises `ConfigError` with everything that is wrong in it, and when an upstream was set although the
    policy names its own: one of the two would be ignored.
    """
    return policy_from(read_document(settings.policy), settings)


def policy_from(document: Document, settings: Settings) -> RelayPolicy:
    """The same for a document that was read already."""
    if "upstream" in settings.model_fields_set and merge(layers(document)).upstreams:
        allowed = f"must not be set: {document.where} names its own upstreams"
        raise ConfigError([Problem("upstream", "", f"got {shown(settings.upstream)}", allowed)])
    return build_policy(document, settings.upstream)


def build_policy(document: Document, target: str) -> RelayPolicy:
    """The policy a checked document means, on top of the presets it is based on.

    Raises `ConfigError` when its routes and upstreams do not meet, or ``target`` is no address.
    """
    merged = merge(layers(document))
    upstreams = _upstreams(merged, target)
    if problems := list(_unmet_routes(merged, upstreams, document.where)):
        raise ConfigError(problems)
    return RelayPolicy(
        name=merged.name,
        upstreams=upstreams,
        methods={pattern: _method_policy(merged, pattern) for pattern in merged.patterns() | {""}},
        routes=tuple(Route(route.service or "", route.method, route.upstream) for route in merged.routes),
        callers=CallersPolicy(**merged.callers_fields),
        admission=WIDE_OPEN if "admission" in merged.off else admission_policy(merged.admission_fields),
        bulkheads=bulkheads_policy(merged, upstreams),
        clients=_clients(merged),
        criticality_caps=_criticality_caps(merged.criticality_fields),
        budget=None if "retryBudget" in merged.off else RetryBudgetPolicy(**merged.budget_fields),
        throttling=_throttling(merged),
        adaptive_throttle=_adaptive_throttle(merged),
        breakers=_breakers(merged),
        jobs=job_policy(merged.job_fields),
        dead_letters=dead_letter_policy(merged.letter_fields),
        alerts=AlertPolicy(**merged.alert_fields) if merged.alert_fields is not None else None,
        keys=KeyLimits(**merged.keys_fields),
        max_hops=merged.max_hops,
    )


def _upstreams(merged: Merged, target: str) -> dict[str, UpstreamPolicy]:
    if merged.upstreams:
        return {name: _upstream(block) for name, block in merged.upstreams.items()}
    try:
        return {ONLY_UPSTREAM: UpstreamPolicy(str(parse_target(target)))}
    except ValueError as error:
        raise ConfigError([Problem("upstream", "", f"got {shown(target)}", str(error))]) from error


def _upstream(block: UpstreamBlock) -> UpstreamPolicy:
    given = block.fields_given()
    given.pop("bulkhead", None)
    tls = given.pop("tls", None)
    return UpstreamPolicy(**given, tls=_tls(tls) if tls is not None else None)


def _tls(block: TlsBlock) -> UpstreamTls:
    return UpstreamTls(**{name: value for name, value in block.fields_given().items() if value is not None})


def _unmet_routes(merged: Merged, upstreams: Mapping[str, UpstreamPolicy], where: str) -> Iterable[Problem]:
    known = ", ".join(upstreams)
    for index, route in enumerate(merged.routes):
        if route.upstream not in upstreams:
            found = f"got {shown(route.upstream)}"
            yield Problem(
                where, f"relay.routes[{index}].upstream", found, f"must be one of relay.upstreams ({known})"
            )
    for pattern, given in merged.method_fields.items():
        for name in given.get("fallback", ()):
            if name not in upstreams:
                yield Problem(
                    where,
                    f"relay.methods ({pattern or 'every method'}).fallback",
                    f"got {shown(name)}",
                    f"must be one of relay.upstreams ({known})",
                )
    if len(upstreams) > 1 and not merged.routes:
        yield Problem(where, "relay.routes", "", f"is required to choose between the upstreams {known}")


def _method_policy(merged: Merged, pattern: str) -> MethodPolicy:
    config = merged.method_config(pattern)
    given = dict(merged.fields_of(pattern))
    given["fallback"] = () if "fallback" in merged.off else tuple(given.get("fallback", ()))
    jitter = Jitter(given.pop("jitter", Jitter.FULL.value))
    safety = given.pop("safety", None)
    batch = batch_policy(given.pop("batch", None))
    hedging = _hedging_of_grpc(config)
    if "hedging" in given:
        block = given.pop("hedging")
        hedging = HedgePolicy(**block.fields_given()) if block is not None else None
    idempotency = _idempotency(given.pop("idempotency", None))
    policy = MethodPolicy(
        **given,
        safety=Safety(safety) if safety else None,
        retry=_retry(config, jitter, merged.off),
        batch=batch,
        hedging=hedging,
        idempotency=idempotency,
    )
    if config is not None and config.timeout_s is not None:
        policy = _with_grpc_timeout(policy, config.timeout_s)
    return replace(policy, **_switched_off(merged.off))


def _idempotency(block: IdempotencyBlock | None) -> IdempotencyPolicy | None:
    """The block of the narrowest entry that has one, whole."""
    if block is None:
        return None
    return IdempotencyPolicy(**(block.fields_given() | {"in_flight": InFlight(block.in_flight)}))


def _retry(config: MethodConfig | None, jitter: Jitter, off: frozenset[str]) -> RetryPolicy:
    """As in gRPC, nothing is retried where no entry says so.

    With retries off the codes keep their word: what they say of an answer is as true of the only attempt.
    """
    if config is None:
        return NO_RETRY
    block = config.retry_policy
    if "retry" in off:
        return (
            NO_RETRY if block is None else replace(NO_RETRY, retryable_codes=frozenset(block.retryable_codes))
        )
    if config.hedging_policy is not None:
        return _retry_of_hedging(config.hedging_policy, jitter)
    if block is None:
        return NO_RETRY
    return RetryPolicy(
        max_attempts=block.max_attempts,
        initial_backoff_s=block.initial_backoff_s,
        max_backoff_s=block.max_backoff_s,
        backoff_multiplier=block.backoff_multiplier,
        jitter=jitter,
        retryable_codes=frozenset(block.retryable_codes),
    )


def _retry_of_hedging(block: GrpcHedgingBlock, jitter: Jitter) -> RetryPolicy:
    """When all attempts under way have failed and gRPC would hedge at once, the next is made as a retry.

    The codes of a ``hedgingPolicy`` say what is worth another attempt, and not that nothing was executed.
    """
    wait_s = max(block.hedging_delay_s, HEDGE_RETRY_MIN_S)
    return RetryPolicy(
        max_attempts=block.max_attempts,
        initial_backoff_s=wait_s,
        max_backoff_s=wait_s,
        backoff_multiplier=1.0,
        jitter=jitter,
        retryable_codes=frozenset(),
    )


def _hedging_of_grpc(config: MethodConfig | None) -> HedgePolicy | None:
    """gRPC knows a fixed delay only."""
    if config is None or config.hedging_policy is None:
        return None
    block = config.hedging_policy
    return HedgePolicy(
        max_attempts=block.max_attempts,
        quantile=None,
        min_delay_s=block.hedging_delay_s,
        non_fatal_codes=frozenset(block.non_fatal_codes),
    )


def _with_grpc_timeout(policy: MethodPolicy, timeout_s: float) -> MethodPolicy:
    """gRPC's ``timeout`` is the default deadline and also the longest a caller gets."""
    cap_s = timeout_s if policy.max_timeout_s is None else min(timeout_s, policy.max_timeout_s)
    return replace(policy, default_timeout_s=cap_s, max_timeout_s=cap_s)


def _switched_off(off: frozenset[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if "hedging" in off:
        changes["hedging"] = None
    if "attemptTimeout" in off:
        changes["attempt_timeout_s"] = None
    if "deadlines" in off:
        changes |= {"default_timeout_s": None, "max_timeout_s": None}
    return changes


def _breakers(merged: Merged) -> dict[str, BreakerPolicy]:
    """Each upstream has one, and each entry of ``relay.methods`` that asks for its own has that."""
    if "breaker" in merged.off:
        return {}
    return {pattern: BreakerPolicy(**merged.breaker_of(pattern)) for pattern in merged.breaker_fields}


def _clients(merged: Merged) -> ClientsPolicy | None:
    default, named = merged.client_quota, merged.client_quotas
    if "clientQuotas" in merged.off or (default is None and not named):
        return None
    return ClientsPolicy(
        None if default is None else ClientQuota(default.rate_per_s, default.burst),
        {name: ClientQuota(block.rate_per_s, block.burst) for name, block in named.items()},
    )


def _criticality_caps(given: Mapping[str, Any] | None) -> CriticalityCaps | None:
    if given is None:
        return None
    named = {identity: Criticality[name] for identity, name in given.get("identities", {}).items()}
    classes = {field: Criticality[name] for field, name in given.items() if field != "identities"}
    return CriticalityCaps(**classes, named=named)


def _throttling(merged: Merged) -> RetryThrottling | None:
    if merged.throttling is None or "retryThrottling" in merged.off:
        return None
    return RetryThrottling(merged.throttling.max_tokens, merged.throttling.token_ratio)


def _adaptive_throttle(merged: Merged) -> ThrottlePolicy | None:
    if merged.throttle_fields is None or "adaptiveThrottle" in merged.off:
        return None
    return ThrottlePolicy(**merged.throttle_fields)
