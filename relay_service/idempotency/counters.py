"""What is counted of keys."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from relay_service.core.idempotency import Decision

StoreTimes = Callable[[str, float], None]
"""Hears of each store operation: its name and how long it took, in seconds."""


SETTLEMENTS = ("kept", "released", "ambiguous", "dead_lettered", "lost")
"""What is written of a claim at its end; lost means that nothing could be."""


def untimed(_operation: str, _seconds: float) -> None:
    """Nobody wants to know."""


@dataclass(slots=True)
class KeyCounters:
    """Counted from the start of the process; `waiting` and `flights` are now."""

    decisions: Counter[Decision] = field(default_factory=Counter)
    """What became of the keys that calls came with, look-ups and claims together."""
    settled: Counter[str] = field(default_factory=Counter)
    """How claims ended, by `SETTLEMENTS`."""
    coalesced: int = 0
    """Callers who got the answer of a call that was under way here."""
    stale: int = 0
    """Writes that changed nothing because their fence was outdated."""
    store_errors: int = 0


@dataclass(frozen=True, slots=True)
class KeysState:
    """A look at the keys."""

    flights: int
    waiting: int
    leases: int
    counters: KeyCounters
