"""All that is decided before a run: from scenario, seed and length to schedule and traffic. Pure."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from chaos.plan import PlannedCall, plan_digest, plan_lines
from chaos.scenarios.model import Scenario, Timing
from chaos.scenarios.policies import Policy, overlaid
from chaos.schedule import Schedule


class Form(Enum):
    """How long a run is when no time is given."""

    NORMAL = "normal"
    SHORT = "short"


@dataclass(frozen=True, slots=True)
class Change:
    """What is different about the relay: nothing, or, for a mutant, what was taken from it."""

    name: str = ""
    policy: Policy = field(default_factory=dict)
    """Laid over the scenario's."""
    program: tuple[str, ...] = ()
    """Run instead of the relay; empty: the relay itself."""


@dataclass(frozen=True)
class RunConfig:
    """One run, wholly described."""

    scenario: Scenario
    out_dir: Path
    seed: int = 1
    form: Form = Form.NORMAL
    for_s: float | None = None
    """The length of all phases together; None takes the form's."""
    schedule: Schedule | None = None
    """Instead of the scenario's own."""
    change: Change = Change()
    typed: str = ""
    """The command that makes this run, when it is a part of something larger."""

    @property
    def timing(self) -> Timing:
        """How long the phases are."""
        timing = self.scenario.short if self.form is Form.SHORT else self.scenario.timing
        return timing if self.for_s is None else timing.lasting(self.for_s)

    @property
    def policy(self) -> dict[str, Any]:
        """The relay's policy file."""
        return overlaid(self.scenario.stack.policy, self.change.policy)

    @cached_property
    def plan(self) -> "RunPlan":
        """The run before it is run."""
        schedule = self.schedule or self.scenario.schedule(self.timing, self.seed)
        return RunPlan(self.scenario, self.seed, self.timing, schedule)

    @property
    def command(self) -> str:
        """What to type to run it again; a given schedule is taken from its file."""
        if self.typed:
            return self.typed
        words = ["relay-chaos", "run", self.scenario.name, f"--seed {self.seed}"]
        if self.form is Form.SHORT:
            words.append("--short")
        if self.for_s is not None:
            words.append(f"--for {self.for_s:g}")
        if self.schedule is not None:
            words.append(f"--schedule {self.out_dir / SCHEDULE_FILE}")
        if self.change.name:
            words.append(f"--mutant {self.change.name}")
        return " ".join(words)


SCHEDULE_FILE = "schedule.json"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Faults and calls of a run. The same scenario, seed and timing give the same, byte for byte."""

    scenario: Scenario
    seed: int
    timing: Timing
    schedule: Schedule

    def calls(self) -> Iterator[PlannedCall]:
        """The traffic with its overtime, drawn anew each time it is asked for, and always the same."""
        return self.scenario.calls(self.timing, self.schedule, self.seed)

    def regular_calls(self) -> Iterator[PlannedCall]:
        """The traffic of the phases as planned."""
        return takewhile(lambda call: call.at_s < self.timing.total_s, self.calls())

    def lines(self) -> Iterator[str]:
        """The traffic as text."""
        return plan_lines(self.regular_calls())

    def text(self) -> str:
        """The plan as JSON: the schedule whole, the traffic by its length and digest."""
        count, digest = plan_digest(self.regular_calls())
        shown = {
            "scenario": self.scenario.name,
            "seed": self.seed,
            "phases_s": {
                "steady": round(self.timing.steady_s, 3),
                "fault": round(self.timing.fault_s, 3),
                "recovery": round(self.timing.recovery_s, 3),
            },
            "schedule": json.loads(self.schedule.text()),
            "traffic": {"calls": count, "sha256": digest},
        }
        return json.dumps(shown, indent=2) + "\n"
