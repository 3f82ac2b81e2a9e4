"""Scenarios of failing processes: killed, stopped, restarted, drained; a collector and a clock that fail."""

from dataclasses import replace

from chaos.faults.kinds import ClockStep, CollectorDown, Hanging, Kill, Pause, Restart
from chaos.plan import CHARGE_KEYED
from chaos.scenarios.controls import (
    failures_seen,
    slowest_took,
    spans_were_dropped,
)
from chaos.scenarios.expectations import (
    effects_are_told,
    success_during_fault,
    success_throughout,
)
from chaos.scenarios.model import SHORT, Scenario, StackShape, Timing, Traffic
from chaos.schedule import Placed
from chaos.stack import Member

PROCESSES = (
    Scenario(
        "kill-downstream",
        "A downstream killed with -9 loses no payment that was answered OK and doubles none.",
        (Placed(Kill(Member.DOWNSTREAM), begin=0.1, end=0.5),),
        expects=(failures_seen(),),
        tags=frozenset({"kills"}),
    ),
    Scenario(
        "stop-downstream",
        "A downstream that is alive, connected and silent (SIGSTOP) is found out; service returns with it.",
        (Placed(Pause(Member.DOWNSTREAM), begin=0.1, end=0.7),),
        expects=(failures_seen(),),
    ),
    Scenario(
        "restart-downstream",
        "A downstream restarted in order costs a few retries.",
        (Placed(Restart(Member.DOWNSTREAM), begin=0.1, end=0.4),),
        expects=(effects_are_told(), failures_seen()),
    ),
    Scenario(
        "kill-relay",
        "A relay killed with -9 takes only the calls it held; none of them is charged twice.",
        (Placed(Kill(Member.RELAY), begin=0.1, end=0.5),),
        expects=(failures_seen(),),
        tags=frozenset({"kills"}),
    ),
    Scenario(
        "stop-relay",
        "A relay that is stopped (SIGSTOP) and goes on serves on; nobody gets an answer twice or too late.",
        (Placed(Pause(Member.RELAY), begin=0.1, end=0.5),),
        expects=(slowest_took(0.4),),
    ),
    Scenario(
        "drain-under-load",
        "A relay restarted under load finishes the calls it has taken on.",
        (Placed(Restart(Member.RELAY), begin=0.2, end=0.5),),
        expects=(effects_are_told(), failures_seen()),
    ),
    Scenario(
        "collector-down",
        "A trace collector that is down costs spans, which are counted, and never a call.",
        (Placed(CollectorDown(), begin=0.0, end=0.9),),
        Traffic(rate_per_s=150, traced_share=1.0),
        StackShape(collector=True),
        expects=(success_during_fault(0.995), spans_were_dropped()),
        # What an exporter holds back for another try is long; a short outage drops nothing.
        timing=Timing(fault_s=16),
        short=replace(SHORT, fault_s=6.5),
    ),
    Scenario(
        "clock-forward",
        "A wall clock that jumps an hour ahead changes no deadline.",
        (Placed(ClockStep(3600), begin=0.1, end=0.8),),
        stack=StackShape(own_clock=True),
        expects=(success_throughout(0.995),),
    ),
    Scenario(
        "clock-back",
        "A wall clock that jumps an hour back changes no deadline, also of calls that hang.",
        (
            Placed(ClockStep(-3600), begin=0.1, end=0.8),
            Placed(Hanging(0.05), begin=0.2, end=0.7),
        ),
        Traffic(mix=(CHARGE_KEYED,)),
        StackShape(own_clock=True),
        expects=(success_throughout(0.95),),
    ),
)
