"""Which scenarios are run beside what: the patterns taken from the relay, and what of Envoy is nearest."""

from dataclasses import dataclass, replace

from chaos.envoy import ADAPTIVE, EnvoySettings
from chaos.scenarios.patterns import HEDGED, TIGHT, TIGHT_RATIO
from chaos.scenarios.policies import BARE, BUDGET_RATIO, LAB, Policy, off, overlaid

ENVOY = EnvoySettings(
    backoff_s=0.05,
    backoff_max_s=0.5,
    retry_budget_percent=100 * BUDGET_RATIO,
    retry_concurrency_min=3,
    attempt_timeout_s=0.6,
)
"""What the lab's policy says of retries, in Envoy's words. Three retries at once, whatever the budget says,
are Envoy's default."""
TIGHT_ENVOY = replace(ENVOY, retry_budget_percent=100 * TIGHT_RATIO)


@dataclass(frozen=True, slots=True)
class Cannot:
    """Envoy has nothing that comes near; why."""

    why: str


@dataclass(frozen=True, slots=True)
class Beside:
    """A scenario's other columns."""

    scenario: str
    off: Policy
    """The relay with the patterns off."""
    off_words: str
    envoy: EnvoySettings | Cannot
    envoy_words: str = ""
    """Envoy's nearest configuration, for people."""


_ADAPTIVE = replace(ENVOY, requests_max=ADAPTIVE)
_ADAPTIVE_WORDS = "adaptive concurrency (gradient), a retry budget of 20 %"
_BARE_WORDS = "preset passthrough: everything is off"
_RETRIES_WORDS = "4 attempts; no budget, no breaker"
_NO_BOUNDS = off("breaker", "retryBudget")

BESIDE: tuple[Beside, ...] = (
    Beside("overload-3x", BARE, _BARE_WORDS, _ADAPTIVE, _ADAPTIVE_WORDS),
    Beside("overload-10x", BARE, _BARE_WORDS, _ADAPTIVE, _ADAPTIVE_WORDS),
    Beside("capacity-drop", BARE, _BARE_WORDS, _ADAPTIVE, _ADAPTIVE_WORDS),
    Beside(
        "criticality-flood",
        BARE,
        _BARE_WORDS,
        replace(ENVOY, requests_max=3, critical_requests_max=15),
        "two priorities by header, each with a circuit breaker of its own: 3 requests, CRITICAL 15 (told)",
    ),
    Beside(
        "dead-upstream",
        overlaid(LAB, _NO_BOUNDS),
        _RETRIES_WORDS,
        replace(ENVOY, ejection_s=0.3),
        "outlier detection (5 failures in a row, 0.3 s and longer), a retry budget of 20 %",
    ),
    Beside(
        "storm-without-breaker",
        overlaid(TIGHT, _NO_BOUNDS),
        _RETRIES_WORDS,
        TIGHT_ENVOY,
        "a retry budget of 10 %, at least 3 retries at once (its default)",
    ),
    Beside(
        "three-relays",
        overlaid(TIGHT, _NO_BOUNDS),
        _RETRIES_WORDS,
        TIGHT_ENVOY,
        "three Envoys in a row, each with a retry budget of 10 %",
    ),
    Beside("metastable", BARE, _BARE_WORDS, _ADAPTIVE, _ADAPTIVE_WORDS),
    Beside(
        "hedging",
        overlaid(HEDGED, off("hedging")),
        "no hedges",
        replace(ENVOY, retries=1, hedge_after_s=0.06, retry_budget_percent=5.0),
        "hedge_on_per_try_timeout after 60 ms (told, it learns none), a retry budget of 5 %",
    ),
)


class NothingBesideError(ValueError):
    """Nothing is known to run beside this scenario."""

    def __init__(self, name: str) -> None:
        known = ", ".join(each.scenario for each in BESIDE)
        super().__init__(f"nothing is known to run beside {name!r}; there are {known}")


def beside(name: str) -> Beside:
    """The entry of that scenario. Raises `NothingBesideError`."""
    for each in BESIDE:
        if each.scenario == name:
            return each
    raise NothingBesideError(name)
