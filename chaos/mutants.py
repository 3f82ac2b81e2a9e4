"""Relays with one protection taken from them: each must be caught by a scenario, or the checks prove little.

Most are a change of policy. The rest are a relay patched at its start by a program that belongs to the
tests (``tests/chaos/mutants/patched_relay.py``), so they exist only in a checkout.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from chaos.runner.plan import Change
from chaos.scenarios.policies import Policy, charge, off

PATCHED_RELAY = Path("tests/chaos/mutants/patched_relay.py")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A protection that is missing, and the scenario that is expected to show it first."""

    name: str
    missing: str
    caught_by: str
    policy: Policy | None = None
    """None: the relay is patched."""


MUTANTS = (
    Mutant("no-retries", "failed attempts are not repeated", "fail-before", off("retry")),
    Mutant("no-budget", "retries are not bounded", "storm-without-breaker", off("retryBudget")),
    Mutant("no-breaker", "a dead upstream is tried by every call", "dead-upstream", off("breaker")),
    Mutant(
        "no-jitter",
        "retries come back in a wave",
        "many-retries",
        {"relay": {"methods": [{"name": [{}], "jitter": "none"}]}},
    ),
    Mutant("no-admission", "everything is taken on, whatever fits", "overload-3x", off("admission")),
    Mutant("no-bulkhead", "all methods share one set of workers", "one-method-hangs", off("bulkhead")),
    Mutant("no-attempt-timeout", "one silent attempt may take all the time", "hang", off("attemptTimeout")),
    Mutant(
        "repeats-without-key",
        "attempts that may have been executed are repeated without a key",
        "fail-ambiguously",
        charge(safety="IDEMPOTENT"),
    ),
    Mutant(
        "long-queue",
        "calls wait in a long queue for a turn that comes too late",
        "overload-10x",
        {
            "relay": {
                "admission": {
                    "queueCapacity": 100_000,
                    "feasibilityQuantile": None,
                    "limit": {"kind": "fixed"},
                }
            }
        },
    ),
    Mutant("works-for-nobody", "deadlines and departures of callers change nothing", "deadlines-passed-on"),
    Mutant("new-key-each-attempt", "every attempt has a key of its own", "fail-after"),
    Mutant("denies-effects", "what failed is said not to have been executed", "fail-ambiguously"),
    Mutant("classes-reversed", "SHEDDABLE goes before CRITICAL", "criticality-flood"),
    Mutant("no-pushback", "a refusal does not say when to return", "overload-3x"),
    Mutant("counts-twice", "a call that ended is counted twice", "latency"),
    Mutant("forgets-the-end", "some calls that ended still count as in flight", "latency"),
    Mutant("breaks-traces", "attempts begin a trace of their own", "latency"),
    Mutant("forgets-jobs", "some accepted jobs are never stored", "store-full"),
    Mutant("no-span-afterwards", "failures of unsampled traces leave no span", "dead-upstream"),
    Mutant("never-reconnects", "a connection that was lost is not made again", "partition"),
)


class UnknownMutantError(ValueError):
    """No mutant is called so, or it cannot be made here."""


def find(name: str) -> Mutant:
    """The mutant of that name. Raises `UnknownMutantError`."""
    for mutant in MUTANTS:
        if mutant.name == name:
            return mutant
    known = ", ".join(mutant.name for mutant in MUTANTS)
    raise UnknownMutantError(f"no mutant is called {name!r}; there are {known}")


def change_of(name: str) -> Change:
    """What a run needs to have the mutant for its relay. Raises `UnknownMutantError`."""
    mutant = find(name)
    if mutant.policy is not None:
        return Change(name, policy=mutant.policy)
    if not PATCHED_RELAY.exists():
        raise UnknownMutantError(f"{name} needs {PATCHED_RELAY}: run it from a checkout")
    return Change(name, program=(sys.executable, str(PATCHED_RELAY.resolve()), name))
