"""What the door of a standing queue is worth: how long the served waited, and whether a no comes at once.

`python -m pytest -s tests/simulation/test_the_door.py` prints the table that the decision log quotes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from capacity_world import Arrival, CapacityWorld, Crowd
from limit_runs import DEFAULT

from relay_service.core.admission import PATIENCE
from relay_service.core.criticality import Criticality
from relay_service.core.policy import AdmissionPolicy, QueueOrder, StandingShed
from relay_service.core.reason import Reason

DOOR = DEFAULT
FIFO = replace(DEFAULT, standing_shed=StandingShed.NONE)
LIFO = replace(FIFO, queue_order=QueueOrder.ADAPTIVE_LIFO)
SEEDS = (1, 2, 3)
WORKERS, SERVICE_S = 36, 0.02
AT_ONCE_S = 0.001
OVERLOAD_S, FOUND_S, END_S = 1.0, 2.0, 5.0
"""When the overload begins, when it is looked at, and its end."""


class Timed(CapacityWorld):
    """Keeps how long the served and the refused have waited, once the overload is known."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.served_after: list[float] = []
        self.refused_after: list[float] = []

    def _refused(self, arrival: Arrival, reason: Reason) -> None:
        super()._refused(arrival, reason)
        self._keep(self.refused_after, arrival)

    def _begin(self, arrival: Arrival) -> None:
        super()._begin(arrival)
        self._keep(self.served_after, arrival)

    def _keep(self, kept: list[float], arrival: Arrival) -> None:
        came_at = arrival.deadline - arrival.crowd.timeout_s
        if came_at >= FOUND_S:
            kept.append(self.now - came_at)


@dataclass(frozen=True, slots=True)
class Figures:
    goodput: float
    in_vain: float
    wait_p50_s: float
    wait_p99_s: float
    refused_late: float
    """Of all refusals, the share that came after more than `AT_ONCE_S`."""
    refusal_p99_s: float


Crowds = Callable[[float], Sequence[Crowd]]


def overload(times: float, timeout_s: float) -> Crowds:
    """A service at rest, then so many times what it can do."""
    return lambda capacity_per_s: (
        Crowd(0.5 * capacity_per_s, timeout_s, until_s=OVERLOAD_S),
        Crowd(times * capacity_per_s, timeout_s, since_s=OVERLOAD_S),
    )


def measured(policy: AdmissionPolicy, crowds_of: Crowds, seeds: Sequence[int] = SEEDS) -> Figures:
    """Over all seeds together."""
    served, refused, ok, wasted, worked, offered_s = [], [], 0, 0, 0, 0.0
    for seed in seeds:
        world = Timed(seed, policy, workers=WORKERS, service_s=SERVICE_S)
        crowds = crowds_of(world.service.capacity_per_s)
        world.run(END_S, crowds)
        served += world.served_after
        refused += world.refused_after
        ok += sum(crowd.ok_between(FOUND_S, END_S) for crowd in crowds)
        wasted += len(world.service.wasted_at)
        worked += len(world.service.served_at)
        offered_s += END_S - FOUND_S
    late = sum(waited > AT_ONCE_S for waited in refused)
    return Figures(
        ok / (offered_s * WORKERS / SERVICE_S),
        wasted / worked,
        quantile(served, 0.5),
        quantile(served, 0.99),
        late / max(1, len(refused)),
        quantile(refused, 0.99),
    )


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))] if values else 0.0


@pytest.mark.parametrize("timeout_s", [0.2, 1.0])
@pytest.mark.parametrize("times", [3, 10])
def test_whoever_is_refused_is_refused_at_once_and_the_served_wait_about_the_target(
    times: int, timeout_s: float
) -> None:
    door = measured(DOOR, overload(times, timeout_s))
    print(f"seeds {SEEDS}, {times}x, {timeout_s} s, door: {door}")
    assert door.goodput >= 0.98
    assert door.in_vain <= 0.002
    assert door.refusal_p99_s <= AT_ONCE_S
    assert door.refused_late <= 0.001
    assert door.wait_p99_s <= 1.5 * max(DOOR.standing_target_s, PATIENCE * timeout_s)


def test_without_the_door_either_order_says_no_late_or_serves_late() -> None:
    lifo, fifo = measured(LIFO, overload(3, 0.2)), measured(FIFO, overload(3, 0.2))
    print(f"seeds {SEEDS}, 3x, 0.2 s: newest first {lifo}, oldest first {fifo}")
    assert lifo.refusal_p99_s >= 0.15
    assert fifo.wait_p50_s >= 0.1


def test_newest_first_behind_the_door_leaves_the_others_to_their_deadlines() -> None:
    """Why `relay lint` warns of the two together."""
    policy = replace(DOOR, queue_order=QueueOrder.ADAPTIVE_LIFO)
    both = measured(policy, overload(3, 0.2))
    print(f"seeds {SEEDS}, 3x, 0.2 s, door and newest first: {both}")
    assert both.refused_late >= 0.02


def test_a_burst_that_is_over_within_the_interval_passes_the_door() -> None:
    """Six times the usual for fifty milliseconds: it is waited for, longer than the target."""
    for seed in SEEDS:
        world = Timed(seed, DOOR, workers=WORKERS, service_s=SERVICE_S)
        capacity_per_s = world.service.capacity_per_s
        usual = Crowd(0.5 * capacity_per_s)
        burst = Crowd(3 * capacity_per_s, since_s=1.0, until_s=1.05)
        world.run(3.0, (usual, burst))
        ok = usual.ok_between(0.0, 5.0) + burst.ok_between(0.0, 5.0)
        print(f"seed {seed}: {ok} of {len(usual.ended) + len(burst.ended)}")
        assert ok >= 0.99 * (len(usual.ended) + len(burst.ended)), seed


def test_the_critical_pass_a_door_that_is_shut_for_the_sheddable() -> None:
    for seed in SEEDS:
        world = Timed(seed, DOOR, workers=WORKERS, service_s=SERVICE_S)
        capacity_per_s = world.service.capacity_per_s
        critical = Crowd(0.5 * capacity_per_s, 0.2)
        flood = Crowd(9 * capacity_per_s, 0.2, since_s=OVERLOAD_S, criticality=Criticality.SHEDDABLE)
        world.run(END_S, (critical, flood))
        share = critical.ok_between(FOUND_S, END_S) / critical.offered_between(FOUND_S, END_S)
        late = sum(waited > AT_ONCE_S for waited in world.refused_after)
        print(f"seed {seed}: critical {share:.4f}, refused late {late} of {len(flood.ended)}")
        assert share >= 0.995, seed
        assert late <= 0.001 * len(flood.ended), seed


def test_modest_clients_pass_a_door_that_is_shut_for_a_noisy_one() -> None:
    for seed in SEEDS:
        world = Timed(seed, DOOR, workers=WORKERS, service_s=SERVICE_S)
        capacity_per_s = world.service.capacity_per_s
        modest = [Crowd(0.05 * capacity_per_s, 0.2, client=b"modest %d" % number) for number in range(5)]
        noisy = Crowd(9 * capacity_per_s, 0.2, since_s=OVERLOAD_S, client=b"noisy")
        world.run(END_S, (*modest, noisy))
        shares = [
            crowd.ok_between(FOUND_S, END_S) / crowd.offered_between(FOUND_S, END_S) for crowd in modest
        ]
        print(f"seed {seed}: {shares}")
        assert min(shares) >= 0.99, seed
