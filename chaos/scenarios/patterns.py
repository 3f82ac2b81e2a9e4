"""Scenarios of what second attempts do: storms, rows of relays, failures that stay, slow tails."""

from dataclasses import replace

from chaos.faults.kinds import Capacity, Failing, Slow
from chaos.plan import CHARGE_KEYED, LIST
from chaos.scenarios.controls import (
    failures_seen,
    stays_down,
    tail_was_there,
)
from chaos.scenarios.expectations import (
    amplification,
    arrivals_bounded,
    hedges_pay,
    no_hedge_unpaid,
    tail_within,
)
from chaos.scenarios.model import SHORT, Scenario, StackShape, Timing, Traffic
from chaos.scenarios.policies import BARE, LAB, adaptive, budget, charge, off, overlaid
from chaos.schedule import Placed
from chaos.traffic import NaiveRetry

MIDDLE = {"begin": 0.05, "end": 0.85}
TIGHT_RATIO, TIGHT_BURST = 0.1, 10
TIGHT = overlaid(LAB, budget(TIGHT_RATIO, TIGHT_BURST))
ROW = 3
ROW_RATIO = 0.2
"""What a row of `ROW` relays may add to the load, each with a budget of `TIGHT_RATIO`."""

METASTABLE_CAPACITY = Capacity(workers=3, service_ms=120, queue=100_000)
"""25 calls/s, and a queue that nothing bounds."""
METASTABLE_LOAD = Traffic(
    mix=(replace(LIST, weight=4), CHARGE_KEYED),
    rate_per_s=17.5,
    timeout_s=0.6,
    retry=NaiveRetry(tries_max=10, pause_s=0.05),
)
"""70 % of that, mostly reads, as a charge that was done in vain is found again by its key; whoever fails
tries again at once, up to ten times, whatever he is told."""
OUTAGE = (Placed(Capacity(workers=3, service_ms=960, queue=100_000), begin=0.0, end=10 / 11),)
"""An eighth of the capacity is left for ten seconds."""
METASTABLE_TIME = Timing(steady_s=3, fault_s=11, recovery_s=9, recovers_within_s=5)
METASTABLE_SHORT = Timing(steady_s=1.5, fault_s=2.5, recovery_s=4.0, recovers_within_s=2.5)

BODY = Placed(Slow(20, sigma=0.3), begin=0.0, end=0.97)
TAIL = Placed(Slow(600, probability=0.02), begin=0.0, end=0.97)
"""One attempt in fifty, each for itself: without hedges that is p99."""
TAIL_MS = 600
HEDGED_LOAD = Traffic(rate_per_s=80, timeout_s=2.0, traced_share=0.05)
HEDGE_RATIO, HEDGE_BURST = 0.05, 4
HEDGED = overlaid(overlaid(LAB, charge(hedging={"quantile": 0.965})), budget(HEDGE_RATIO, HEDGE_BURST))
"""The wait is learned and about one call in thirty hedged; the budget sees to at most one in twenty."""
HEDGE_TIME = Timing(steady_s=3, fault_s=14, recovery_s=4)
HEDGE_SHORT = replace(SHORT, steady_s=1.6, fault_s=5.0)

PATTERNS = (
    Scenario(
        "storm-without-breaker",
        "The budget alone, without a breaker, bounds what a dead upstream sees in every second.",
        (Placed(Failing(1.0), **MIDDLE),),
        stack=StackShape(policy=overlaid(TIGHT, off("breaker")), budget=(TIGHT_RATIO, TIGHT_BURST)),
        expects=(
            failures_seen(30),
            amplification(1 + TIGHT_RATIO, TIGHT_BURST),
            arrivals_bounded(TIGHT_RATIO, TIGHT_BURST),
        ),
    ),
    Scenario(
        "three-relays",
        "Three relays in a row before a dead upstream multiply nothing: at most 1.2 attempts for each call.",
        (Placed(Failing(1.0), **MIDDLE),),
        Traffic(rate_per_s=100),
        StackShape(policy=overlaid(TIGHT, off("breaker")), relays=ROW, budget=(TIGHT_RATIO, TIGHT_BURST)),
        expects=(
            failures_seen(30),
            amplification(1 + ROW_RATIO, TIGHT_BURST),
            arrivals_bounded(ROW_RATIO, TIGHT_BURST),
        ),
    ),
    Scenario(
        "metastable",
        "After ten seconds of lost capacity under load, which callers answer with retries of their own, "
        "service is back at once.",
        OUTAGE,
        METASTABLE_LOAD,
        StackShape(overlaid(LAB, adaptive(initial=8)), capacity=METASTABLE_CAPACITY),
        expects=(failures_seen(30),),
        timing=METASTABLE_TIME,
        short=METASTABLE_SHORT,
    ),
    Scenario(
        "metastable-bare",
        "The control of it: with every pattern off the same outage leaves a downstream busy with dead work.",
        OUTAGE,
        METASTABLE_LOAD,
        StackShape(BARE, capacity=METASTABLE_CAPACITY, budget=None),
        expects=(stays_down(0.5),),
        timing=METASTABLE_TIME,
        short=METASTABLE_SHORT,
        tags=frozenset({"bare"}),
    ),
    Scenario(
        "hedging",
        "Where one attempt in fifty is slow by bad luck, hedges halve p99 for at most 5 % more load.",
        (BODY, TAIL),
        HEDGED_LOAD,
        StackShape(HEDGED, budget=(HEDGE_RATIO, HEDGE_BURST)),
        expects=(
            tail_was_there(TAIL_MS / 2000, 0.01),
            tail_within(TAIL_MS / 2000),
            hedges_pay(HEDGE_RATIO, HEDGE_BURST / 2),
        ),
        timing=HEDGE_TIME,
        short=HEDGE_SHORT,
    ),
    Scenario(
        "hedging-unpaid",
        "When failures have used up the budget, no slow attempt is hedged any more.",
        (BODY, TAIL, Placed(Failing(0.5), begin=0.0, end=0.97)),
        HEDGED_LOAD,
        StackShape(overlaid(HEDGED, off("breaker")), budget=(HEDGE_RATIO, HEDGE_BURST)),
        expects=(failures_seen(30), no_hedge_unpaid(1 + HEDGE_BURST / 2)),
        timing=HEDGE_TIME,
        short=HEDGE_SHORT,
    ),
)
