"""Which core the subject has for itself, and which the load shares with the upstream."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cores:
    """Empty sets mean: not pinned. ``note`` says what that does to the figures, empty when all is well."""

    subject: frozenset[int]
    load: frozenset[int]
    note: str = ""


def divide() -> Cores:
    """One core for the subject, one for generator and upstream together, the bench itself on any."""
    if not hasattr(os, "sched_getaffinity"):
        everywhere: frozenset[int] = frozenset()
        return Cores(
            everywhere, everywhere, "This system cannot pin processes to cores: expect wider intervals."
        )
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        only = frozenset(available)
        note = "One core only, shared with generator and upstream: calls/s and latency include all three."
        return Cores(only, only, note)
    return Cores(frozenset(available[:1]), frozenset(available[1:2]))
