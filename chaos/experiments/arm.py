"""One setting of an experiment's knob: what is run, and what it left behind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chaos.faults import NetworkFault
from chaos.history import CallRecord, LoadSample
from chaos.percentile import percentile_of
from chaos.plan import Profile
from protos.downstream.v1 import fault_pb2

LAG_S_MAX = 0.1
"""A generator that sends more than three calls in a hundred later than this has not made the planned load."""
PULSE_S_MAX = 0.012
"""A machine on which half of the small questions to the relay take longer is too busy to measure on."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A fault of the network between relay and downstream, at a time of the arm."""

    fault: NetworkFault
    after_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Arm:
    """What is run: a relay with this policy, this downstream, this load."""

    name: str
    title: str
    policy: Mapping[str, Any]
    """The policy file's document."""
    downstream: fault_pb2.SetFaultsRequest
    profile: Profile
    timeout_s: float
    """The calls' deadline."""
    outage: Outage | None = None
    sample_every_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Gauge:
    """The relay at a moment, on the history's clock."""

    at_s: float
    queued: int
    workers_busy: int
    took_s: float = 0.0
    """How long it took to ask: the pulse of the machine."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an arm left behind."""

    begin_s: float
    """On the history's clock, as all times here."""
    end_s: float
    calls: tuple[CallRecord, ...]
    loads: tuple[LoadSample, ...]
    gauges: tuple[Gauge, ...]
    arrived_before: int
    """The downstream's own count of attempts as the arm began; `loads` counts on from here."""
    arrived: int
    """Attempts that reached the downstream."""
    memory_before_mb: float | None
    """The relay's resident memory before the first call; None where the system does not tell."""
    memory_peak_mb: float | None

    @property
    def sound(self) -> bool:
        """Whether the load that was planned was made (all calls sent, nearly all in time), on a machine that
        had time for it."""
        if not self.calls or any(call.sent_s is None for call in self.calls):
            return False
        lags_s = [call.sent_s - call.intended_s for call in self.calls if call.sent_s is not None]
        pulse_s = percentile_of([gauge.took_s for gauge in self.gauges], 50) if self.gauges else 0.0
        return percentile_of(lags_s, 97) <= LAG_S_MAX and pulse_s <= PULSE_S_MAX

    @property
    def success(self) -> float | None:
        """The share of calls that succeeded; None when the arm is not sound."""
        return sum(call.ok for call in self.calls) / len(self.calls) if self.sound else None

    @property
    def shed(self) -> float | None:
        """The share that the relay refused."""
        refused = sum(call.origin == "relay" and call.code == "RESOURCE_EXHAUSTED" for call in self.calls)
        return refused / len(self.calls) if self.sound else None

    @property
    def amplification(self) -> float | None:
        """Attempts that arrived for each call."""
        return self.arrived / len(self.calls) if self.sound else None

    def latency_ms(self, percentile: float) -> float | None:
        """Of the calls that succeeded; None when the arm is not sound or none did."""
        latencies = [call.latency_s * 1000 for call in self.calls if call.ok]
        return percentile_of(latencies, percentile) if latencies and self.sound else None

    def goodput_per_s(self, from_s: float, to_s: float) -> float | None:
        """Successes a second among the calls that ended between two moments of the arm."""
        low, high = self.begin_s + from_s, self.begin_s + to_s
        ended = sum(call.ok and low <= call.done_s < high for call in self.calls)
        return ended / (to_s - from_s) if self.sound else None

    def success_between(self, from_s: float, to_s: float) -> float | None:
        """The share of the calls due between two moments of the arm that succeeded."""
        low, high = self.begin_s + from_s, self.begin_s + to_s
        due = [call for call in self.calls if low <= call.intended_s < high]
        return sum(call.ok for call in due) / len(due) if due and self.sound else None

    @property
    def queue_peak(self) -> int | None:
        """The longest queue that was seen in the relay."""
        return max((gauge.queued for gauge in self.gauges), default=None)
