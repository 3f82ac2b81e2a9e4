"""Scenarios of more load than fits: floods, lost capacity and slow starts."""

from dataclasses import replace

from chaos.faults.kinds import Capacity, Flood
from chaos.plan import CHARGE_KEYED
from chaos.scenarios.expectations import (
    class_served,
    fast_refusals,
    goodput,
    little_waste,
    obeyed_pushback,
    success_during_fault,
    useful_refusals,
)
from chaos.scenarios.model import SHORT, Scenario, StackShape, Traffic
from chaos.scenarios.policies import LAB, adaptive, fixed, overlaid
from chaos.schedule import Placed
from chaos.traffic import ObedientRetry

SMALL = Capacity(workers=3, service_ms=60)
"""50 calls/s: little enough that a flood of it is no load for the machine."""
CRITICAL = replace(CHARGE_KEYED, criticality="CRITICAL", client="shop")
SHEDDABLE = replace(CHARGE_KEYED, criticality="SHEDDABLE", client="batch")
ADAPTIVE = StackShape(overlaid(LAB, adaptive(initial=8, ceiling=32)), capacity=SMALL)
LIMIT_TIME = replace(SHORT, steady_s=1.0, fault_s=4.5, recovers_within_s=1.8, recovery_s=3.0)
"""Short, and long enough for a limit to be found."""
AMBLE = Traffic(rate_per_s=28, timeout_s=1.0)
"""56 % of `SMALL`."""

OVERLOAD = (
    Scenario(
        "overload-3x",
        "Three times the capacity offered: goodput stays near it, the rest is refused at once and typed.",
        (Placed(Flood(5.36), begin=0.05, end=0.9),),
        AMBLE,
        ADAPTIVE,
        expects=(
            goodput(SMALL.per_s, 0.8),
            useful_refusals(1.0),
            fast_refusals(0.3),
            little_waste(0.1),
        ),
        short=LIMIT_TIME,
    ),
    Scenario(
        "overload-10x",
        "Ten times the capacity offered: goodput stays near it, the rest is refused at once and typed.",
        (Placed(Flood(17.9), begin=0.05, end=0.9),),
        AMBLE,
        ADAPTIVE,
        expects=(
            goodput(SMALL.per_s, 0.75),
            useful_refusals(1.0),
            fast_refusals(0.3),
            little_waste(0.1),
        ),
        short=LIMIT_TIME,
    ),
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
    Scenario(
        "capacity-drop",
        "When capacity falls to a third under full load the limit follows it down and back up.",
        (
            Placed(Flood(3), begin=0.0, end=0.9),
            Placed(Capacity(workers=3, service_ms=180), begin=0.2, end=0.7),
        ),
        AMBLE,
        ADAPTIVE,
        expects=(useful_refusals(1.0), little_waste(0.2)),
        short=LIMIT_TIME,
    ),
    Scenario(
        "criticality-flood",
        "A twelvefold flood of SHEDDABLE calls costs the CRITICAL ones nothing.",
        (Placed(Flood(12), begin=0.05, end=0.95),),
        Traffic(mix=(CRITICAL,), flood=(SHEDDABLE,), rate_per_s=28, timeout_s=1.0),
        StackShape(overlaid(LAB, fixed(workers=3, queue=12)), capacity=SMALL),
        expects=(class_served("CRITICAL", 0.97), useful_refusals(1.0), fast_refusals(0.5)),
        short=LIMIT_TIME,
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
