"""Scenarios of more load than fits: floods, lost capacity and slow starts."""

from dataclasses import replace

from chaos.faults.kinds import Capacity, Flood
from chaos.plan import CHARGE_KEYED
from chaos.scenarios.expectations import (
    class_served,
    clients_served,
    fast_refusals,
    found_goodput,
    goodput,
    little_late_work,
    obeyed_pushback,
    success_during_fault,
    useful_refusals,
)
from chaos.scenarios.model import SHORT, Scenario, StackShape, Timing, Traffic
from chaos.scenarios.policies import LAB, adaptive, fixed, overlaid, quota
from chaos.schedule import Placed
from chaos.traffic import ObedientRetry

SMALL = Capacity(workers=3, service_ms=60)
"""50 calls/s: little enough that a flood of it is no load for the machine."""
PAIR = Capacity(workers=2, service_ms=40)
"""As many a second, sooner: two seconds are fifty service times, or 17 when it is down to a third."""
SLOW_PAIR = Capacity(workers=2, service_ms=80)
"""25 calls/s, of which a flood of twelve times as many is still no load for the machine."""
PAIR_SLOWER = replace(PAIR, service_ms=3 * PAIR.service_ms)
TRIO_ALONE = replace(SMALL, workers=1)
FOUND = StackShape(overlaid(LAB, adaptive(initial=20, queue=10)), capacity=PAIR)
"""Nothing true is told: no capacity, no service time, no limit."""
FOUND_SLOW = StackShape(overlaid(LAB, adaptive(initial=10, queue=10)), capacity=SLOW_PAIR)
"""Twenty under way would take longer there than an attempt is given, and open the breaker."""
LONG = Timing(steady_s=3.0, fault_s=20.0, recovery_s=5.0)
"""Long enough for one in a hundred to be told from none."""
CHANGES = Timing(steady_s=3.0, fault_s=30.0, recovery_s=5.0)
OVERLOAD_TIME = replace(SHORT, steady_s=1.0, fault_s=6.0, recovers_within_s=1.8, recovery_s=3.0)
SLOW_PAIR_TIME = replace(OVERLOAD_TIME, steady_s=2.0, recovery_s=4.5)
"""`SLOW_PAIR` gets so few calls that its phases need longer for the lab to be able to tell."""
CRITICAL = replace(CHARGE_KEYED, criticality="CRITICAL", client="shop")
SHOP = replace(CHARGE_KEYED, client="shop")
NOISY = replace(CHARGE_KEYED, client="noisy")
SHEDDABLE = replace(CHARGE_KEYED, criticality="SHEDDABLE", client="batch")
LIMIT_TIME = replace(SHORT, steady_s=1.0, fault_s=4.5, recovers_within_s=1.8, recovery_s=3.0)
"""Short, and long enough for a limit to be found."""
AMBLE = Traffic(rate_per_s=28, timeout_s=1.0)
"""56 % of `SMALL`."""


def _amble(capacity: Capacity) -> Traffic:
    return Traffic(rate_per_s=0.56 * capacity.per_s, timeout_s=1.0)


def _capacity_of(shape: StackShape) -> Capacity:
    if shape.capacity is None:
        raise ValueError("an overload needs a downstream with a capacity")
    return shape.capacity


def _overload(
    name: str, times: str, shape: StackShape, short: Timing, *, flood: float, share: float
) -> Scenario:
    capacity = _capacity_of(shape)
    return Scenario(
        name,
        f"{times} times the capacity offered: goodput stays near it, the rest is refused at once and typed.",
        (Placed(Flood(flood), begin=0.05, end=0.9),),
        _amble(capacity),
        shape,
        expects=(
            found_goodput(capacity.per_s, share),
            useful_refusals(1.0),
            fast_refusals(0.3),
            little_late_work(0.01),
        ),
        timing=LONG,
        short=short,
    )


