"""Every fault the lab knows, as a frozen value: what is broken and how badly, never when.

A value says it all, so a schedule of them can be printed, compared, drawn from a seed and shrunk. Times
are in the unit of their name. Those of a store's file stand in `chaos.faults.store_kinds`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Literal

from chaos.faults.store_kinds import DiskBroken, DiskFull, DiskSlow, StoreKind, StoreLocked
from chaos.stack import Member


class Link(Enum):
    """The stretches of network that Toxiproxy stands on."""

    CLIENT_RELAY = "client-relay"
    RELAY_DOWNSTREAM = "relay-downstream"
    RELAY_STORE = "relay-store"
    """Only where the store is a PostgreSQL."""

    @property
    def words(self) -> str:
        """For people."""
        return "between {} and {}".format(*self.value.split("-"))


class Moment(Enum):
    """Whether a failing downstream has already done its work."""

    BEFORE_EFFECT = "before-effect"
    AFTER_EFFECT = "after-effect"


@dataclass(frozen=True, slots=True)
class ToxicFault:
    """One of Toxiproxy's toxics on a link, in one direction."""

    kind: ClassVar[str] = "toxic"

    link: Link
    type: str
    attributes: tuple[tuple[str, int], ...] = ()
    stream: Literal["upstream", "downstream"] = "downstream"

    @property
    def title(self) -> str:
        """For people."""
        told = ", ".join(f"{name} {value}" for name, value in self.attributes)
        direction = "answers" if self.stream == "downstream" else "requests"
        return f"{self.type}{f' ({told})' if told else ''} on {direction} {self.link.words}"


@dataclass(frozen=True, slots=True)
class Partition:
    """Nobody can connect, and every connection is closed."""

    kind: ClassVar[str] = "partition"

    link: Link

    @property
    def title(self) -> str:
        """For people."""
        return f"no network {self.link.words}"


@dataclass(frozen=True, slots=True)
class Flapping:
    """A partition that comes and goes: ``down_ms`` of it at the end of every ``every_ms``."""

    kind: ClassVar[str] = "flapping"

    link: Link
    every_ms: int
    down_ms: int

    def __post_init__(self) -> None:
        if not 0 < self.down_ms < self.every_ms:
            raise ValueError(f"flapping needs 0 < down_ms < every_ms, not {self.down_ms}, {self.every_ms}")

    @property
    def title(self) -> str:
        """For people."""
        return f"network {self.link.words} down for {self.down_ms} ms of every {self.every_ms} ms"


@dataclass(frozen=True, slots=True)
class Resets:
    """Every ``every_ms`` all connections of a link are reset under their calls, for ``on_ms``."""

    kind: ClassVar[str] = "resets"

    link: Link
    every_ms: int
    on_ms: int

    def __post_init__(self) -> None:
        if not 0 < self.on_ms < self.every_ms:
            raise ValueError(f"resets need 0 < on_ms < every_ms, not {self.on_ms}, {self.every_ms}")

    @property
    def title(self) -> str:
        """For people."""
        return f"connections {self.link.words} reset every {self.every_ms} ms"


@dataclass(frozen=True, slots=True)
class Kill:
    """kill -9; started again when the fault ends."""

    kind: ClassVar[str] = "kill"

    member: Member

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.member.value} killed"


@dataclass(frozen=True, slots=True)
class Pause:
    """SIGSTOP: alive, connected and silent; SIGCONT when the fault ends."""

    kind: ClassVar[str] = "pause"

    member: Member

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.member.value} stopped (SIGSTOP)"


@dataclass(frozen=True, slots=True)
class Restart:
    """SIGTERM, its clean end awaited, then started again; the fault lasts as long as that takes."""

    kind: ClassVar[str] = "restart"

    member: Member

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.member.value} restarted (SIGTERM)"


@dataclass(frozen=True, slots=True)
class Failing:
    """The downstream answers a share of its calls with an error, before or after their effect."""

    kind: ClassVar[str] = "failing"

    probability: float
    when: Moment = Moment.BEFORE_EFFECT
    code: str = "UNAVAILABLE"

    @property
    def title(self) -> str:
        """For people."""
        when = self.when.value.replace("-", " their ")
        return f"{self.probability:.0%} of attempts fail with {self.code} {when}"


