"""Scenarios of a failing store: full, broken, slow, locked; stopped, restarted, cut off; and drawn ones.

Callers repeat with the same key what failed, as they should; durable jobs are submitted all the while;
reads, which need no store, must not notice.
"""

from dataclasses import replace

from chaos.faults.kinds import Kill, Link, Partition, Restart, toxic
from chaos.faults.store_kinds import DiskBroken, DiskFull, DiskSlow, StoreLocked
from chaos.plan import CHARGE_KEYED, LIST, SUBMIT
from chaos.scenarios.controls import (
    failures_seen,
    refused_for_want_of_a_store,
    slower_by,
)
from chaos.scenarios.expectations import (
    reads_go_on,
    success_during_fault,
)
from chaos.scenarios.model import SHORT, Scenario, StackShape, Timing, Traffic
from chaos.scenarios.policies import KEEPING
from chaos.schedule import MENU_WITH_FILE, MENU_WITH_SERVER, Placed
from chaos.stack import Member
from chaos.store import StoreEngine
from chaos.traffic import NaiveRetry

MIDDLE = {"begin": 0.1, "end": 0.8}
TRAFFIC = Traffic(
    mix=(replace(CHARGE_KEYED, weight=5), replace(SUBMIT, weight=3), replace(LIST, weight=2)),
    rate_per_s=60,
    retry=NaiveRetry(tries_max=3, pause_s=0.2),
)
LIGHT = replace(TRAFFIC, rate_per_s=30)
"""For a store that is far away: each of its transactions is several round trips on one of ten connections."""
ON_FILE = StackShape(KEEPING, store=StoreEngine.SQLITE)
ON_SERVER = StackShape(KEEPING, store=StoreEngine.POSTGRES)
BACK_SOON = Timing(recovers_within_s=3.0)
BACK_SOON_SHORT = replace(SHORT, fault_s=2.5, recovery_s=3.2, recovers_within_s=2.5)
"""A PostgreSQL that starts again has its log to go through, and the relay looks for it once a second."""

STORES = (
    Scenario(
        "store-full",
        "With its disk full the relay refuses what it could not keep, and executes nothing of it.",
        (Placed(DiskFull(), **MIDDLE),),
        TRAFFIC,
        ON_FILE,
        expects=(refused_for_want_of_a_store(), reads_go_on()),
    ),
    Scenario(
        "store-broken",
        "A disk that fails every write costs keyed calls and jobs an honest refusal, and no read.",
        (Placed(DiskBroken(), **MIDDLE),),
        TRAFFIC,
        ON_FILE,
        expects=(refused_for_want_of_a_store(), reads_go_on()),
    ),
    Scenario(
        "store-slow",
        "A disk that takes 50 ms to sync costs waiting, shared by all that wait, and fails nothing.",
        (Placed(DiskSlow(50), **MIDDLE),),
        TRAFFIC,
        ON_FILE,
        expects=(slower_by(30), success_during_fault(0.995)),
    ),
    Scenario(
        "store-locked",
        "A store that another process has locked is waited for a moment, then refused with its reason.",
        (Placed(StoreLocked(), **MIDDLE),),
        TRAFFIC,
        ON_FILE,
        expects=(refused_for_want_of_a_store(), reads_go_on()),
        short=replace(SHORT, fault_s=3.0),
    ),
    Scenario(
        "store-full-relay-killed",
        "A relay killed while its disk is full has lost nothing of what it had accepted.",
        (Placed(DiskFull(), 0.1, 0.7), Placed(Kill(Member.RELAY), 0.3, 0.5)),
        TRAFFIC,
        ON_FILE,
        expects=(refused_for_want_of_a_store(),),
        tags=frozenset({"kills"}),
    ),
    Scenario(
        "relay-with-jobs-killed",
        "A relay killed with -9 amid jobs and keyed calls takes up, once back, every job it had accepted.",
        (Placed(Kill(Member.RELAY), begin=0.1, end=0.5),),
        TRAFFIC,
        ON_FILE,
        expects=(failures_seen(),),
        tags=frozenset({"kills"}),
    ),
    Scenario(
        "postgres-killed",
        "A PostgreSQL killed with -9 stops keyed calls and jobs until it is back, loses none, doubles none.",
        (Placed(Kill(Member.STORE), begin=0.1, end=0.6),),
        TRAFFIC,
        ON_SERVER,
        expects=(refused_for_want_of_a_store(), reads_go_on()),
        timing=BACK_SOON,
        short=BACK_SOON_SHORT,
    ),
    Scenario(
        "postgres-restarted",
        "A PostgreSQL restarted in order costs the moment it is away.",
        (Placed(Restart(Member.STORE), begin=0.2, end=0.5),),
        TRAFFIC,
        ON_SERVER,
        expects=(refused_for_want_of_a_store(1), reads_go_on()),
        timing=BACK_SOON,
        short=BACK_SOON_SHORT,
    ),
    Scenario(
        "postgres-slow",
        "A PostgreSQL 5 ms away costs its round trips and nothing else.",
        (Placed(toxic(Link.RELAY_STORE, "latency", latency=5), **MIDDLE),),
        LIGHT,
        ON_SERVER,
        expects=(slower_by(30), success_during_fault(0.99)),
    ),
    Scenario(
        "postgres-cut-off",
        "A PostgreSQL behind a cut network is noticed at once; what needs it is refused until it is back.",
        (Placed(Partition(Link.RELAY_STORE), **MIDDLE),),
        TRAFFIC,
        ON_SERVER,
        expects=(refused_for_want_of_a_store(), reads_go_on()),
        timing=BACK_SOON,
        short=BACK_SOON_SHORT,
    ),
    Scenario(
        "postgres-silent",
        "A PostgreSQL whose network swallows everything is found out; calls end by their deadlines.",
        (Placed(toxic(Link.RELAY_STORE, "timeout", timeout=0), **MIDDLE),),
        TRAFFIC,
        ON_SERVER,
        expects=(reads_go_on(),),
        timing=BACK_SOON,
        short=BACK_SOON_SHORT,
    ),
    Scenario(
        "drawn-with-store",
        "Whatever combination of faults the seed draws, those of its disk included, no job is lost.",
        traffic=TRAFFIC,
        stack=ON_FILE,
        menu=MENU_WITH_FILE,
        tags=frozenset({"kills"}),
    ),
    Scenario(
        "drawn-on-postgres",
        "Whatever combination of faults the seed draws, those of its PostgreSQL included, no job is lost.",
        traffic=TRAFFIC,
        stack=ON_SERVER,
        menu=MENU_WITH_SERVER,
        timing=BACK_SOON,
        short=BACK_SOON_SHORT,
        tags=frozenset({"kills"}),
    ),
)
