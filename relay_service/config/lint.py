"""What is allowed in a policy file and yet is likely not what its author meant.

Two kinds: what the same words would do in a stock gRPC client (the file may be shared with one), and
what defeats itself here. A finding never stops the relay; an error does, and is a `Problem`.
"""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from relay_service.config.checks import admissions
from relay_service.config.document import Document, layers
from relay_service.config.durations import format_duration
from relay_service.config.loading import build_policy
from relay_service.config.merge import widening
from relay_service.config.schema import (
    AdmissionBlock,
    GrpcHedgingBlock,
    MethodBlock,
    MethodConfig,
    PolicyFile,
    RetryBlock,
)
from relay_service.core.budget import HEDGE_RESERVE
from relay_service.core.criticality import Criticality
from relay_service.core.evidence import DEFINITE_CODES, Safety
from relay_service.core.policy import (
    AdmissionPolicy,
    BreakerPolicy,
    HedgePolicy,
    MethodPolicy,
    QueueOrder,
    RelayPolicy,
    RetryBudgetPolicy,
    RetryPolicy,
    StandingShed,
)
from relay_service.core.status import Code

GRPC_MAX_ATTEMPTS = 5
"""A gRPC client treats more as 5 (gRFC A6)."""
GRPC_TOKEN_RATIO_STEP = 0.001
"""A gRPC client drops further decimals (gRFC A6)."""

_MAYBE_EXECUTED = frozenset(
    {Code.CANCELLED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.DATA_LOSS}
)
"""Codes a server gives, as a rule, after it began to execute."""


class Rule(StrEnum):
    """What a finding is about. The names are stable: a build may filter by them."""

    GRPC_TIMEOUT = "grpc-timeout"
    """A ``timeout``, which gRPC in Python fires early."""
    GRPC_MAX_ATTEMPTS = "grpc-max-attempts"
    """More attempts than a gRPC client makes."""
    GRPC_TOKEN_RATIO = "grpc-token-ratio"  # noqa: S105 (these tokens open nothing)
    """A ratio that gRPC rounds to nothing."""
    GRPC_NO_CODES = "grpc-no-codes"
    """An empty list of codes, which gRPC refuses."""
    RETRIES_DEFINITE_ANSWER = "retries-definite-answer"
    """A retryable code that a retry seldom changes."""
    RESOURCE_EXHAUSTED = "resource-exhausted"
    """A retryable code that needs pushback as well."""
    NOTHING_RETRIED = "nothing-retried"
    """No entry retries anything."""
    RETRY_LOST = "retry-lost"
    """A narrower entry without the retries of a wider one."""
    DEFAULT_OVER_MAX = "default-over-max"
    """A default deadline above the cap."""
    BACKOFF_OVER_DEADLINE = "backoff-over-deadline"
    """Waits that do not fit into the deadline."""
    ATTEMPT_TAKES_ALL = "attempt-takes-all"
    """One silent attempt can use up the deadline."""
    KEY_WITHOUT_EFFECT = "key-without-effect"
    """A required key that allows no retry."""
    PAYLOAD_KEYS_UNUSED = "payload-keys-unused"
    """Keys made for calls that are refused for having none."""
    LETTERS_WITHOUT_KEYS = "letters-without-keys"
    """Dead letters of keyed calls where no keys are kept."""
    KEYED_WITHOUT_RETRY = "keyed-without-retry"
    """A method made safe to repeat that is not repeated."""
    RETRIES_EXECUTED_WORK = "retries-executed-work"
    """Retryable codes that often follow the effect."""
    GRPC_HEDGING = "grpc-hedging"
    """A ``hedgingPolicy``, which gRPC in Python ignores."""
    HEDGING_WITHOUT_EFFECT = "hedging-without-effect"
    """Hedging of methods that are never hedged."""
    HEDGING_TOO_LATE = "hedging-too-late"
    """A wait before the hedge that attempts do not live to see."""
    HEDGING_UNBOUNDED = "hedging-unbounded"
    """Hedging without a budget."""
    HEDGING_UNPAID = "hedging-unpaid"
    """A budget that never has enough for a hedge."""
    BREAKER_NEVER_OPENS = "breaker-never-opens"
    """A breaker with every limit off."""
    BREAKER_LIMIT_TOO_LATE = "breaker-limit-too-late"
    """A limit on an attempt's length that attempts do not live to see."""
    BREAKER_PROBE_TOO_SHORT = "breaker-probe-too-short"
    """A lease that ends before a probe that is merely slow."""
    SHARED_LIMIT = "shared-limit"
    """Several upstreams that take their workers from one pool."""
    CAPS_WITHOUT_EFFECT = "caps-without-effect"
    """Highest classes that hold nobody back."""
    WORKERS_WITHOUT_EFFECT = "workers-without-effect"
    """A number of workers beside a limit that adapts itself."""
    STANDING_WITHOUT_EFFECT = "standing-without-effect"
    """Words about a standing queue with nothing done about one."""
    DOOR_NEWEST_FIRST = "door-newest-first"
    """Newest first behind a door that keeps the queue short."""
    UPSTREAM_UNUSED = "upstream-unused"
    """An upstream without a route."""
    METHOD_UNROUTED = "method-unrouted"
    """Words about a method that no route reaches."""
    SAFETY_UNDECLARED = "safety-undeclared"
    """A method of the service of which nobody says what a repeat does."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at again; ``path`` is a place in the file."""

    rule: Rule
    path: str
    text: str


