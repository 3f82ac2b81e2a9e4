"""The whole bench: start everything, measure in interleaved rounds, collect."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.cores import Cores
from tests.bench.measure import Measurement, NoCallSucceededError, measure
from tests.bench.memory import Memory, measure_memory
from tests.bench.overload import Flood, FloodPlan, Floods
from tests.bench.policy_cost import PolicyCost, PolicyCosts
from tests.bench.processes import CouldNotStartError, Process
from tests.bench.subjects import SUBJECTS, Running, start_echo, start_roomy_relay
from tests.bench.toolchain import Tools
from tests.bench.workload import Plan, Workload

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What was measured, in the order it was, and what could not be."""

    measurements: list[Measurement] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    floods: list[Flood] = field(default_factory=list)
    policy_cost: PolicyCost | None = None
    problems: list[str] = field(default_factory=list)

    def of(self, subject: str, workload: str) -> dict[int, Measurement]:
        """One subject's measurements of one workload, by round."""
        return {m.round: m for m in self.measurements if (m.subject, m.workload) == (subject, workload)}

    def measured(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` with at least one measurement, in the same order."""
        found = {m.subject for m in self.measurements}
        return [name for name in names if name in found]


class Bench:
    """One run over a plan. State: ``outcome``, which is whole after `run`.

    A subject that cannot be started or answers nothing is named in ``outcome.problems`` and left out;
    the others go on.
    """

    def __init__(self, plan: Plan, tools: Tools, cores: Cores, *, directory: Path, say: Say) -> None:
        self.outcome = Outcome()
        self._plan = plan
        self._tools = tools
        self._cores = cores
        self._directory = directory
        self._say = say

    def run(self, names: Sequence[str]) -> Outcome:
        """Measure the named subjects side by side, then the memory of each by itself."""
        with contextlib.ExitStack() as stack:
            try:
                address, echo = start_echo(self._tools, self._directory, self._cores.load)
            except CouldNotStartError as error:
                self.outcome.problems.append(str(error))
                return self.outcome
            stack.callback(echo.stop)
            running = self._start(names, address, stack)
            for number, workload in enumerate(self._plan.workloads, 1):
                self._say(f"{number}/{len(self._plan.workloads)} {workload}: {self._plan.rounds} rounds")
                self._measure_workload(workload, running, echo)
        for subject in running:
            if subject.process is not None:
                self._say(f"memory of {subject.name}")
                self._measure_memory(subject.name)
        return self.outcome

    def policy_cost(self) -> Outcome:
        """What the default policy costs, by itself."""
        costs = PolicyCosts(self._plan, self._tools, self._cores, self._directory)
        self.outcome.policy_cost, problems = costs.measure(self._say)
        self.outcome.problems += problems
        return self.outcome

    def flood(self, plan: FloodPlan) -> Outcome:
        """More than the upstream can serve, by itself: every subject is started anew."""
        floods, problems = Floods(plan, self._tools, self._cores, self._directory).measure(self._say)
        self.outcome.floods += floods
        self.outcome.problems += problems
        return self.outcome

    def _start(self, names: Sequence[str], upstream: str, stack: contextlib.ExitStack) -> list[Running]:
        running = []
        for name in names:
            try:
                subject = SUBJECTS[name](upstream, self._directory, self._cores.subject)
            except CouldNotStartError as error:
                self.outcome.problems.append(str(error))
            else:
                stack.callback(subject.stop)
                running.append(subject)
        return running

    def _measure_workload(self, workload: Workload, running: Sequence[Running], echo: Process) -> None:
        broken: set[str] = set()
        for round_number in range(self._plan.rounds):
            for subject in _rotated(running, round_number):
                if subject.name in broken:
                    continue
                try:
                    measurement = measure(
                        self._tools,
                        subject,
                        workload,
                        round_number,
                        echo_pid=echo.pid,
                        cores=self._cores.load,
                        warmup_s=self._plan.warmup_s,
                        duration_s=self._plan.duration_s,
                    )
                except (CouldNotStartError, NoCallSucceededError) as error:
                    broken.add(subject.name)
                    self.outcome.problems.append(str(error))
                else:
                    self.outcome.measurements.append(measurement)

    def _measure_memory(self, name: str) -> None:
        try:
            # One that finds its own limit would not let them all in: what is held is to be weighed.
            start = start_roomy_relay if name == "relay" else SUBJECTS[name]
            memory = measure_memory(start, self._tools, self._cores, self._directory)
        except (CouldNotStartError, ProcessLookupError) as error:
            self.outcome.problems.append(f"memory of {name}: {error}")
        else:
            self.outcome.memory.append(memory)


def _rotated(subjects: Sequence[Running], by: int) -> list[Running]:
    """Each subject comes first, second, … equally often, so that none always follows the same other."""
    start = by % len(subjects) if subjects else 0
    return [*subjects[start:], *subjects[:start]]
