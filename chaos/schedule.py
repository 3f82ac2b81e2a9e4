"""When what breaks: seed -> timed faults. Pure, and the same for the same seed, byte for byte.

A named scenario fixes which faults there are and lets the seed move them a little; an exploration lets it
draw all of it from `MENU`. Either way the result is data: it can be printed, replayed and shrunk.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaos.faults.kinds import (
    Failing,
    Fault,
    FaultError,
    Flapping,
    Hanging,
    Kill,
    Link,
    Moment,
    Partition,
    Pause,
    Resets,
    Restart,
    Slow,
    fault_from_json,
    fault_to_json,
    toxic,
)
from chaos.faults.store_kinds import DiskBroken, DiskFull, DiskSlow, StoreLocked
from chaos.stack import Member

FORMAT_VERSION = 1
FAULTS_MAX = 20
SHIFT_SHARE_MAX = 0.1
"""How far the seed moves a named scenario's faults, as a share of the fault phase."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A fault in a scenario: where in the fault phase it begins and ends, as shares of it."""

    fault: Fault
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise ValueError(f"a fault lies within its phase: 0 <= begin < end <= 1, not {self}")


@dataclass(frozen=True, slots=True)
class TimedFault:
    """A fault and its time, counted from the beginning of the fault phase."""

    at_s: float
    for_s: float
    fault: Fault

    @property
    def end_s(self) -> float:
        """When it is undone."""
        return self.at_s + self.for_s

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"at_s": self.at_s, "for_s": self.for_s, "fault": fault_to_json(self.fault)}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Timed faults in the order of their beginning."""

    faults: tuple[TimedFault, ...]

    def text(self) -> str:
        """It as JSON, one canonical text for one schedule."""
        shown = {"version": FORMAT_VERSION, "faults": [timed.to_json() for timed in self.faults]}
        return json.dumps(shown, indent=2, sort_keys=True) + "\n"

    def without(self, numbers: Sequence[int]) -> "Schedule":
        """The schedule less the faults at these places."""
        left = set(numbers)
        return Schedule(tuple(timed for place, timed in enumerate(self.faults) if place not in left))


def schedule_from_text(text: str) -> Schedule:
    """The schedule that `Schedule.text` made it from. Raises `FaultError` for anything else."""
    try:
        shown = json.loads(text)
        if shown["version"] != FORMAT_VERSION:
            raise FaultError(f"a schedule of version {shown['version']}, not {FORMAT_VERSION}")
        faults = tuple(_timed(each) for each in shown["faults"])
    except (ValueError, KeyError, TypeError) as error:
        raise FaultError(f"not a schedule: {error}") from error
    if len(faults) > FAULTS_MAX:
        raise FaultError(f"a schedule has at most {FAULTS_MAX} faults, not {len(faults)}")
    return Schedule(faults)


def _timed(shown: Mapping[str, Any]) -> TimedFault:
    at_s, for_s = float(shown["at_s"]), float(shown["for_s"])
    if at_s < 0 or for_s <= 0:
        raise FaultError(f"a fault begins at 0 s or later and lasts more than 0 s, not {shown}")
    return TimedFault(at_s, for_s, fault_from_json(shown["fault"]))


def place(placed: Sequence[Placed], phase_s: float, seed: int, name: str) -> Schedule:
    """A scenario's faults on the clock; the seed moves each by up to `SHIFT_SHARE_MAX` of the phase."""
    rng = random.Random(f"{seed}/{name}/schedule")
    timed = []
    for each in placed:
        # Drawn also where there is no room, so that one fault's length moves no other.
        shift = rng.random() * min(SHIFT_SHARE_MAX, 1.0 - each.end)
        begin = round((each.begin + shift) * phase_s, 3)
        timed.append(TimedFault(begin, round((each.end - each.begin) * phase_s, 3), each.fault))
    return Schedule(tuple(sorted(timed, key=lambda fault: fault.at_s)))


Draw = Callable[[random.Random], Fault]
Menu = Mapping[str, Draw]