def findings(document: Document, target: str) -> list[Finding]:
    """All findings in a document that has no errors, in the order of the file.

    ``target`` stands in for the upstream of a file that names none.
    Raises `ConfigError` when the document and its presets do not make a policy.
    """
    policy = build_policy(document, target)
    return [
        *_read_by_grpc(document.content),
        *_nothing_retried(document, policy),
        *(found for entry in _entries(document.content) for found in _effects(*entry, policy)),
        *_hedging(document.content, policy),
        *_breakers(document.content, policy),
        *_workers(document.content),
        *_shared(document, policy),
        *_caps(document.content, policy),
        *_standing(document.content, policy),
        *_letters(document.content, policy),
        *_unused(document.content, policy),
    ]


def undeclared(document: Document, target: str, by_proto: Mapping[str, Safety | None]) -> list[Finding]:
    """The methods of which nobody says what a second execution would do.

    ``by_proto`` is what the protos say, by ``package.Service/Method``; methods without a route are left out.
    Raises ConfigError as `findings` does.
    """
    policy = build_policy(document, target)
    text = "neither its idempotency_level nor relay.methods says what a repeat does: taken for NONE"
    return [
        Finding(Rule.SAFETY_UNDECLARED, method, text)
        for method, safety in sorted(by_proto.items())
        if safety is None and policy.route(method) and policy.method_policy(method).safety is None
    ]


def _read_by_grpc(file: PolicyFile) -> Iterator[Finding]:
    for index, entry in enumerate(file.method_config):
        here = f"methodConfig[{index}]"
        if entry.timeout_s is not None:
            text = (
                "gRPC in Python fires it about 1 s early; here it is exact. It also caps what callers ask for"
            )
            yield Finding(Rule.GRPC_TIMEOUT, f"{here}.timeout", text)
        if entry.retry_policy is not None:
            yield from _retry_read_by_grpc(entry.retry_policy, f"{here}.retryPolicy")
        if entry.hedging_policy is not None:
            yield from _hedging_read_by_grpc(entry.hedging_policy, f"{here}.hedgingPolicy")
    if file.retry_throttling is not None and file.retry_throttling.token_ratio < GRPC_TOKEN_RATIO_STEP:
        text = "gRPC keeps three decimals, so a stock client would read 0"
        yield Finding(Rule.GRPC_TOKEN_RATIO, "retryThrottling.tokenRatio", text)


