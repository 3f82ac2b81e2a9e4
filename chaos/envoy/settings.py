"""What of Envoy is switched on, as a value: each field is one of its patterns, None where it stays off."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

ADAPTIVE: Literal["adaptive"] = "adaptive"
"""The adaptive concurrency filter with its gradient controller, told nothing."""


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    """HTTP/2 on both sides and the caller's deadline kept; all else as said here.

    What is None is opened so wide that it never acts, as Envoy's own defaults would otherwise be measured.
    """

    retries: int = 3
    """Attempts beyond the first; of UNAVAILABLE, refused streams and failed connections."""
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0
    retry_budget_percent: float | None = 20.0
    """Of the requests under way, how many may be retries."""
    retry_concurrency_min: int = 10
    """So many retries are under way at once, whatever the budget says."""
    attempt_timeout_s: float | None = 5.0
    requests_max: int | Literal["adaptive"] | None = None
    """Requests under way and waiting: the circuit breaker's number, `ADAPTIVE`, or no limit."""
    critical_requests_max: int | None = None
    """A circuit breaker of their own for calls that say ``relay-criticality: CRITICAL``."""
    ejection_s: float | None = None
    """Outlier detection: after five failures in a row the upstream is given up for so long, later longer."""
    hedge_after_s: float | None = None
    """A second attempt beside one that takes longer; a fixed time, as Envoy learns none. It is the attempt's
    timeout too, which with hedging ends nothing."""

    def document(self) -> dict[str, Any]:
        """The settings as a JSON object, which `from_document` reads."""
        return asdict(self)


class EnvoySettingsError(ValueError):
    """Something is no settings of Envoy."""


def from_document(document: Mapping[str, Any]) -> EnvoySettings:
    """The settings that an object holds; what it leaves out is as by default. Raises `EnvoySettingsError`."""
    known = {spec.name for spec in fields(EnvoySettings)}
    if unknown := sorted(set(document) - known):
        raise EnvoySettingsError(
            f"Envoy has no settings {', '.join(unknown)} here; there are {sorted(known)}"
        )
    return EnvoySettings(**document)
