"""What a scenario is: traffic, faults, a stack, a hypothesis, and what must hold for it. All of it data."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from chaos.evidence import FAULT, RECOVERY, STEADY
from chaos.faults.kinds import Capacity, Flood
from chaos.plan import CHARGE_KEYED, Arrivals, CallKind, PlannedCall, Profile, Step, make_plan
from chaos.scenarios.expectations import Expectation
from chaos.scenarios.policies import BUDGET_BURST, BUDGET_RATIO, LAB, Policy
from chaos.schedule import MENU, Menu, Placed, Schedule, draw, place
from chaos.store import StoreEngine
from chaos.traffic import NO_CLIENT_RETRY, NaiveRetry


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the phases last, in seconds."""

    steady_s: float = 3.0
    fault_s: float = 8.0
    recovery_s: float = 5.0
    recovers_within_s: float = 2.0
    """I6's deadline, counted from the end of the last fault."""

    @property
    def total_s(self) -> float:
        """All phases that have traffic."""
        return self.steady_s + self.fault_s + self.recovery_s

    def lasting(self, total_s: float) -> "Timing":
        """The same in proportion, with ``total_s`` in all; the promise's own deadline does not stretch."""
        factor = total_s / self.total_s
        recovery_s = max(self.recovery_s * factor, self.recovers_within_s + 0.5)
        return replace(
            self, steady_s=self.steady_s * factor, fault_s=self.fault_s * factor, recovery_s=recovery_s
        )

    def phase_at(self, at_s: float) -> str:
        """The phase that a moment of the run belongs to."""
        if at_s < self.steady_s:
            return STEADY
        return FAULT if at_s < self.steady_s + self.fault_s else RECOVERY


OVERTIME_S = 30.0
SHORT = Timing(steady_s=0.8, fault_s=1.8, recovery_s=2.0, recovers_within_s=1.3)
"""For every run of the tests."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """An open loop of calls, the same before, during and after the faults, unless there is a `Flood`."""

    mix: tuple[CallKind, ...] = (CHARGE_KEYED,)
    rate_per_s: float = 80.0
    timeout_s: float = 2.0
    flood: tuple[CallKind, ...] = ()
    """What a flood is made of; empty: more of the mix."""
    retry: NaiveRetry = NO_CLIENT_RETRY
    arrivals: Arrivals = Arrivals.POISSON
    traced_share: float = 0.1


@dataclass(frozen=True, slots=True)
class StackShape:
    """What the traffic goes through."""

    policy: Policy = field(default_factory=lambda: LAB)
    capacity: Capacity | None = None
    """The downstream's, for the whole run; None serves at once."""
    relays: int = 1
    """In a row; the last of them is next to the downstream."""
    collector: bool = False
    """The relay sends its spans to a collector."""
    own_clock: bool = False
    """The relay's wall clock can be stepped."""
    store: StoreEngine | None = None
    """Where the relay keeps keys and jobs, if its policy keeps any."""
    budget: tuple[float, float] | None = (BUDGET_RATIO, BUDGET_BURST)
    """Ratio and burst of the policy's retry budget, which I4 is judged by; None promises nothing."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One experiment with its hypothesis."""

    name: str
    hypothesis: str
    faults: tuple[Placed, ...] = ()
    """Empty: drawn from the seed."""
    traffic: Traffic = Traffic()
    stack: StackShape = StackShape()
    expects: tuple[Expectation, ...] = ()
    """Besides what is promised always, see `chaos.runner.judge`."""
    timing: Timing = Timing()
    short: Timing = SHORT
    tags: frozenset[str] = frozenset()
    menu: Menu = field(default_factory=lambda: MENU)
    """What faults are drawn from when there are none of its own."""

    def schedule(self, timing: Timing, seed: int) -> Schedule:
        """The faults of a run. Pure."""
        if not self.faults:
            return draw(seed, timing.fault_s, self.menu)
        return place(self.faults, timing.fault_s, seed, self.name)

    def calls(self, timing: Timing, schedule: Schedule, seed: int) -> Iterator[PlannedCall]:
        """The traffic of a run, in the order of its times. Pure.

        It goes on for `OVERTIME_S` after the last phase, for runs in which mending takes longer than
        planned; the others stop before.
        """
        traffic = self.traffic
        usual = make_plan(
            self.name,
            Profile((Step(traffic.rate_per_s, timing.total_s),), traffic.arrivals),
            traffic.mix,
            seed,
            traced_share=traffic.traced_share,
        )
        overtime = self._later(
            f"{self.name}-overtime", timing.total_s, OVERTIME_S, factor=1.0, mix=traffic.mix, seed=seed
        )
        floods = [
            self._later(
                f"{self.name}-flood{number}",
                timing.steady_s + timed.at_s,
                timed.for_s,
                factor=timed.fault.factor - 1,
                mix=traffic.flood or traffic.mix,
                seed=seed,
            )
            for number, timed in enumerate(schedule.faults)
            if isinstance(timed.fault, Flood)
        ]
        merged = heapq.merge(usual, *floods, overtime, key=lambda call: call.at_s)
        return (replace(call, id=number) for number, call in enumerate(merged))

    def _later(
        self, name: str, at_s: float, for_s: float, *, factor: float, mix: tuple[CallKind, ...], seed: int
    ) -> Iterator[PlannedCall]:
        """``factor`` times the usual rate from ``at_s`` on."""
        traffic = self.traffic
        profile = Profile((Step(traffic.rate_per_s * factor, for_s),), traffic.arrivals)
        plan = make_plan(name, profile, mix, seed, traced_share=traffic.traced_share)
        return (replace(call, at_s=call.at_s + at_s) for call in plan)