def _retry_read_by_grpc(retry: RetryBlock, here: str) -> Iterator[Finding]:
    if retry.max_attempts > GRPC_MAX_ATTEMPTS:
        text = f"a gRPC client silently makes it {GRPC_MAX_ATTEMPTS}; here {retry.max_attempts} are made"
        yield Finding(Rule.GRPC_MAX_ATTEMPTS, f"{here}.maxAttempts", text)
    if not retry.retryable_codes:
        text = (
            "gRPC refuses an empty list; here it means that only attempts that were never sent are refusals"
        )
        yield Finding(Rule.GRPC_NO_CODES, f"{here}.retryableStatusCodes", text)
    for code in sorted({*retry.retryable_codes} & DEFINITE_CODES):
        text = f"{code.name} is an answer that a retry seldom changes"
        yield Finding(Rule.RETRIES_DEFINITE_ANSWER, f"{here}.retryableStatusCodes", text)
    if Code.RESOURCE_EXHAUSTED in retry.retryable_codes:
        text = "RESOURCE_EXHAUSTED may mean an oversized message: only pushback or RetryInfo makes it retried"
        yield Finding(Rule.RESOURCE_EXHAUSTED, f"{here}.retryableStatusCodes", text)


def _hedging_read_by_grpc(hedging: GrpcHedgingBlock, here: str) -> Iterator[Finding]:
    yield Finding(Rule.GRPC_HEDGING, here, "gRPC in Python silently ignores it; here it is kept")
    if hedging.max_attempts > GRPC_MAX_ATTEMPTS:
        text = f"a gRPC client silently makes it {GRPC_MAX_ATTEMPTS}; here {hedging.max_attempts} are made"
        yield Finding(Rule.GRPC_MAX_ATTEMPTS, f"{here}.maxAttempts", text)


def _nothing_retried(document: Document, policy: RelayPolicy) -> Iterator[Finding]:
    """As in gRPC, silence means no retries; people often expect the opposite of a relay."""
    chosen = any("retry" in layer.content.relay.off for layer in layers(document))
    if not chosen and all(method.retry.max_attempts == 1 for method in policy.methods.values()):
        text = 'no methodConfig has a retryPolicy: nothing is retried (relay.preset "default" brings one)'
        yield Finding(Rule.NOTHING_RETRIED, "methodConfig", text)


def _entries(file: PolicyFile) -> Iterator[tuple[str, str]]:
    """Where the file speaks of a pattern, and the pattern; each pattern once."""
    places: dict[str, str] = {}
    kinds: tuple[tuple[str, Sequence[MethodConfig | MethodBlock]], ...] = (
        ("methodConfig", file.method_config),
        ("relay.methods", file.relay.methods),
    )
    for kind, entries in kinds:
        for index, entry in enumerate(entries):
            for name in entry.name:
                places.setdefault(name.pattern, f"{kind}[{index}]")
    return ((path, pattern) for pattern, path in places.items())


def _effects(path: str, pattern: str, policy: RelayPolicy) -> Iterator[Finding]:
    """What the entry at ``path`` comes to, with all that it inherits."""
    method = policy.methods[pattern]
    subject = pattern or "every method"
    yield from (Finding(rule, path, f"{subject}: {text}") for rule, text in _of_times(method))
    yield from (Finding(rule, path, f"{subject}: {text}") for rule, text in _of_safety(method))
    wider = policy.methods[next(p for p in [*widening(pattern)[1:], ""] if p in policy.methods)]
    if method.retry.max_attempts == 1 < wider.retry.max_attempts:
        text = f"{subject}: not retried, though wider entries are: as in gRPC the longest match counts whole"
        yield Finding(Rule.RETRY_LOST, path, text)