@dataclass(frozen=True, slots=True)
class Slow:
    """The downstream takes its time: log-normal, by median and sigma."""

    kind: ClassVar[str] = "slow"

    median_ms: int
    sigma: float = 0.0
    probability: float = 1.0

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.probability:.0%} of attempts slowed by about {self.median_ms} ms"


@dataclass(frozen=True, slots=True)
class Hanging:
    """The downstream never answers a share of its calls."""

    kind: ClassVar[str] = "hanging"

    probability: float
    when: Moment = Moment.BEFORE_EFFECT

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.probability:.0%} of attempts hang {self.when.value.replace('-', ' their ')}"


@dataclass(frozen=True, slots=True)
class Capacity:
    """The downstream can do ``workers`` pieces of work at a time, each taking ``service_ms``."""

    kind: ClassVar[str] = "capacity"

    workers: int
    service_ms: int
    queue: int = 1000
    slow_start_ms: int = 0
    """Service times begin ten times as long and come down over this time."""

    @property
    def per_s(self) -> float:
        """What it can do at most."""
        return self.workers * 1000 / self.service_ms

    @property
    def title(self) -> str:
        """For people."""
        slowly = f", warming up for {self.slow_start_ms} ms" if self.slow_start_ms else ""
        return f"capacity {self.per_s:.0f} calls/s{slowly}"


@dataclass(frozen=True, slots=True)
class CollectorDown:
    """Nobody takes the relay's spans."""

    kind: ClassVar[str] = "collector-down"

    @property
    def title(self) -> str:
        """For people."""
        return "the trace collector is down"


@dataclass(frozen=True, slots=True)
class ClockStep:
    """The relay's wall clock jumps by ``step_s``, and back when the fault ends; nobody else's does."""

    kind: ClassVar[str] = "clock-step"

    step_s: int

    @property
    def title(self) -> str:
        """For people."""
        return f"the relay's wall clock is {self.step_s:+,} s off"


@dataclass(frozen=True, slots=True)
class Flood:
    """More calls than usual. The traffic makes them; as a fault they are seen and judged like the others."""

    kind: ClassVar[str] = "flood"

    factor: float

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.factor:g} times the usual traffic"


NetworkKind = ToxicFault | Partition | Flapping | Resets
ProcessKind = Kill | Pause | Restart
DownstreamKind = Failing | Slow | Hanging | Capacity
Fault = NetworkKind | ProcessKind | DownstreamKind | StoreKind | CollectorDown | ClockStep | Flood

_KINDS: Mapping[str, type[Fault]] = {
    each.kind: each
    for each in (
        *(ToxicFault, Partition, Flapping, Resets),
        *(Kill, Pause, Restart),
        *(Failing, Slow, Hanging, Capacity),
        *(DiskFull, DiskBroken, DiskSlow, StoreLocked),
        *(CollectorDown, ClockStep, Flood),
    )
}
_ENUMS: Mapping[str, type[Enum]] = {"link": Link, "member": Member, "when": Moment}


class FaultError(ValueError):
    """Something is no fault."""


def fault_to_json(fault: Fault) -> dict[str, Any]:
    """The fault as plain values, its kind first."""
    values: dict[str, Any] = {"kind": fault.kind}
    for spec in fields(fault):
        value = getattr(fault, spec.name)
        if isinstance(value, Enum):
            value = value.value
        values[spec.name] = dict(value) if spec.name == "attributes" else value
    return values


def fault_from_json(values: Mapping[str, Any]) -> Fault:
    """The fault that `fault_to_json` made them from. Raises `FaultError` for anything else."""
    try:
        given = dict(values)
        fault_type = _KINDS[given.pop("kind")]
        for name, enum_type in _ENUMS.items():
            if name in given:
                given[name] = enum_type(given[name])
        if "attributes" in given:
            given["attributes"] = tuple(sorted(given["attributes"].items()))
        return fault_type(**given)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise FaultError(f"not a fault: {values!r} ({error})") from error


def toxic(
    link: Link, type_: str, stream: Literal["upstream", "downstream"] = "downstream", **attributes: int
) -> ToxicFault:
    """A `ToxicFault` in the words of Toxiproxy's API."""
    return ToxicFault(link, type_, tuple(sorted(attributes.items())), stream)
