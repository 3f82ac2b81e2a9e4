"""Which job is next: gates, ranks and order keys, as parts of transactions.

A waiting job stands before one gate: READY, DELAYED until its time, or BEHIND an older job of its order
key. Only READY jobs are looked at when one is leased, in the order of their rank, so that a lease costs the
same whether ten jobs wait or a million, and a blocked order key holds up nobody else.

Rank is the time at which a job became ready, brought forward by its priority: priorities with ageing in
one number that never has to be recomputed. A job of priority 0 that has waited for `AGE_S` beats one of
priority 1 that has just come.
"""

from enum import IntEnum

from relay_service.stores.statements import LockOrder, Run, Transaction

AGE_S = 6.0
"""Seconds of waiting that are worth one point of priority."""


class Gate(IntEnum):
    """What a job waits for."""

    READY = 0
    DELAYED = 1
    BEHIND = 2
    NONE = 3
    """It does not wait: it runs, is paused or has ended."""


UNFINISHED = ("pending", "running", "paused")


def rank(ready_at: float, priority: int) -> float:
    """Lower is earlier."""
    return ready_at - priority * AGE_S


def gate_of(ready_at: float, now: float) -> Gate:
    """The gate of a job that is first of its order key."""
    return Gate.READY if ready_at <= now else Gate.DELAYED


def first_of_order(tenant: str, order_key: str) -> Transaction[int | None]:
    """The number of the oldest unfinished job of an order key: one index look-up per state."""
    each = " UNION ALL ".join(
        "SELECT min(seq) AS first FROM jobs"
        f" WHERE tenant = $1 AND order_key = $2 AND order_key <> '' AND state = '{state}'"
        for state in UNFINISHED
    )
    rows = yield Run(f"SELECT min(first) FROM ({each}) AS firsts", (tenant, order_key))
    first = rows[0][0]
    return None if first is None else int(first)


def held_until(tenant: str, order_key: str) -> Transaction[float]:
    """Until when a cancelled job's worker may still be at it."""
    rows = yield Run(
        "SELECT until FROM order_holds WHERE tenant = $1 AND order_key = $2", (tenant, order_key)
    )
    return float(rows[0][0]) if rows else 0.0


def hold(tenant: str, order_key: str, until: float) -> Transaction[None]:
    """Nobody of this order key starts before then."""
    yield Run(
        "INSERT INTO order_holds (tenant, order_key, until) VALUES ($1, $2, $3)"
        " ON CONFLICT (tenant, order_key) DO UPDATE SET until = excluded.until",
        (tenant, order_key, until),
    )


def let_next_pass(now: float, tenant: str, order_key: str) -> Transaction[None]:
    """The oldest unfinished job of the order key is behind nobody any more. The order is locked."""
    if not order_key:
        return
    first = yield from first_of_order(tenant, order_key)
    if first is None:
        return
    until = yield from held_until(tenant, order_key)
    yield Run(
        "UPDATE jobs SET ready_at = CASE WHEN ready_at < $2 THEN $2 ELSE ready_at END,"
        " gate = CASE WHEN ready_at <= $3 AND $2 <= $3 THEN 0 ELSE 1 END WHERE seq = $1 AND gate = 2",
        (first, until, now),
    )


def lock_order_of(job_id: str) -> Transaction[bool]:
    """Lock the order key of a job, if it has one, before its row. False when there is no such job."""
    rows = yield Run("SELECT tenant, order_key FROM jobs WHERE id = $1", (job_id,))
    if not rows:
        return False
    tenant, order_key = rows[0]
    if order_key:
        yield LockOrder(tenant, order_key)
    return True


def work_topic() -> str:
    """What workers listen to."""
    return "work"


def job_topic(job_id: str) -> str:
    """What those who watch a job listen to."""
    return f"job:{job_id}"