def _of_times(method: MethodPolicy) -> Iterator[tuple[Rule, str]]:
    default_s, cap_s, attempt_s = method.default_timeout_s, method.max_timeout_s, method.attempt_timeout_s
    if default_s is not None and cap_s is not None and default_s > cap_s:
        yield (
            Rule.DEFAULT_OVER_MAX,
            f"defaultTimeout {_s(default_s)} is longer than maxTimeout {_s(cap_s)}, which wins",
        )
    if default_s is None or method.retry.max_attempts == 1:
        return
    waits_s = longest_backoffs_s(method.retry)
    if waits_s >= default_s:
        text = f"the waits between {method.retry.max_attempts} attempts may add up to {_s(waits_s)}"
        yield Rule.BACKOFF_OVER_DEADLINE, f"{text}, and the deadline is {_s(default_s)}"
    if attempt_s is None or attempt_s >= default_s:
        limit = "no attemptTimeout" if attempt_s is None else f"attemptTimeout {_s(attempt_s)}"
        yield (
            Rule.ATTEMPT_TAKES_ALL,
            f"with {limit} one silent attempt uses up the deadline of {_s(default_s)}",
        )


def _of_safety(method: MethodPolicy) -> Iterator[tuple[Rule, str]]:
    kept = method.idempotency
    if method.key_required and kept is not None and kept.payload_keys:
        yield (
            Rule.PAYLOAD_KEYS_UNUSED,
            "payloadKeys, but keyRequired refuses the calls that come without a key",
        )
    if method.key_required and method.safety is not Safety.KEYED and kept is None:
        yield Rule.KEY_WITHOUT_EFFECT, "keyRequired, but safety is not KEYED: the key allows no retry"
    if method.safety is Safety.KEYED and method.retry.max_attempts == 1:
        yield Rule.KEYED_WITHOUT_RETRY, "KEYED makes retries safe, and none are made"
    if method.safety in (Safety.NO_SIDE_EFFECTS, Safety.IDEMPOTENT) or method.retry.max_attempts == 1:
        return
    if codes := sorted(method.retry.retryable_codes & _MAYBE_EXECUTED):
        names = ", ".join(code.name for code in codes)
        yield (
            Rule.RETRIES_EXECUTED_WORK,
            f"{names} often come after the effect, and a second attempt would repeat it",
        )


def _hedging(file: PolicyFile, policy: RelayPolicy) -> Iterator[Finding]:
    """What the file's own words on hedging come to."""
    places: dict[str, str] = {}
    for index, config in enumerate(file.method_config):
        if config.hedging_policy is not None:
            places |= {name.pattern: f"methodConfig[{index}].hedgingPolicy" for name in config.name}
    for index, entry in enumerate(file.relay.methods):
        if entry.hedging is not None:
            places |= {name.pattern: f"relay.methods[{index}].hedging" for name in entry.name}
    for pattern, path in places.items():
        method = policy.methods[pattern]
        if method.hedging is not None:  # unless it is switched off
            found = _of_hedging(method, method.hedging, policy.budget)
            yield from (Finding(rule, path, f"{pattern or 'every method'}: {text}") for rule, text in found)


def _of_hedging(
    method: MethodPolicy, hedging: HedgePolicy, budget: RetryBudgetPolicy | None
) -> Iterator[tuple[Rule, str]]:
    if method.safety is Safety.NONE:
        text = "safety is NONE: a second execution would not be harmless, so nothing is hedged"
        yield Rule.HEDGING_WITHOUT_EFFECT, text
    elif method.unary is False:
        yield Rule.HEDGING_WITHOUT_EFFECT, "unary is false: streams are never hedged"
    attempt_s = method.attempt_timeout_s
    if attempt_s is not None and hedging.min_delay_s >= attempt_s:
        text = f"the wait of {_s(hedging.min_delay_s)} is never over: attemptTimeout is {_s(attempt_s)}"
        yield Rule.HEDGING_TOO_LATE, text
    if budget is None:
        yield Rule.HEDGING_UNBOUNDED, "retryBudget is off: nothing bounds the load that hedges add"
    elif budget.burst * (1 - HEDGE_RESERVE) < 1:
        text = f"hedges leave half of retryBudget.burst ({budget.burst:g}) to retries: too little for one"
        yield Rule.HEDGING_UNPAID, text


