"""The relay's policies in the lab, as values: one base, small changes laid over it.

The base is the preset for the practice service with every time shortened, so that a run of a few seconds
sees a breaker open and close. Its budget stands here because the checks must know it.
"""

import json
from collections.abc import Mapping
from typing import Any

from chaos.plan import PAYMENT_SERVICE

Policy = Mapping[str, Any]

BUDGET_RATIO = 0.2
BUDGET_BURST = 10

LAB: Policy = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "relay": {
        "preset": "payments-demo",
        "name": "lab",
        "methods": [{"name": [{"service": PAYMENT_SERVICE, "method": "Charge"}], "attemptTimeout": "0.6s"}],
        "retryBudget": {"ratio": BUDGET_RATIO, "burst": BUDGET_BURST},
        "breaker": {
            "failureRatio": 0.8,
            "window": "1s",
            "minCalls": 20,
            "openTime": "0.3s",
            "probeTimeout": "1s",
            "probeSuccesses": 2,
            "rampTime": "0.4s",
        },
    },
}

NO_WORD: Policy = {
    **LAB,
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {**LAB["methodConfig"][0]["retryPolicy"], "retryableStatusCodes": []},
        }
    ],
}
"""The same without the operator's word that UNAVAILABLE means "nothing was executed": for a downstream that
fails after its effect that word would be a lie, and what is retried on a lie is no fault of the relay's."""
KEEPING: Policy = {
    "methodConfig": NO_WORD["methodConfig"],
    "relay": {
        **LAB["relay"],
        "name": "keeping",
        "methods": [
            {
                **LAB["relay"]["methods"][0],
                "idempotency": {"settleTimeout": "1s"},
            }
        ],
        "keys": {"lease": "2s"},
        "jobs": {
            "lease": "2s",
            "initialBackoff": "0.2s",
            "maxBackoff": "1s",
            "maxAttempts": 50,
            "poisonAfter": 20,
        },
    },
}
"""`NO_WORD` for a relay with a store: it keeps the keys of charges and takes durable jobs, its leases and the
waits between a job's runs as short as the runs of the lab."""
BARE: Policy = {"relay": {"preset": "passthrough", "name": "bare"}}
"""Nothing is protected."""


def overlaid(base: Policy, change: Policy) -> dict[str, Any]:
    """``change`` over ``base``: objects are joined field by field, ``off`` and ``methods`` grow, all else
    is replaced."""
    merged = dict(base)
    for name, value in change.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[name] = overlaid(old, value)
        elif isinstance(old, list) and name == "off":
            merged[name] = [*old, *value]
        elif isinstance(old, list) and name == "methods":
            merged[name] = _methods(old, value)
        else:
            merged[name] = value
    return merged


def _methods(base: list[Policy], change: list[Policy]) -> list[Policy]:
    """Entries of the same name are joined: a policy names a method once."""
    changed = {json.dumps(entry["name"]): entry for entry in change}
    joined = [overlaid(entry, changed.pop(json.dumps(entry["name"]), {})) for entry in base]
    return [*joined, *changed.values()]


def charge(**words: Any) -> dict[str, Any]:
    """A policy that says something of the method Charge alone."""
    return {"relay": {"methods": [{"name": [{"service": PAYMENT_SERVICE, "method": "Charge"}], **words}]}}


def budget(ratio: float, burst: int) -> dict[str, Any]:
    """A retry budget: so many second attempts for each first one, and so many at once."""
    return {"relay": {"retryBudget": {"ratio": ratio, "burst": burst}}}


def off(*patterns: str) -> dict[str, Any]:
    """A policy with these patterns switched off."""
    return {"relay": {"off": list(patterns)}}


def adaptive(*, initial: int, ceiling: int = 64, queue: int = 20) -> dict[str, Any]:
    """A concurrency limit found by the relay itself; ``initial`` tells it nothing true."""
    return {
        "relay": {
            "admission": {
                "limit": {"kind": "gradient", "min": 2, "max": ceiling, "initial": initial},
                "queueCapacity": queue,
            }
        }
    }


def fixed(*, workers: int, queue: int) -> dict[str, Any]:
    """A limit that is told."""
    return {"relay": {"admission": {"workers": workers, "queueCapacity": queue}}}


def quota(*, per_s: float, burst: float, named: Mapping[str, float]) -> dict[str, Any]:
    """A quota for each client that is not named, and larger ones for those that are, by their rates."""
    clients = {name: {"ratePerSecond": rate, "burst": rate} for name, rate in named.items()}
    return {"relay": {"clients": {"default": {"ratePerSecond": per_s, "burst": burst}, "named": clients}}}
