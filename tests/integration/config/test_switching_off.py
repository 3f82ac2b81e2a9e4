"""The page on switching patterns off: each row does what it says, and nothing else."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from relay_service.config.document import read_document
from relay_service.config.loading import build_policy
from relay_service.core.policy import (
    WIDE_OPEN,
    BreakerPolicy,
    Jitter,
    LimitKind,
    MethodPolicy,
    RelayPolicy,
)

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "switching-off.md"

EVERYTHING_ON: dict[str, Any] = {
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.5},
    "relay": {
        "preset": "default",
        "upstreams": {"shop": {"target": "h:1"}, "spare": {"target": "h:2"}},
        "routes": [{"upstream": "shop"}],
        "methods": [
            {"name": [{}], "safety": "KEYED", "keyRequired": True, "hedging": {}, "fallback": ["spare"]}
        ],
        "adaptiveThrottle": {},
        "breaker": {"consecutiveFailures": 9, "slowCall": "2s", "stuckCall": "4s"},
        "admission": {"limit": {"kind": "gradient"}},
        "bulkhead": {},
    },
}


def method(policy: RelayPolicy) -> MethodPolicy:
    return policy.method_policy("a.B/C")


def breaker(policy: RelayPolicy) -> BreakerPolicy | None:
    return policy.breakers.get("")


IS_OFF: dict[str, Callable[[RelayPolicy], bool]] = {
    "retries": lambda policy: method(policy).retry.max_attempts == 1,
    "jitter": lambda policy: method(policy).retry.jitter is Jitter.NONE,
    "retries of streams": lambda policy: method(policy).replay_buffer_bytes == 0,
    "hedging": lambda policy: not policy.hedges,
    "retry budget": lambda policy: policy.budget is None,
    "gRPC's retry throttling": lambda policy: policy.throttling is None,
    "adaptive throttle": lambda policy: policy.adaptive_throttle is None,
    "fallback upstreams": lambda policy: not method(policy).fallback,
    "circuit breaker": lambda policy: not policy.breakers,
    "breaker: failures in a row": lambda policy: _said_none(policy, "consecutive_failures"),
    "breaker: failure rate": lambda policy: _said_none(policy, "failure_ratio"),
    "breaker: slow calls": lambda policy: _said_none(policy, "slow_call_s"),
    "breaker: stuck calls": lambda policy: _said_none(policy, "stuck_call_s"),
    "breaker: ramp": lambda policy: _said_none(policy, "ramp_s"),
    "queue and workers": lambda policy: policy.admission == WIDE_OPEN,
    "queue": lambda policy: policy.admission.queue_capacity == 0,
    "adaptive concurrency": lambda policy: policy.admission.limit.kind is LimitKind.FIXED,
    "bulkheads": lambda policy: not policy.bulkheads.upstreams,
    "shedding by class": lambda policy: (
        policy.admission.sheddable_share == policy.admission.sheddable_plus_share == 1
    ),
    "refusing infeasible work": lambda policy: policy.admission.feasibility_quantile is None,
    "deadlines of the relay's": lambda policy: (
        method(policy).default_timeout_s is method(policy).max_timeout_s is None
    ),
    "default deadline": lambda policy: method(policy).default_timeout_s is None,
    "longest deadline": lambda policy: method(policy).max_timeout_s is None,
    "attempt timeout": lambda policy: method(policy).attempt_timeout_s is None,
    "required keys": lambda policy: not method(policy).key_required,
    "waiting out a short outage": lambda policy: policy.upstreams["shop"].patience_s == 0,
}

INCLUDED = {
    "queue and workers": {"queue", "adaptive concurrency"},
    "deadlines of the relay's": {"default deadline", "longest deadline"},
}
"""Patterns that are part of another."""


def _said_none(policy: RelayPolicy, field: str) -> bool:
    own = breaker(policy)
    return own is not None and getattr(own, field) is None


def rows() -> dict[str, dict[str, Any]]:
    cells = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if "`{" in line]
    return {pattern: json.loads(words.strip("`")) for pattern, words, _ in cells}


def laid_over(base: Any, words: Any) -> Any:
    """As one would write it into the file: objects field by field, entries of methods by their name."""
    if isinstance(base, dict) and isinstance(words, dict):
        return base | {key: laid_over(base.get(key), value) for key, value in words.items()}
    if isinstance(base, list) and isinstance(words, list) and words and isinstance(words[0], dict):
        return [laid_over(base[0], words[0])]
    return words


@pytest.fixture
def loaded(policy_file: Callable[[Any], Path]) -> Callable[[Any], RelayPolicy]:
    return lambda content: build_policy(read_document(str(policy_file(content))), "h:1")


def test_the_page_has_a_row_for_each_pattern() -> None:
    assert list(rows()) == list(IS_OFF)


def test_everything_is_on_to_begin_with(loaded) -> None:
    policy = loaded(EVERYTHING_ON)
    assert [name for name, is_off in IS_OFF.items() if is_off(policy)] == []


@pytest.mark.parametrize("pattern", IS_OFF)
def test_the_words_of_the_row_switch_it_off_and_no_other(loaded, pattern: str) -> None:
    policy = loaded(laid_over(deepcopy(EVERYTHING_ON), rows()[pattern]))
    off = {name for name, is_off in IS_OFF.items() if is_off(policy)}
    assert off == {pattern} | INCLUDED.get(pattern, set())