def _breakers(file: PolicyFile, policy: RelayPolicy) -> Iterator[Finding]:
    places = {"": "relay.breaker"} if "breaker" in file.relay.model_fields_set else {}
    for index, entry in enumerate(file.relay.methods):
        if entry.breaker is not None:
            places |= {name.pattern: f"relay.methods[{index}].breaker" for name in entry.name}
    for pattern, path in places.items():
        if pattern in policy.breakers:  # unless all are switched off
            method = policy.method_policy(pattern if "/" in pattern else f"{pattern}/")
            found = _of_breaker(policy.breakers[pattern], method.attempt_timeout_s)
            yield from (Finding(rule, path, text) for rule, text in found)


def _of_breaker(breaker: BreakerPolicy, attempt_s: float | None) -> Iterator[tuple[Rule, str]]:
    if breaker.consecutive_failures is breaker.failure_ratio is breaker.slow_call_s is None:
        yield Rule.BREAKER_NEVER_OPENS, "consecutiveFailures, failureRatio and slowCall are all off"
    if attempt_s is None:
        return
    for name, limit_s in (("slowCall", breaker.slow_call_s), ("stuckCall", breaker.stuck_call_s)):
        if limit_s is not None and limit_s >= attempt_s:
            text = f"{name} {_s(limit_s)} is never reached: attemptTimeout ends attempts at {_s(attempt_s)}"
            yield Rule.BREAKER_LIMIT_TOO_LATE, text
    if breaker.probe_timeout_s < attempt_s:
        text = f"with probeTimeout {_s(breaker.probe_timeout_s)} a probe counts as lost that attemptTimeout"
        yield Rule.BREAKER_PROBE_TOO_SHORT, f"{text} {_s(attempt_s)} would let succeed: it may never close"


def longest_backoffs_s(retry: RetryPolicy) -> float:
    """The sum of all waits when no jitter shortens them, in seconds."""
    total_s, wait_s = 0.0, retry.initial_backoff_s
    for _ in range(retry.max_attempts - 1):
        total_s += min(wait_s, retry.max_backoff_s)
        wait_s = min(wait_s * retry.backoff_multiplier, retry.max_backoff_s)
    return total_s


def _workers(file: PolicyFile) -> Iterator[Finding]:
    for path, block in admissions(file):
        limit = block.limit
        if limit is not None and limit.kind != "fixed" and "workers" in block.model_fields_set:
            text = f"the limit is {limit.kind}: it goes from min to max whatever workers says"
            yield Finding(Rule.WORKERS_WITHOUT_EFFECT, f"{path}.workers", text)


def _shared(document: Document, policy: RelayPolicy) -> Iterator[Finding]:
    """One that hangs holds all workers, and what one takes says nothing about what another can."""
    chosen = any({"bulkhead", "admission"} & {*layer.content.relay.off} for layer in layers(document))
    sharing = {route.upstream for route in policy.routes} - set(policy.bulkheads.upstreams)
    if len(sharing) > 1 and not chosen:
        names = ", ".join(name for name in policy.upstreams if name in sharing)
        text = f'{names} share one limit and one queue: "bulkhead": {{}} gives each upstream its own'
        yield Finding(Rule.SHARED_LIMIT, "relay.upstreams", text)


def _caps(file: PolicyFile, policy: RelayPolicy) -> Iterator[Finding]:
    caps = policy.criticality_caps
    if caps is None or file.relay.criticality is None:
        return
    if {caps.anonymous, caps.identified, *caps.named.values()} == {Criticality.CRITICAL_PLUS}:
        text = "every caller may have the highest class: it holds nobody back"
        yield Finding(Rule.CAPS_WITHOUT_EFFECT, "relay.criticality", text)


