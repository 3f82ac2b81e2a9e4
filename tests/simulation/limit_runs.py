"""One overload after the other, drawn from seeds: what the limit makes of it, in a few numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from capacity_world import CapacityWorld, Crowd, Spread

from relay_service.config.loading import load_policy
from relay_service.core.criticality import Criticality
from relay_service.core.policy import AdmissionPolicy, LimitKind, LimitPolicy, QueueOrder

DEFAULT: AdmissionPolicy = load_policy("default", "h:1").admission
SMALL = AdmissionPolicy(
    queue_capacity=20,
    queue_order=QueueOrder.ADAPTIVE_LIFO,
    limit=LimitPolicy(kind=LimitKind.GRADIENT, min=2, max=64, initial=20),
)
FOUND_S = 2.0
"""So long after load or capacity changed the limit is the new one."""
CALM_UNTIL_S, DROP_AT_S, RETURN_AT_S, END_S = 1.0, 5.0, 10.0, 14.0
TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Measured:
    """Goodput over what the service could do, from `FOUND_S` after each change on; the share of its work that
    ended after its caller's deadline; and the limits then, as multiples of the service's workers, or of the
    least that the policy allows where that is more."""

    before: float
    lowered: float
    returned: float
    wasted: int
    served: int
    limits: tuple[float, ...]

    @staticmethod
    def mean(values: Iterable[float]) -> float:
        """Of one number over many seeds."""
        found = tuple(values)
        return sum(found) / len(found)


def one_overload(seed: int, times: float) -> Measured:
    """A service at rest, then ``times`` of its capacity, which falls to a third and returns."""
    draw = Random(seed)
    workers = draw.choice([2, 3, 4, 6])
    service_s = draw.uniform(0.015, 0.05)
    spread = draw.choice([Spread.CONSTANT, Spread.UNIFORM])
    # The preset begins with 128 under way, which a very small service would need seconds for.
    policy = draw.choice([SMALL, DEFAULT]) if workers / service_s >= 100.0 else SMALL
    timeout_s = draw.uniform(0.8, 2.0)
    world = CapacityWorld(seed, policy, workers=workers, service_s=service_s, spread=spread)
    usual_per_s = world.service.capacity_per_s
    if workers % 3 == 0 and draw.random() < 0.5:
        lowered = {"workers": workers // 3}
    else:
        lowered = {"service_s": 3 * service_s}
    world.at(DROP_AT_S, lambda: world.service.becomes(**lowered))
    world.at(RETURN_AT_S, lambda: world.service.becomes(workers=workers, service_s=service_s))
    limits: list[float] = []

    def note_limit() -> None:
        limits.append(world.admission.workers / max(world.service.workers, policy.limit.min))

    for since_s, until_s in ((CALM_UNTIL_S, DROP_AT_S), (DROP_AT_S, RETURN_AT_S), (RETURN_AT_S, END_S)):
        for tick in range(int((since_s + FOUND_S) / TICK_S), int(until_s / TICK_S)):
            world.at(tick * TICK_S, note_limit)
    crowds = (
        Crowd(0.5 * usual_per_s, timeout_s, until_s=CALM_UNTIL_S),
        Crowd(times * usual_per_s, timeout_s, since_s=CALM_UNTIL_S),
    )
    world.run(END_S, crowds)
    return Measured(
        _goodput(crowds, CALM_UNTIL_S + FOUND_S, DROP_AT_S, usual_per_s),
        _goodput(crowds, DROP_AT_S + FOUND_S, RETURN_AT_S, usual_per_s / 3),
        _goodput(crowds, RETURN_AT_S + FOUND_S, END_S, usual_per_s),
        len(world.service.wasted_at),
        len(world.service.served_at),
        tuple(limits),
    )


def _goodput(crowds: Sequence[Crowd], since_s: float, until_s: float, capacity_per_s: float) -> float:
    done = sum(crowd.ok_between(since_s, until_s) for crowd in crowds)
    return done / ((until_s - since_s) * capacity_per_s)


def critical_share(seed: int) -> float:
    """How many of the CRITICAL calls, half of what fits, are served in a flood of SHEDDABLE ones.

    The flood is twelve times what fits, and the limit is found.
    """
    draw = Random(seed)
    workers, service_s = draw.choice([2, 3, 4, 6]), draw.uniform(0.015, 0.05)
    spread = draw.choice([Spread.CONSTANT, Spread.UNIFORM])
    world = CapacityWorld(seed, SMALL, workers=workers, service_s=service_s, spread=spread)
    capacity_per_s = world.service.capacity_per_s
    critical = Crowd(0.5 * capacity_per_s, 1.0)
    flood = Crowd(12 * capacity_per_s, 1.0, since_s=CALM_UNTIL_S, criticality=Criticality.SHEDDABLE)
    world.run(END_S, (critical, flood))
    return critical.ok_between(0.0, END_S + 1.0) / len(critical.ended)


def critical_share_of_slow_pair(seed: int) -> float:
    """The same of two workers of 80 ms each, where a few calls out of their turn are all that time allows."""
    policy = replace(SMALL, queue_capacity=10, limit=replace(SMALL.limit, initial=10))
    world = CapacityWorld(seed, policy, workers=2, service_s=0.08)
    critical = Crowd(12.5, 1.0, criticality=Criticality.CRITICAL)
    flood = Crowd(312.5, 1.0, since_s=2.0, criticality=Criticality.SHEDDABLE)
    world.run(30.0, (critical, flood))
    return critical.ok_between(0.0, 31.0) / len(critical.ended)
