"""What is asked of every subject, and how long."""

from dataclasses import dataclass

METHOD_PATH = "/bench.Echo/Call"
DEADLINE_MS = 5_000
CONNECTIONS = 4
"""Connections from the generator to the subject; a closed loop of one uses one."""


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """So many callers, each calls again when it is answered: finds the capacity."""

    callers: int

    def __str__(self) -> str:
        return f"c {self.callers}"


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Calls arrive at random at this mean rate whatever becomes of the earlier ones: equal offered load."""

    rate_per_s: float

    def __str__(self) -> str:
        return f"{self.rate_per_s:,.0f}/s open loop"


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the tables: unary calls of one size, all with a deadline of ``deadline_ms``."""

    arrivals: ClosedLoop | OpenLoop
    payload_bytes: int = 100
    deadline_ms: int = DEADLINE_MS

    def __str__(self) -> str:
        size = f"{self.payload_bytes} B" if self.payload_bytes < 1000 else f"{self.payload_bytes / 1000:g} kB"
        return f"{self.arrivals}, {size}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which workloads, how many interleaved rounds of each, and how long one measurement lasts."""

    workloads: tuple[Workload, ...]
    rounds: int
    warmup_s: float
    duration_s: float


_SMALL = tuple(Workload(ClosedLoop(callers)) for callers in (1, 16, 128))
_LARGE = tuple(Workload(ClosedLoop(callers), payload_bytes=10_000) for callers in (1, 16, 128))
_OPEN = (Workload(OpenLoop(1000)),)

FULL = Plan(workloads=_SMALL + _LARGE + _OPEN, rounds=9, warmup_s=0.2, duration_s=1.0)
"""About six minutes for four subjects. Nine rounds: the interval leaves the best and the worst out."""

QUICK = Plan(workloads=_SMALL + _OPEN, rounds=6, warmup_s=0.1, duration_s=0.3)
"""Less than a minute. Six rounds are the fewest that give a 95 % interval."""
