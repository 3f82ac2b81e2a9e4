"""Leases on jobs: taking, keeping, losing and ending them for those past their time, as transactions."""

from collections.abc import Collection, Sequence

from relay_service.core.job import Job
from relay_service.stores.interface import BURIAL_LEASE_S
from relay_service.stores.queue import Gate, job_topic
from relay_service.stores.rows import JOB_COLUMNS, job_of
from relay_service.stores.statements import (
    SKIP_LOCKED,
    Conditions,
    Notify,
    Row,
    Run,
    Transaction,
    placeholders,
)

PASSING_LIMIT = 1000
"""How many jobs one lease lets through the gates of time, so that it stays short."""


def lease(
    now: float, worker: str, methods: Collection[str] | None, limit: int, lease_s: float
) -> Transaction[Sequence[Job]]:
    """Take the ready jobs of lowest rank."""
    yield from _let_delayed_pass(now)
    yield from _take_back(now)
    found: list[Row] = []
    for method in [None] if methods is None else sorted(methods):
        found += yield from _ready(now, method, limit)
    chosen = [row[0] for row in sorted(found, key=lambda row: (row[1], row[0]))[:limit]]
    if not chosen:
        return ()
    return (yield from _run(now, worker, chosen, lease_s))


def _ready(now: float, method: str | None, limit: int) -> Transaction[Sequence[Row]]:
    """Numbers and ranks, in the order of the index for all methods or for one."""
    ready = Conditions()
    ready.add("gate = 0")
    if method is not None:
        ready.add("method = {}", method)
    ready.add("expires_at > {}", now)
    ready.args.append(limit)
    return (
        yield Run(
            f"SELECT seq, rank FROM jobs{ready.where()} ORDER BY rank, seq"
            f" LIMIT ${len(ready.args)} {SKIP_LOCKED}",
            tuple(ready.args),
        )
    )


def _run(now: float, worker: str, chosen: Sequence[int], lease_s: float) -> Transaction[Sequence[Job]]:
    rows = yield Run(
        f"UPDATE jobs SET state = 'running', gate = {Gate.NONE:d}, worker = $1, fence = fence + 1,"
        " attempts = attempts + 1, lease_until = $2, started_at = $3"
        f" WHERE seq IN ({placeholders(len(chosen), 4)}) RETURNING {JOB_COLUMNS}",
        (worker, now + lease_s, now, *chosen),
    )
    place = {number: position for position, number in enumerate(chosen)}
    jobs = [job_of(row) for row in sorted(rows, key=lambda row: place[row[0]])]
    for job in jobs:
        yield Notify(job_topic(job.id))
    return jobs


def _let_delayed_pass(now: float) -> Transaction[None]:
    rows = yield Run(
        f"SELECT seq FROM jobs WHERE gate = 1 AND ready_at <= $1 ORDER BY ready_at LIMIT $2 {SKIP_LOCKED}",
        (now, PASSING_LIMIT),
    )
    if rows:
        passing = [row[0] for row in rows]
        yield Run(f"UPDATE jobs SET gate = 0 WHERE seq IN ({placeholders(len(passing))})", tuple(passing))


def _take_back(now: float) -> Transaction[None]:
    """Leases that ran out: the job is ready again. Its late worker can change nothing: it runs no more."""
    rows = yield Run(
        "SELECT seq, id, worker FROM jobs WHERE state = 'running' AND lease_until <= $1"
        f" ORDER BY lease_until LIMIT $2 {SKIP_LOCKED}",
        (now, PASSING_LIMIT),
    )
    for number, job_id, worker in rows:
        yield Run(
            "UPDATE jobs SET state = 'pending', gate = 0, lost_leases = lost_leases + $2, worker = '',"
            " lease_until = 0, started_at = 0 WHERE seq = $1",
            (number, 1 if worker else 0),
        )
        yield Notify(job_topic(job_id))


def heartbeat(
    now: float, worker: str, leases: Collection[tuple[str, int]], lease_s: float, progress_s: float
) -> Transaction[Collection[str]]:
    """Extend each lease, none beyond its progress limit; the ids that are the worker's no more."""
    lost = []
    for job_id, fence in sorted(leases):
        rows = yield Run(
            "UPDATE jobs SET lease_until ="
            " CASE WHEN started_at + $4 < $5 THEN started_at + $4 ELSE $5 END"
            " WHERE id = $1 AND fence = $2 AND worker = $3 AND state = 'running' RETURNING lease_until",
            (job_id, fence, worker, progress_s, now + lease_s),
        )
        if not rows or rows[0][0] <= now:
            lost.append(job_id)
    return lost


def expired(now: float, limit: int) -> Transaction[Sequence[Job]]:
    """Waiting or paused jobs past their time to live, leased to nobody in particular for burial."""
    rows = yield from _past_their_time(now, limit)
    if not rows:
        return ()
    chosen = [row[0] for row in rows]
    rows = yield Run(
        "UPDATE jobs SET state = 'running', gate = 3, worker = '', fence = fence + 1, lease_until = $1,"
        f" started_at = $2 WHERE seq IN ({placeholders(len(chosen), 3)}) RETURNING {JOB_COLUMNS}",
        (now + BURIAL_LEASE_S, now, *chosen),
    )
    return [job_of(row) for row in rows]


def _past_their_time(now: float, limit: int) -> Transaction[Sequence[Row]]:
    """A burier that died left jobs running under a lease that ran out: those are taken back first."""
    yield from _take_back(now)
    return (
        yield Run(
            "SELECT seq FROM jobs WHERE state IN ('pending', 'paused') AND expires_at <= $1"
            f" ORDER BY expires_at LIMIT $2 {SKIP_LOCKED}",
            (now, limit),
        )
    )
