"""What the policies cost on the data plane: the relay with its default policy against the relay with none.

Both are the same program, one right after the other in each round, so their difference is the policy's.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.cores import Cores
from tests.bench.measure import Measurement, NoCallSucceededError, measure
from tests.bench.processes import CouldNotStartError, Process
from tests.bench.stats import Estimate, estimate
from tests.bench.subjects import Running, Start, start_echo, start_minimal_relay, start_relay
from tests.bench.toolchain import Tools
from tests.bench.workload import ClosedLoop, Plan, Workload

TARGET_US = 20.0
"""CPU per call that the full policy may cost."""

WORKLOAD = Workload(ClosedLoop(16))
POLICY, MINIMAL = "relay", "minimal"


@dataclass(frozen=True, slots=True)
class PolicyCost:
    """CPU per call in µs: medians over the rounds, and of the differences within each round."""

    workload: str
    policy_us: Estimate
    minimal_us: Estimate
    difference_us: Estimate

    @property
    def kept(self) -> bool:
        """Whether the median is within the target."""
        return self.difference_us.median <= TARGET_US


@dataclass(frozen=True, slots=True)
class PolicyCosts:
    """The run of a plan's rounds over the two relays."""

    plan: Plan
    tools: Tools
    cores: Cores
    directory: Path
    subjects: Mapping[str, Start] = field(
        default_factory=lambda: {POLICY: start_relay, MINIMAL: start_minimal_relay}
    )

    def measure(self, say: Callable[[str], None]) -> tuple[PolicyCost | None, list[str]]:
        """The row, and what could not be measured."""
        say(f"policy cost: {self.plan.rounds} rounds")
        found: list[Measurement] = []
        with ExitStack() as stack:
            try:
                address, echo = start_echo(self.tools, self.directory, self.cores.load, name="cost-echo")
                stack.callback(echo.stop)
                running = [self._start(name, address, stack) for name in self.subjects]
                for number in range(self.plan.rounds):
                    pair = running if number % 2 == 0 else running[::-1]
                    found += [self._one(subject, echo, number) for subject in pair]
            except (CouldNotStartError, NoCallSucceededError) as error:
                return None, [f"policy cost: {error}"]
        return cost_of(found), []

    def _start(self, name: str, upstream: str, stack: ExitStack) -> Running:
        directory = self.directory / f"cost-{name}"
        subject = self.subjects[name](upstream, directory, self.cores.subject)
        stack.callback(subject.stop)
        return Running(name, subject.address, subject.process)

    def _one(self, subject: Running, echo: Process, number: int) -> Measurement:
        return measure(
            self.tools,
            subject,
            WORKLOAD,
            number,
            echo_pid=echo.pid,
            cores=self.cores.load,
            warmup_s=self.plan.warmup_s,
            duration_s=self.plan.duration_s,
        )


def cost_of(found: Sequence[Measurement]) -> PolicyCost:
    """The row that the measurements of both relays come to; each round has one of each."""
    by_round = {
        name: {m.round: m.cpu_us_per_call or 0.0 for m in found if m.subject == name}
        for name in (POLICY, MINIMAL)
    }
    policy, minimal = by_round[POLICY], by_round[MINIMAL]
    return PolicyCost(
        workload=found[0].workload,
        policy_us=estimate(list(policy.values())),
        minimal_us=estimate(list(minimal.values())),
        difference_us=estimate([policy[number] - minimal[number] for number in policy]),
    )
