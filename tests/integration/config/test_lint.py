"""`relay lint` finds what is allowed and yet not meant."""

from typing import Any

import pytest

from relay_service.config.document import read_document
from relay_service.config.lint import Rule, findings, longest_backoffs_s, undeclared
from relay_service.core.evidence import Safety
from relay_service.core.policy import RetryPolicy

TARGET = "127.0.0.1:50052"


def retry(**changes: Any) -> dict[str, Any]:
    return {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    } | changes


def everywhere(relay: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    return {"methodConfig": [{"name": [{}]} | config], "relay": relay or {}}


def method(**fields: Any) -> dict[str, Any]:
    return {"methods": [{"name": [{}]} | fields]}


def hedged(relay: dict[str, Any] | None = None, safety: str = "IDEMPOTENT", **hedging: Any) -> dict[str, Any]:
    return {"relay": {"preset": "default"} | method(safety=safety, hedging=hedging) | (relay or {})}


ROUTED = {
    "preset": "default",
    "upstreams": {"a": {"target": "h:1"}, "b": {"target": "h:2"}},
    "routes": [{"service": "a.B", "upstream": "a"}],
}

BOTH = [{"service": "a.B", "upstream": "a"}, {"service": "c.D", "upstream": "b"}]
KEPT = {"safety": "KEYED", "keyRequired": True, "idempotency": {"payloadKeys": True}}

SUSPICIOUS = [
    (everywhere(method(**KEPT), retryPolicy=retry()), "payload-keys-unused", "methodConfig[0]"),
    (
        {"relay": {"preset": "default", "deadLetters": {"onExhausted": True}}},
        "letters-without-keys",
        "relay.deadLetters.onExhausted",
    ),
    (everywhere(retryPolicy=retry(), timeout="20s"), "grpc-timeout", "methodConfig[0].timeout"),
    (
        everywhere(retryPolicy=retry(maxAttempts=6)),
        "grpc-max-attempts",
        "methodConfig[0].retryPolicy.maxAttempts",
    ),
    (
        everywhere(retryPolicy=retry(retryableStatusCodes=[])),
        "grpc-no-codes",
        "methodConfig[0].retryPolicy.retryableStatusCodes",
    ),
    (
        {"retryThrottling": {"maxTokens": 10, "tokenRatio": 0.0001}, "relay": {"preset": "default"}},
        "grpc-token-ratio",
        "retryThrottling.tokenRatio",
    ),
    (
        everywhere(retryPolicy=retry(retryableStatusCodes=["NOT_FOUND"])),
        "retries-definite-answer",
        "methodConfig[0].retryPolicy.retryableStatusCodes",
    ),
    (
        everywhere(retryPolicy=retry(retryableStatusCodes=["RESOURCE_EXHAUSTED"])),
        "resource-exhausted",
        "methodConfig[0].retryPolicy.retryableStatusCodes",
    ),
    (
        everywhere(retryPolicy=retry(retryableStatusCodes=["INTERNAL"])),
        "retries-executed-work",
        "methodConfig[0]",
    ),
    ({}, "nothing-retried", "methodConfig"),
    (
        {"relay": {"preset": "default", "admission": {"workers": 9, "limit": {"kind": "aimd"}}}},
        "workers-without-effect",
        "relay.admission.workers",
    ),
    (everywhere(retryPolicy=retry(initialBackoff="5s")), "backoff-over-deadline", "methodConfig[0]"),
    (everywhere(method(attemptTimeout="15s"), retryPolicy=retry()), "attempt-takes-all", "methodConfig[0]"),
    (everywhere(method(attemptTimeout=None), retryPolicy=retry()), "attempt-takes-all", "methodConfig[0]"),
    (everywhere(method(defaultTimeout="61s"), retryPolicy=retry()), "default-over-max", "methodConfig[0]"),
    (everywhere(method(keyRequired=True), retryPolicy=retry()), "key-without-effect", "methodConfig[0]"),
    (
        everywhere(method(safety="KEYED") | {"off": ["retry"]}, retryPolicy=retry()),
        "keyed-without-retry",
        "methodConfig[0]",
    ),
    (
        {"methodConfig": [{"name": [{"service": "a.B"}]}], "relay": {"preset": "default"}},
        "retry-lost",
        "methodConfig[0]",
    ),
    (everywhere(hedgingPolicy={"maxAttempts": 2}), "grpc-hedging", "methodConfig[0].hedgingPolicy"),
    (hedged(safety="NONE"), "hedging-without-effect", "relay.methods[0].hedging"),
    (hedged(minDelay="5s"), "hedging-too-late", "relay.methods[0].hedging"),
    (hedged({"off": ["retryBudget"]}), "hedging-unbounded", "relay.methods[0].hedging"),
    (hedged({"retryBudget": {"burst": 1.5}}), "hedging-unpaid", "relay.methods[0].hedging"),
    (
        {"relay": {"preset": "default", "breaker": {"failureRatio": None}}},
        "breaker-never-opens",
        "relay.breaker",
    ),
    (
        {"relay": {"preset": "default", "breaker": {"slowCall": "5s"}}},
        "breaker-limit-too-late",
        "relay.breaker",
    ),
    (
        everywhere(method(breaker={"probeTimeout": "2s"}), retryPolicy=retry()),
        "breaker-probe-too-short",
        "relay.methods[0].breaker",
    ),
    (
        {"relay": {"preset": "simple", "admission": {"standingTarget": "0.02s"}}},
        "standing-without-effect",
        "relay.admission",
    ),
    (
        {"relay": {"preset": "default", "admission": {"queueOrder": "adaptive-lifo"}}},
        "door-newest-first",
        "relay.admission.queueOrder",
    ),
    (
        {"relay": {"preset": "default", "bulkhead": {"queueOrder": "adaptive-lifo"}}},
        "door-newest-first",
        "relay.bulkhead.queueOrder",
    ),
    (
        {
            "relay": {"preset": "default"}
            | method(bulkhead={"standingShed": "none", "standingInterval": "1s"})
        },
        "standing-without-effect",
        "relay.methods[0].bulkhead",
    ),
    ({"relay": ROUTED}, "upstream-unused", "relay.upstreams.b"),
    ({"relay": {"preset": "default", "criticality": {}}}, "caps-without-effect", "relay.criticality"),
    ({"relay": ROUTED | {"routes": BOTH}}, "shared-limit", "relay.upstreams"),
    (
        {
            "relay": ROUTED
            | {
                "bulkhead": {},
                "routes": [
                    {"service": "a.B", "upstream": "a"},
                    {"service": "c.D", "method": "E", "upstream": "b"},
                ],
                "methods": [
                    {"name": [{"service": "a.B", "method": "X"}, {"service": "c.D"}]},
                    {"name": [{"service": "c.D", "method": "F"}]},
                ],
            }
        },
        "method-unrouted",
        "relay.methods[1]",
    ),
]


@pytest.mark.parametrize(("content", "rule", "path"), SUSPICIOUS, ids=[rule for _, rule, _ in SUSPICIOUS])
def test_a_suspicious_file_gets_exactly_the_finding_it_deserves(
    policy_file, content: dict[str, Any], rule: str, path: str
) -> None:
    found = findings(read_document(str(policy_file(content))), TARGET)
    assert [(finding.rule, finding.path) for finding in found] == [(rule, path)]


def test_every_rule_has_a_file_that_breaks_it() -> None:
    assert {rule for _, rule, _ in SUSPICIOUS} == set(Rule) - {Rule.SAFETY_UNDECLARED}


def test_switching_retries_off_by_name_is_a_decision_and_no_finding(policy_file) -> None:
    assert findings(read_document(str(policy_file({"relay": {"off": ["retry"]}}))), TARGET) == []


def test_a_code_that_follows_the_effect_is_no_finding_where_a_repeat_is_harmless(policy_file) -> None:
    content = everywhere(
        method(safety="NO_SIDE_EFFECTS"), retryPolicy=retry(retryableStatusCodes=["INTERNAL"])
    )
    assert findings(read_document(str(policy_file(content))), TARGET) == []


def test_a_breaker_that_is_switched_off_is_no_finding(policy_file) -> None:
    content = {"relay": {"preset": "default", "off": ["breaker"], "breaker": {"failureRatio": None}}}
    assert findings(read_document(str(policy_file(content))), TARGET) == []


@pytest.mark.parametrize("words", [{"bulkhead": {}}, {"off": ["bulkhead"]}, {"off": ["admission"]}])
def test_upstreams_that_are_kept_apart_or_share_on_purpose_are_no_finding(
    policy_file, words: dict[str, Any]
) -> None:
    content = {"relay": ROUTED | {"routes": BOTH} | words}
    assert findings(read_document(str(policy_file(content))), TARGET) == []


def test_the_longest_backoffs_are_summed_up_to_their_cap() -> None:
    policy = RetryPolicy(max_attempts=5, initial_backoff_s=1, max_backoff_s=3, backoff_multiplier=2)
    assert longest_backoffs_s(policy) == 1 + 2 + 3 + 3


def test_a_method_is_undeclared_when_neither_its_proto_nor_the_policy_says_what_a_repeat_does(
    policy_file,
) -> None:
    by_proto = {
        "a.B/ProtoSays": Safety.IDEMPOTENT,
        "a.B/PolicySays": None,
        "a.B/NobodySays": None,
        "a.C/ItsServiceSays": None,
        "x.Y/NoRoute": None,
    }
    methods = [
        {"name": [{"service": "a.B", "method": "PolicySays"}], "safety": "NONE"},
        {"name": [{"service": "a.C"}], "safety": "KEYED"},
        {"name": [{"service": "a.B"}], "maxTimeout": "5s"},
    ]
    routes = [{"service": "a.B", "upstream": "a"}, {"service": "a.C", "upstream": "b"}]
    document = read_document(str(policy_file({"relay": ROUTED | {"routes": routes, "methods": methods}})))
    found = undeclared(document, TARGET, by_proto)
    assert [(finding.rule, finding.path) for finding in found] == [(Rule.SAFETY_UNDECLARED, "a.B/NobodySays")]
    everything = read_document(str(policy_file({"relay": {"preset": "read-heavy"}})))
    assert undeclared(everything, TARGET, by_proto) == []
