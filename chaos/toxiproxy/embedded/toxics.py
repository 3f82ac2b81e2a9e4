"""The toxics as the API knows them: their types, their attributes, and the stage each puts on a link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, ClassVar, Final, Self

from chaos.toxiproxy.embedded import gojson, stages
from chaos.toxiproxy.embedded.stages import Stage, Start


class Direction(Enum):
    """Which way the bytes go: to the upstream, or down to the client. The order is the API's."""

    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"

    @classmethod
    def of(cls, stream: str) -> Direction | None:
        """The direction a client means, whatever its case; None where it means none."""
        return next((direction for direction in cls if direction.value == stream.lower()), None)


class InvalidAttributeError(ValueError):
    """An attribute has a value that no link could apply."""


def _attribute(name: str, go_type: str = "int64", least: int | None = None) -> Any:
    """An integer attribute, 0 unless set: its name and Go type in the API, its lower bound if it has one."""
    return field(default=0, metadata={"name": name, "go_type": go_type, "least": least})


@dataclass(frozen=True, slots=True)
class Kind:
    """The attributes of one type of toxic, validated; the subclass says what they do."""

    type: ClassVar[str]
    go_name: ClassVar[str]
    ends_when_removed: ClassVar[bool] = False
    resets_connections: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for known in fields(self):
            least, value = known.metadata["least"], getattr(self, known.name)
            if least is not None and value < least:
                raise InvalidAttributeError(f"{known.metadata['name']} must be at least {least}, is {value}")

    def stage(self, start: Start) -> Stage:
        """The stage that applies these attributes to one link."""
        raise NotImplementedError

    def merged(self, attributes: object) -> Self:
        """These attributes with the given JSON object's over them.

        Raises GoJsonError for a wrong type, InvalidAttributeError for a value that cannot be applied.
        """
        known = {f.metadata["name"]: f for f in fields(self)}
        body = gojson.struct_field(attributes, f"toxics.{self.go_name}", ".attributes")
        types = {name: f.metadata["go_type"] for name, f in known.items()}
        found = gojson.fields(body, "", ".attributes", types)
        return replace(self, **{known[name].name: value for name, value in found.items()})

    def attributes(self) -> dict[str, int]:
        """The attributes under their names in the API, in its order."""
        return {f.metadata["name"]: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Noop(Kind):
    """Does nothing."""

    type = "noop"
    go_name = "NoopToxic"

    def stage(self, _start: Start) -> Stage:
        return Stage()


@dataclass(frozen=True, slots=True)
class Latency(Kind):
    """Delays every chunk by latency, give or take jitter."""

    type = "latency"
    go_name = "LatencyToxic"
    latency_ms: int = _attribute("latency")
    jitter_ms: int = _attribute("jitter")

    def stage(self, start: Start) -> Stage:
        return stages.LatencyStage(self.latency_ms, self.jitter_ms, start.rng)


@dataclass(frozen=True, slots=True)
class Bandwidth(Kind):
    """Limits the rate; 0 blocks. A negative rate kills the original, so it is refused."""

    type = "bandwidth"
    go_name = "BandwidthToxic"
    rate_kb_per_s: int = _attribute("rate", least=0)

    def stage(self, start: Start) -> Stage:
        return stages.BandwidthStage(self.rate_kb_per_s, start.now_s)


@dataclass(frozen=True, slots=True)
class SlowClose(Kind):
    """Delays the close."""

    type = "slow_close"
    go_name = "SlowCloseToxic"
    delay_ms: int = _attribute("delay")

    def stage(self, _start: Start) -> Stage:
        return stages.SlowCloseStage(self.delay_ms)


@dataclass(frozen=True, slots=True)
class Timeout(Kind):
    """Drops all data and closes after that much silence; 0 never closes. Removing it closes every link."""

    type = "timeout"
    go_name = "TimeoutToxic"
    ends_when_removed = True
    timeout_ms: int = _attribute("timeout")

    def stage(self, start: Start) -> Stage:
        return stages.TimeoutStage(self.timeout_ms, start.now_s)


@dataclass(frozen=True, slots=True)
class ResetPeer(Kind):
    """Resets connections made while it is set, that long after their first byte or end."""

    type = "reset_peer"
    go_name = "ResetToxic"
    resets_connections = True
    timeout_ms: int = _attribute("timeout")

    def stage(self, _start: Start) -> Stage:
        return stages.ResetPeerStage(self.timeout_ms)


@dataclass(frozen=True, slots=True)
class Slicer(Kind):
    """Slices data into small pieces; without an average size not at all (the original dies of that)."""

    type = "slicer"
    go_name = "SlicerToxic"
    average_bytes: int = _attribute("average_size", "int", least=0)
    variation_bytes: int = _attribute("size_variation", "int", least=0)
    delay_us: int = _attribute("delay", "int")

    def stage(self, start: Start) -> Stage:
        return stages.SlicerStage(self.average_bytes, self.variation_bytes, self.delay_us, start.rng)


@dataclass(frozen=True, slots=True)
class LimitData(Kind):
    """Closes after that many bytes; an update keeps the count."""

    type = "limit_data"
    go_name = "LimitDataToxic"
    limit_bytes: int = _attribute("bytes")

    def stage(self, start: Start) -> Stage:
        return stages.LimitDataStage(self.limit_bytes, start.memory)


KINDS: Final[Mapping[str, type[Kind]]] = {
    kind.type: kind for kind in (Noop, Latency, Bandwidth, SlowClose, Timeout, ResetPeer, Slicer, LimitData)
}


@dataclass(frozen=True, slots=True)
class Toxic:
    """A toxic on a proxy. `stream` is the direction as the client wrote it, `toxicity` a chance per link."""

    name: str
    stream: str
    direction: Direction
    toxicity: float
    kind: Kind

    def describe(self) -> dict[str, object]:
        """The toxic as the API shows it."""
        return {
            "attributes": self.kind.attributes(),
            "name": self.name,
            "type": self.kind.type,
            "stream": self.stream,
            "toxicity": gojson.float32(self.toxicity),
        }
