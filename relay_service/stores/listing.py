"""Many jobs at once: pages, pausing and resuming by filter, and forgetting those that ended long ago."""

from collections.abc import Sequence

from relay_service.core.job import Job, JobState
from relay_service.stores.interface import JobFilter
from relay_service.stores.keys import number_token
from relay_service.stores.queue import let_next_pass, work_topic
from relay_service.stores.rows import JOB_COLUMNS, job_of
from relay_service.stores.statements import (
    FOR_UPDATE,
    SKIP_LOCKED,
    Conditions,
    LockOrder,
    Notify,
    Row,
    Run,
    Transaction,
    placeholders,
)

CHUNK = 500
"""How many jobs one transaction of pausing or resuming touches, so that others get their turn."""


def page(_now: float, which: JobFilter, after: str, limit: int) -> Transaction[tuple[Sequence[Job], str]]:
    """Oldest first. Each state is read from its own index and the pages are merged."""
    number = number_token(after)
    rows: list[Row] = []
    for state in [None] if which.states is None else sorted(which.states, key=lambda s: s.value):
        found = _matching(which, state, number)
        found.args.append(limit)
        rows += yield Run(
            f"SELECT {JOB_COLUMNS} FROM jobs{found.where()} ORDER BY seq LIMIT ${len(found.args)}",
            tuple(found.args),
        )
    rows = sorted(rows, key=lambda row: int(row[0]))[:limit]
    return [job_of(row) for row in rows], str(rows[-1][0]) if len(rows) == limit else ""


def pause_some(_now: float, which: JobFilter, after: int) -> Transaction[tuple[int, int]]:
    """Pause the next `CHUNK` matching jobs; how many, and the number of the last (0 at the end)."""
    if not _includes(which, JobState.PENDING):
        return 0, 0
    rows = yield from _next(which, JobState.PENDING, after, FOR_UPDATE)
    chosen = [row[0] for row in rows]
    if chosen:
        yield Run(
            f"UPDATE jobs SET state = 'paused', gate = 3 WHERE seq IN ({placeholders(len(chosen))})",
            tuple(chosen),
        )
    return len(chosen), chosen[-1] if len(chosen) == CHUNK else 0


def resume_some(now: float, which: JobFilter, after: int) -> Transaction[tuple[int, int]]:
    """The opposite. Jobs with an order key wait behind their elders until those let them pass."""
    if not _includes(which, JobState.PAUSED):
        return 0, 0
    looked_at = yield from _next(which, JobState.PAUSED, after, "")
    orders = sorted({(tenant, order_key) for _seq, tenant, order_key in looked_at if order_key})
    for order in orders:
        yield LockOrder(*order)
    if not looked_at:
        return 0, 0
    chosen = tuple(row[0] for row in looked_at)
    resumed = yield Run(
        "UPDATE jobs SET state = 'pending', gate = CASE WHEN order_key <> '' THEN 2"
        f" WHEN ready_at <= $1 THEN 0 ELSE 1 END WHERE state = 'paused'"
        f" AND seq IN ({placeholders(len(chosen), 2)}) RETURNING seq",
        (now, *chosen),
    )
    for order in orders:
        yield from let_next_pass(now, *order)
    yield Notify(work_topic())
    return len(resumed), chosen[-1] if len(chosen) == CHUNK else 0


def sweep(now: float, keep_s: float, limit: int) -> Transaction[int]:
    """Forget jobs that ended long ago, and holds that are over."""
    rows = yield Run(
        "SELECT seq FROM jobs WHERE state IN ('completed', 'cancelled', 'dead') AND finished_at <= $1"
        f" ORDER BY finished_at LIMIT $2 {SKIP_LOCKED}",
        (now - keep_s, limit),
    )
    chosen = tuple(row[0] for row in rows)
    if chosen:
        yield Run(f"DELETE FROM jobs WHERE seq IN ({placeholders(len(chosen))})", chosen)
    yield Run("DELETE FROM order_holds WHERE until <= $1", (now,))
    return len(chosen)


def _next(which: JobFilter, state: JobState, after: int, lock: str) -> Transaction[Sequence[Row]]:
    found = _matching(which, state, after)
    found.args.append(CHUNK)
    return (
        yield Run(
            f"SELECT seq, tenant, order_key FROM jobs{found.where()} ORDER BY seq"
            f" LIMIT ${len(found.args)} {lock}",
            tuple(found.args),
        )
    )


def _includes(which: JobFilter, state: JobState) -> bool:
    return which.states is None or state in which.states


def _matching(which: JobFilter, state: JobState | None, after: int) -> Conditions:
    found = Conditions()
    found.add("seq > {}", after)
    if state is not None:
        found.add("state = {}", state.value)
    if which.method is not None:
        found.add("method = {}", which.method)
    if which.tenant is not None:
        found.add("tenant = {}", which.tenant)
    if which.order_key is not None:
        found.add("order_key = {}", which.order_key)
    return found
