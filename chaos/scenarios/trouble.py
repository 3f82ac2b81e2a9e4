"""Scenarios of a failing downstream: errors before and after the effect, hangs, slowness, death."""

from dataclasses import replace

from chaos.faults.kinds import Failing, Hanging, Moment, Slow
from chaos.plan import CHARGE, CHARGE_KEYED, LIST
from chaos.scenarios.controls import (
    effects_were_lost_sight_of,
    failures_seen,
)
from chaos.scenarios.expectations import (
    amplification,
    fast_failure,
    jittered,
    method_served,
    quick_during_fault,
    spared,
    success_during_fault,
)
from chaos.scenarios.model import SHORT, Scenario, StackShape, Traffic
from chaos.scenarios.policies import BUDGET_RATIO, LAB, NO_WORD, charge, fixed, overlaid
from chaos.schedule import Placed

MIDDLE = {"begin": 0.05, "end": 0.85}

TROUBLE = (
    Scenario(
        "fail-before",
        "Errors before the effect are repaired by retries as far as the budget goes.",
        (Placed(Failing(0.15), **MIDDLE),),
        expects=(success_during_fault(0.96), failures_seen(), amplification(1 + BUDGET_RATIO)),
    ),
    Scenario(
        "fail-after",
        "Errors after the effect are repaired by retries with the same key: one payment each.",
        (Placed(Failing(0.15, Moment.AFTER_EFFECT), **MIDDLE),),
        stack=StackShape(NO_WORD),
        expects=(success_during_fault(0.96), effects_were_lost_sight_of()),
    ),
    Scenario(
        "fail-ambiguously",
        "Errors that say nothing (INTERNAL) are retried with the key and never without one.",
        (Placed(Failing(0.1, Moment.AFTER_EFFECT, code="INTERNAL"), **MIDDLE),),
        Traffic(mix=(CHARGE_KEYED, CHARGE)),
        StackShape(NO_WORD),
        expects=(effects_were_lost_sight_of(),),
    ),
    Scenario(
        "many-retries",
        "Calls that fail together come back spread over time, not in one wave.",
        (Placed(Failing(0.3), **MIDDLE),),
        Traffic(traced_share=1.0, rate_per_s=80),
        expects=(jittered(), amplification(1 + BUDGET_RATIO)),
    ),
    Scenario(
        "hang",
        "Calls that hang are given up when the attempt's time is over and tried again within the deadline.",
        (Placed(Hanging(0.08), **MIDDLE),),
        expects=(success_during_fault(0.97), failures_seen(), quick_during_fault(1.0, 0.985)),
        short=replace(SHORT, fault_s=2.5),
    ),
    Scenario(
        "hang-after",
        "Calls that hang after their effect are tried again under their key: one payment each.",
        (Placed(Hanging(0.08, Moment.AFTER_EFFECT), **MIDDLE),),
        stack=StackShape(NO_WORD),
        expects=(success_during_fault(0.97), effects_were_lost_sight_of()),
    ),
    Scenario(
        "one-method-hangs",
        "A method that hangs in a compartment of its own takes no worker and no place from another.",
        (Placed(Hanging(1.0), **MIDDLE),),
        Traffic(mix=(CHARGE_KEYED, LIST)),
        StackShape(overlaid(overlaid(LAB, fixed(workers=8, queue=16)), charge(bulkhead={"workers": 4}))),
        expects=(method_served(LIST, 0.99), failures_seen()),
        short=replace(SHORT, fault_s=2.5),
    ),
    Scenario(
        "slow",
        "A heavy tail of latency is cut where an attempt's time ends and costs few calls.",
        (Placed(Slow(40, sigma=1.2), **MIDDLE),),
        expects=(success_during_fault(0.95),),
    ),
    Scenario(
        "dead-upstream",
        "A dead upstream sees at most the budget's retries, and callers are told at once.",
        (Placed(Failing(1.0), **MIDDLE),),
        expects=(failures_seen(30), fast_failure(0.2), spared(0.6)),
        short=replace(SHORT, fault_s=3.5),
    ),
    Scenario(
        "everything-at-once",
        "Errors, hangs and slowness together leave every promise standing.",
        (
            Placed(Failing(0.1, Moment.AFTER_EFFECT), **MIDDLE),
            Placed(Hanging(0.02), **MIDDLE),
            Placed(Slow(30, sigma=0.8), **MIDDLE),
        ),
        Traffic(mix=(replace(CHARGE_KEYED, weight=3), CHARGE)),
        StackShape(NO_WORD),
        expects=(failures_seen(),),
    ),
)