def _standing(file: PolicyFile, policy: RelayPolicy) -> Iterator[Finding]:
    found = (
        Finding(rule, f"{path}{place}", text)
        for path, block, admission in _admissions_in_force(file, policy)
        for rule, place, text in _of_standing(block.model_fields_set, admission)
    )
    return iter(dict.fromkeys(found))


def _admissions_in_force(
    file: PolicyFile, policy: RelayPolicy
) -> Iterator[tuple[str, AdmissionBlock, AdmissionPolicy]]:
    """What the file says of an admission, and where, with each one that it comes to."""
    relay, kept = file.relay, policy.bulkheads
    of_all = tuple(kept.upstreams.values())
    yield "relay.admission", relay.admission, policy.admission
    if relay.bulkhead is not None:
        yield from (("relay.bulkhead", relay.bulkhead, admission) for admission in of_all)
    for name, upstream in relay.upstreams.items():
        if upstream.bulkhead is not None and name in kept.upstreams:
            yield f"relay.upstreams.{name}.bulkhead", upstream.bulkhead, kept.upstreams[name]
    for index, method in enumerate(relay.methods):
        if method.bulkhead is not None:
            path = f"relay.methods[{index}].bulkhead"
            named = {name.pattern for name in method.name}
            meant = [admission for pattern, admission in kept.methods.items() if pattern in named]
            yield from ((path, method.bulkhead, one) for one in (*meant, *(of_all if "" in named else ())))


def _of_standing(given: AbstractSet[str], admission: AdmissionPolicy) -> Iterator[tuple[Rule, str, str]]:
    shed, order = admission.standing_shed, admission.queue_order
    nothing_is_done = shed is StandingShed.NONE and order is QueueOrder.FIFO
    if nothing_is_done and given & {"standing_target_s", "standing_interval_s"}:
        text = "neither standingShed nor queueOrder does anything when the queue stands"
        yield Rule.STANDING_WITHOUT_EFFECT, "", text
    newest_behind_door = shed is StandingShed.DOOR and order is QueueOrder.ADAPTIVE_LIFO
    if newest_behind_door and given & {"standing_shed", "queue_order"}:
        text = (
            "of the few that the door lets in, newest first leaves the others to their deadlines: take fifo"
        )
        yield Rule.DOOR_NEWEST_FIRST, ".queueOrder", text


def _letters(file: PolicyFile, policy: RelayPolicy) -> Iterator[Finding]:
    if file.relay.dead_letters.on_exhausted and not policy.keeps_keys:
        text = "no entry of relay.methods has an idempotency: no call becomes a dead letter"
        yield Finding(Rule.LETTERS_WITHOUT_KEYS, "relay.deadLetters.onExhausted", text)


def _unused(file: PolicyFile, policy: RelayPolicy) -> Iterator[Finding]:
    routed = {route.upstream for route in policy.routes}
    routed |= {name for method in policy.methods.values() for name in method.fallback}
    for name in file.relay.upstreams:
        if policy.routes and name not in routed:
            yield Finding(Rule.UPSTREAM_UNUSED, f"relay.upstreams.{name}", "no route or fallback leads to it")
    for path, pattern in _entries(file):
        if pattern and not _reachable(pattern, policy):
            yield Finding(Rule.METHOD_UNROUTED, path, f"no route leads to {pattern}: calls get UNIMPLEMENTED")


def _reachable(pattern: str, policy: RelayPolicy) -> bool:
    """Whether any method the pattern covers is routed."""
    inside = any(route.pattern.startswith(f"{pattern}/") for route in policy.routes)
    return inside or policy.route(pattern if "/" in pattern else f"{pattern}/") is not None


def _s(seconds: float) -> str:
    return format_duration(round(seconds, 3))
