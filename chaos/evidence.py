"""What a run left behind for its judges."""

from collections.abc import Collection
from dataclasses import dataclass

from chaos.history import CallRecord, FaultWindow, History, LoadSample, Phase, RelaySample
from chaos.selection import chosen
from chaos.traces import Traces

STEADY, FAULT, RECOVERY = "steady", "fault", "recovery"
PHASES = (STEADY, FAULT, RECOVERY)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A history with its spans, and the few facts about the run that judges need beside it."""

    history: History
    traces: Traces
    planned_count: int
    """Operations that the traffic plan holds."""
    faults_planned: int
    drained_s: float
    """When the last caller had its answer."""
    traces_one_in: int = 1
    """Of so many traces one was read; 1 is all of them."""
    relay_memory_peak_mb: float | None = None
    """None where the machine does not say."""

    @property
    def calls(self) -> Collection[CallRecord]:
        """Every call."""
        return self.history.calls

    def phase(self, name: str) -> Phase:
        """The stretch of time of a phase."""
        return next(phase for phase in self.history.phases if phase.name == name)

    def calls_in(self, *phases: str) -> Collection[CallRecord]:
        """The calls meant for these phases."""
        return chosen(self.history.calls, lambda call: call.phase in phases)

    @property
    def struck(self) -> FaultWindow:
        """From the first fault's beginning to the last one's end; the fault phase when there was none."""
        windows = self.history.faults
        if not windows:
            phase = self.phase(FAULT)
            return FaultWindow("", "no fault", phase.begin_s, phase.end_s)
        begin_s, end_s = min(each.begin_s for each in windows), max(each.end_s for each in windows)
        return FaultWindow("", "all faults", begin_s, end_s)

    def calls_between(self, begin_s: float, end_s: float) -> Collection[CallRecord]:
        """The calls that were meant to be made then."""
        return chosen(self.history.calls, lambda call: begin_s <= call.intended_s < end_s)

    def loads_between(self, begin_s: float, end_s: float) -> list[LoadSample]:
        """The looks at the downstream taken then."""
        return [sample for sample in self.history.loads if begin_s <= sample.at_s <= end_s]

    def relays_between(self, begin_s: float, end_s: float) -> list[RelaySample]:
        """The looks at the relay taken then."""
        return [sample for sample in self.history.relays if begin_s <= sample.at_s <= end_s]