def _capacity_drop(
    name: str, how: str, usual: Capacity, lowered: Capacity, *, flood: float, share: float
) -> Scenario:
    return Scenario(
        name,
        f"When the downstream {how} under full load, the limit follows it down and back up.",
        (Placed(Flood(flood), begin=0.0, end=0.98), Placed(lowered, begin=0.25, end=0.65)),
        _amble(usual),
        replace(FOUND, capacity=usual),
        expects=(
            found_goodput(usual.per_s, share, lowered.per_s),
            useful_refusals(1.0),
            little_late_work(0.01),
        ),
        timing=CHANGES,
        short=replace(OVERLOAD_TIME, fault_s=12.0),
    )


OVERLOAD = (
    _overload("overload-3x", "Three", FOUND, OVERLOAD_TIME, flood=5.36, share=0.95),
    _overload("overload-10x", "Ten", FOUND_SLOW, SLOW_PAIR_TIME, flood=17.9, share=0.9),
    Scenario(
        "overload-small-relay",
        "Behind a told limit and a short queue a spike is served as far as it fits and refused beyond.",
        (Placed(Flood(8), begin=0.05, end=0.9),),
        AMBLE,
        StackShape(overlaid(LAB, fixed(workers=3, queue=12)), capacity=SMALL),
        expects=(goodput(SMALL.per_s, 0.75), useful_refusals(1.0), fast_refusals(0.3)),
        short=LIMIT_TIME,
    ),
    Scenario(
        "deadlines-passed-on",
        "Work whose caller has given up is taken out of the downstream's queue instead of being done.",
        (Placed(Flood(5), begin=0.05, end=0.9),),
        Traffic(rate_per_s=28, timeout_s=0.4),
        StackShape(overlaid(LAB, fixed(workers=200, queue=200)), capacity=SMALL),
        expects=(goodput(SMALL.per_s, 0.2),),
        short=LIMIT_TIME,
    ),
    _capacity_drop("capacity-drop", "takes three times as long", PAIR, PAIR_SLOWER, flood=5.36, share=0.95),
    _capacity_drop(
        "capacity-drop-10x", "takes three times as long", PAIR, PAIR_SLOWER, flood=17.9, share=0.9
    ),
    _capacity_drop(
        "capacity-drop-workers", "loses two of three workers", SMALL, TRIO_ALONE, flood=5.36, share=0.95
    ),
    Scenario(
        "criticality-flood",
        "A flood of SHEDDABLE calls of twelve times the capacity costs the CRITICAL ones nothing.",
        (Placed(Flood(25), begin=0.05, end=0.95),),
        Traffic(mix=(CRITICAL,), flood=(SHEDDABLE,), rate_per_s=12.5, timeout_s=1.0),
        FOUND_SLOW,
        expects=(class_served("CRITICAL", 0.994), useful_refusals(1.0), fast_refusals(0.5)),
        timing=replace(LONG, fault_s=30.0),
        short=SLOW_PAIR_TIME,
    ),
    Scenario(
        "quota-noisy-client",
        "A client that offers twenty times its quota costs the others next to nothing.",
        (Placed(Flood(5), begin=0.05, end=0.95),),
        Traffic(mix=(SHOP,), flood=(NOISY,), rate_per_s=25, timeout_s=1.0),
        replace(FOUND, policy=overlaid(FOUND.policy, quota(per_s=5, burst=5, named={"shop": 40}))),
        expects=(clients_served("noisy", 0.95), useful_refusals(1.0), fast_refusals(0.3)),
        timing=LONG,
        short=OVERLOAD_TIME,
    ),
    Scenario(
        "pushback-obeyed",
        "After a spike, callers who return when they are told to are served then.",
        (Placed(Flood(6), begin=0.1, end=0.25),),
        Traffic(rate_per_s=22, timeout_s=2.0, retry=ObedientRetry(tries_max=4)),
        StackShape(overlaid(LAB, fixed(workers=3, queue=12)), capacity=SMALL),
        expects=(obeyed_pushback(0.9),),
        short=LIMIT_TIME,
    ),
    Scenario(
        "slow-start",
        "A downstream that comes back cold is not trampled: the load on it is bounded while it warms up.",
        (Placed(Capacity(workers=3, service_ms=60, slow_start_ms=1500), begin=0.05, end=0.95),),
        AMBLE,
        StackShape(overlaid(LAB, adaptive(initial=8)), capacity=SMALL),
        expects=(success_during_fault(0.4),),
        short=LIMIT_TIME,
    ),
)