def _link(rng: random.Random) -> Link:
    return rng.choice((Link.CLIENT_RELAY, Link.RELAY_DOWNSTREAM))


def _service(rng: random.Random) -> Member:
    return rng.choice((Member.RELAY, Member.DOWNSTREAM))


def _moment(rng: random.Random) -> Moment:
    return rng.choice(list(Moment))


def _latency(rng: random.Random) -> Fault:
    latency_ms = rng.randrange(10, 200)
    return toxic(_link(rng), "latency", latency=latency_ms, jitter=rng.randrange(0, latency_ms))


MENU: Menu = {
    "latency": _latency,
    "bandwidth": lambda rng: toxic(_link(rng), "bandwidth", rate=rng.randrange(20, 200)),
    "blackhole": lambda rng: toxic(_link(rng), "timeout", rng.choice(("upstream", "downstream")), timeout=0),
    "limit": lambda rng: toxic(_link(rng), "limit_data", bytes=rng.randrange(2_000, 50_000)),
    "slicer": lambda rng: toxic(_link(rng), "slicer", average_size=rng.randrange(5, 60), delay=100),
    "partition": lambda rng: Partition(_link(rng)),
    "flapping": lambda rng: Flapping(_link(rng), rng.randrange(400, 900), rng.randrange(50, 300)),
    "resets": lambda rng: Resets(_link(rng), rng.randrange(300, 900), rng.randrange(20, 100)),
    "kill": lambda rng: Kill(_service(rng)),
    "pause": lambda rng: Pause(_service(rng)),
    "restart": lambda rng: Restart(_service(rng)),
    "failing": lambda rng: Failing(round(rng.uniform(0.1, 1.0), 2), _moment(rng)),
    "hanging": lambda rng: Hanging(round(rng.uniform(0.02, 0.3), 2), _moment(rng)),
    "slow": lambda rng: Slow(rng.randrange(20, 300), round(rng.uniform(0.0, 1.0), 2)),
}
"""What an exploration draws from. Each maker takes the generator and nothing else."""
_STORE_FILE: Menu = {
    "disk-full": lambda _: DiskFull(),
    "disk-broken": lambda _: DiskBroken(),
    "disk-slow": lambda rng: DiskSlow(rng.randrange(5, 200)),
    "store-locked": lambda _: StoreLocked(),
}
_STORE_SERVER: Menu = {
    "store-killed": lambda _: Kill(Member.STORE),
    "store-restarted": lambda _: Restart(Member.STORE),
    "store-slow": lambda rng: toxic(Link.RELAY_STORE, "latency", latency=rng.randrange(5, 200)),
    "store-silent": lambda _: toxic(Link.RELAY_STORE, "timeout", timeout=0),
    "store-cut-off": lambda _: Partition(Link.RELAY_STORE),
    "store-resets": lambda rng: Resets(Link.RELAY_STORE, rng.randrange(300, 900), rng.randrange(20, 100)),
}
MENU_WITH_FILE: Menu = {**MENU, **_STORE_FILE}
"""Where the relay's store is a file."""
MENU_WITH_SERVER: Menu = {**MENU, **_STORE_SERVER}
"""Where it is a PostgreSQL."""


def draw(seed: int, phase_s: float, menu: Menu = MENU, count_max: int = 5) -> Schedule:
    """One to ``count_max`` faults of the menu at drawn times, each undone within the phase."""
    rng = random.Random(f"{seed}/drawn-schedule")
    timed = []
    for _ in range(rng.randint(1, count_max)):
        name = rng.choice(list(menu))
        begin_s = rng.uniform(0.0, 0.7) * phase_s
        for_s = rng.uniform(0.1, 0.6) * phase_s
        for_s = min(for_s, phase_s - begin_s)
        timed.append(TimedFault(round(begin_s, 3), round(for_s, 3), menu[name](rng)))
    return Schedule(tuple(sorted(timed, key=lambda fault: fault.at_s)))
