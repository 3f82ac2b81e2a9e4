"""Scenarios of a failing network: every toxic, both links, both directions; partitions, flapping."""

from dataclasses import replace

from chaos.faults.kinds import Flapping, Link, Partition, Resets, toxic
from chaos.plan import AUTHORIZE, CHARGE, CHARGE_KEYED, LIST, WATCH
from chaos.scenarios.controls import (
    effects_were_lost_sight_of,
    failures_seen,
    felt,
    slower_by,
)
from chaos.scenarios.expectations import (
    success_during_fault,
    success_throughout,
)
from chaos.scenarios.model import Scenario, Traffic
from chaos.schedule import Placed

BACK, FRONT = Link.RELAY_DOWNSTREAM, Link.CLIENT_RELAY
MIDDLE = {"begin": 0.1, "end": 0.8}
"""Where in the fault phase a single fault lies."""
MIXED = Traffic(
    mix=(
        replace(CHARGE_KEYED, weight=6),
        replace(LIST, weight=2),
        replace(WATCH, weight=1),
        replace(AUTHORIZE, weight=1),
    ),
    rate_per_s=80,
)
"""Charges, reads, and streams of both kinds."""

NETWORK = (
    Scenario(
        "latency",
        "Answers that take 100 ms longer cost 100 ms and nothing else.",
        (Placed(toxic(BACK, "latency", latency=100), **MIDDLE),),
        expects=(slower_by(60), success_during_fault(0.995)),
    ),
    Scenario(
        "latency-requests",
        "Requests that take 100 ms longer cost 100 ms and nothing else.",
        (Placed(toxic(BACK, "latency", "upstream", latency=100), **MIDDLE),),
        expects=(slower_by(60), success_during_fault(0.995)),
    ),
    Scenario(
        "jitter",
        "Latency that jumps between 0 and 160 ms reorders nothing and fails nothing.",
        (Placed(toxic(BACK, "latency", latency=80, jitter=80), **MIDDLE),),
        # For half a second the limit looks whether fewer at once are faster: who has the time waits for that.
        replace(MIXED, timeout_s=4.0),
        expects=(slower_by(25), success_during_fault(0.995)),
    ),
    Scenario(
        "bandwidth",
        "A narrow line delays calls without losing any.",
        (Placed(toxic(BACK, "bandwidth", rate=400), **MIDDLE),),
        MIXED,
        expects=(felt(), success_during_fault(0.97)),
    ),
    Scenario(
        "slicer",
        "Bytes that arrive in shreds of about 20 change nothing but the time they take.",
        (
            Placed(toxic(BACK, "slicer", average_size=20, size_variation=10, delay=50), **MIDDLE),
            Placed(
                toxic(FRONT, "slicer", "upstream", average_size=20, size_variation=10, delay=50), **MIDDLE
            ),
        ),
        expects=(success_during_fault(0.99),),
    ),
    Scenario(
        "resets",
        "Connections reset again and again lose answers; keyed payments are charged once all the same.",
        (
            Placed(toxic(BACK, "latency", latency=30), **MIDDLE),
            Placed(Resets(BACK, every_ms=500, on_ms=60), **MIDDLE),
        ),
        expects=(effects_were_lost_sight_of(), success_during_fault(0.8)),
    ),
    Scenario(
        "resets-without-keys",
        "Without a key a payment whose answer was lost is reported as unknown and not made again.",
        (
            Placed(toxic(BACK, "latency", latency=30), **MIDDLE),
            Placed(Resets(BACK, every_ms=500, on_ms=60), **MIDDLE),
        ),
        Traffic(mix=(CHARGE,)),
        expects=(effects_were_lost_sight_of(),),
    ),
    Scenario(
        "blackhole",
        "When answers vanish the connection is given up as dead, and service returns with the network.",
        (Placed(toxic(BACK, "timeout", timeout=0), **MIDDLE),),
        expects=(failures_seen(),),
    ),
    Scenario(
        "blackhole-requests",
        "When requests vanish the connection is given up as dead, and service returns with the network.",
        (Placed(toxic(BACK, "timeout", "upstream", timeout=0), **MIDDLE),),
        expects=(failures_seen(),),
    ),
    Scenario(
        "silence-then-close",
        "Connections that go silent and then close are replaced; calls are repeated where that is safe.",
        (Placed(toxic(BACK, "timeout", timeout=200), begin=0.1, end=0.6),),
        expects=(failures_seen(),),
    ),
    Scenario(
        "limit-data",
        "Connections cut in the middle of a message after 60 kB tear no message and double no payment.",
        (Placed(toxic(BACK, "limit_data", bytes=60_000), **MIDDLE),),
        MIXED,
        expects=(failures_seen(1),),
    ),
    Scenario(
        "slow-close",
        "Connections that take half a second to close hold nobody up while they are also being reset.",
        (
            Placed(toxic(BACK, "slow_close", delay=500), **MIDDLE),
            Placed(Flapping(BACK, every_ms=800, down_ms=100), **MIDDLE),
        ),
        expects=(felt(), success_during_fault(0.6)),
    ),
    Scenario(
        "refusing-network",
        "While every new connection is reset nothing gets through; service returns with the network.",
        (
            Placed(toxic(BACK, "reset_peer", timeout=0), **MIDDLE),
            Placed(Flapping(BACK, every_ms=400, down_ms=50), **MIDDLE),
        ),
        expects=(failures_seen(),),
    ),
    Scenario(
        "partition",
        "Without a network to the downstream callers are told at once; service returns with the network.",
        (Placed(Partition(BACK), **MIDDLE),),
        expects=(failures_seen(),),
    ),
    Scenario(
        "flapping",
        "Short outages, again and again, are waited out or retried.",
        (Placed(Flapping(BACK, every_ms=700, down_ms=150), **MIDDLE),),
        expects=(felt(), success_during_fault(0.85)),
    ),
    Scenario(
        "client-blackhole",
        "Callers that vanish without a word leave no work behind in the relay, and payments stay single.",
        (Placed(toxic(FRONT, "timeout", timeout=0), **MIDDLE),),
        expects=(failures_seen(),),
    ),
    Scenario(
        "client-resets",
        "Callers that are cut off are forgotten: what they had asked for ends once, and nothing leaks.",
        (Placed(Resets(FRONT, every_ms=500, on_ms=60), **MIDDLE),),
        MIXED,
        expects=(failures_seen(),),
    ),
    Scenario(
        "client-latency",
        "A slow line to the callers costs its latency and nothing else.",
        (Placed(toxic(FRONT, "latency", latency=60, jitter=20), **MIDDLE),),
        MIXED,
        expects=(slower_by(25), success_during_fault(0.995)),
    ),
    Scenario(
        "client-flapping",
        "A line to the callers that flaps fails their calls and leaves the relay clean.",
        (Placed(Flapping(FRONT, every_ms=700, down_ms=150), **MIDDLE),),
        expects=(success_throughout(0.5),),
    ),
)
