"""Policies for experiments: everything off that is not in question, so that one thing changes at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALL_METHODS: list[dict[str, str]] = [{}]
PLENTY = 100_000
"""So many workers, and places to wait, that neither ever binds."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Attempts and the waits between them."""

    attempts_max: int
    initial_backoff_s: float
    max_backoff_s: float
    multiplier: float = 2.0
    jitter: str = "full"


@dataclass(frozen=True, slots=True)
class Budget:
    """The bound on retries: ``ratio`` for each first attempt, and ``burst``."""

    ratio: float
    burst: int


def policy(
    *,
    retries: Retries | None = None,
    attempt_timeout_s: float | None = None,
    workers: int = PLENTY,
    queue: int = PLENTY,
    budget: Budget | None = None,
    breaker: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A policy document in which only what is named does anything. All methods are safe to repeat."""
    off = []
    relay: dict[str, Any] = {
        "methods": [{"name": ALL_METHODS, "safety": "NO_SIDE_EFFECTS", "unary": True}],
        "admission": {"queueCapacity": queue, "workers": workers, "feasibilityQuantile": None},
    }
    method = relay["methods"][0]
    document: dict[str, Any] = {"relay": relay}
    if retries is None or retries.attempts_max == 1:
        off.append("retry")
    else:
        method["jitter"] = retries.jitter
        document["methodConfig"] = [{"name": ALL_METHODS, "retryPolicy": _retry_policy(retries)}]
    if attempt_timeout_s is None:
        off.append("attemptTimeout")
    else:
        method["attemptTimeout"] = seconds(attempt_timeout_s)
    if budget is None:
        off.append("retryBudget")
    else:
        relay["retryBudget"] = {"ratio": budget.ratio, "burst": budget.burst}
    if breaker is None:
        off.append("breaker")
    else:
        relay["breaker"] = dict(breaker)
    relay["off"] = off
    return document


def seconds(value_s: float) -> str:
    """A duration as protobuf's JSON writes it."""
    return f"{value_s:g}s"


def _retry_policy(retries: Retries) -> dict[str, Any]:
    return {
        "maxAttempts": retries.attempts_max,
        "initialBackoff": seconds(retries.initial_backoff_s),
        "maxBackoff": seconds(retries.max_backoff_s),
        "backoffMultiplier": retries.multiplier,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
