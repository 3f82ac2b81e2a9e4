"""A job from submission to its end, as transactions (`relay_service.stores.statements`)."""

import math
from collections.abc import Sequence
from dataclasses import replace

from relay_service.core.idempotency import RecordState, Scope
from relay_service.core.job import DeadLetter, Job, JobState, LetterState, Try, Work
from relay_service.stores import keys, letters
from relay_service.stores.interface import Burial, KeyTakenError, Submission
from relay_service.stores.queue import (
    Gate,
    first_of_order,
    gate_of,
    held_until,
    hold,
    job_topic,
    let_next_pass,
    lock_order_of,
    rank,
    work_topic,
)
from relay_service.stores.rows import JOB_COLUMNS, WORK_COLUMNS, job_of, longer, tries_text, work_values
from relay_service.stores.statements import FOR_UPDATE, LockOrder, Notify, Run, Transaction

_ENDED = (JobState.COMPLETED, JobState.CANCELLED, JobState.DEAD)


def submit(now: float, submissions: Sequence[Submission]) -> Transaction[Sequence[tuple[Job, bool]]]:
    """Accept jobs, all or none."""
    orders = {(s.work.tenant, s.work.order_key) for s in submissions if s.work.order_key}
    for tenant, order_key in sorted(orders):
        yield LockOrder(tenant, order_key)
    accepted = []
    for submission in submissions:
        result = yield from _submit_one(now, submission)
        accepted.append(result)
    if any(is_new for _job, is_new in accepted):
        yield Notify(work_topic())
    return accepted


def _submit_one(now: float, submission: Submission) -> Transaction[tuple[Job, bool]]:
    work = submission.work
    if not work.key:
        job = yield from insert(now, submission, replace(work, key=submission.id.encode()))
        return (job, True) if job else ((yield from _known(submission.id)), False)
    scope = Scope(work.tenant, work.method, work.key)
    record = yield from keys.queue(now, scope, work.fingerprint, submission.id)
    if record is None:
        job = yield from insert(now, submission, work)
        return (job, True) if job else ((yield from _known(submission.id)), False)
    first = yield from _of_key(scope)
    if first is None:
        raise KeyTakenError(submission.id, record)
    return first, False


_INSERT = (
    f"INSERT INTO jobs (id, {WORK_COLUMNS},"
    " state, gate, rank, submitted_at, ready_at, expires_at, dead_letter_id)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'pending', $11, $12, $13, $14, $15, $16)"
    " ON CONFLICT (id) DO NOTHING RETURNING seq"
)


def insert(now: float, submission: Submission, work: Work, replayed: str = "") -> Transaction[Job | None]:
    """A new job before its gate; None when its id is known. The order is locked.

    ``work`` is the submission's, under its key; ``replayed`` the dead letter that it replays."""
    ready_at = now + submission.delay_s
    gate = gate_of(ready_at, now)
    if work.order_key:
        ready_at, gate = yield from _place_in_order(now, ready_at, work)
    expires_at = now + submission.ttl_s
    rows = yield Run(
        _INSERT,
        (
            submission.id,
            *work_values(work),
            int(gate),
            rank(ready_at, work.priority),
            now,
            ready_at,
            expires_at,
            replayed,
        ),
    )
    if not rows:
        return None
    return Job(submission.id, work, JobState.PENDING, now, ready_at, expires_at, dead_letter_id=replayed)


def _place_in_order(now: float, ready_at: float, work: Work) -> Transaction[tuple[float, Gate]]:
    """When a new job of an order may run that is ready then, and what it waits for until then."""
    if (yield from first_of_order(work.tenant, work.order_key)) is not None:
        return ready_at, Gate.BEHIND
    ready_at = max(ready_at, (yield from held_until(work.tenant, work.order_key)))
    return ready_at, gate_of(ready_at, now)


def find(_now: float, job_id: str) -> Transaction[Job | None]:
    """One job."""
    rows = yield Run(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = $1", (job_id,))
    return job_of(rows[0]) if rows else None


def complete(
    now: float, job_id: str, fence: int, *, tried: Try, answer: bytes, keep_s: float
) -> Transaction[bool]:
    """COMPLETED, the key DONE with it, the letter it replays RESOLVED; a second time with the same answer is
    no error."""
    job = yield from _locked(job_id)
    if job is None or job.fence != fence:
        return False
    if job.state is not JobState.RUNNING:
        return job.state is JobState.COMPLETED and job.answer == answer
    yield from _end(now, job, JobState.COMPLETED, tried, answer=answer)
    yield from keys.answer_for_job(now, _scope(job), job.id, answer=answer, keep_s=keep_s)
    if job.dead_letter_id:
        outcome = tried.message or "completed"
        yield from letters.settle_replay(now, job.dead_letter_id, job.id, resolved=True, outcome=outcome)
    return True


def retry(now: float, job_id: str, fence: int, tried: Try, delay_s: float) -> Transaction[bool]:
    """PENDING again after a while."""
    job = yield from _held(job_id, fence)
    if job is None:
        return False
    yield from _wait_again(now, job, now + delay_s, tries=longer(job.tries, tried), attempts=job.attempts)
    return True


def hand_back(now: float, job_id: str, fence: int, delay_s: float) -> Transaction[bool]:
    """PENDING again after a while, the attempt uncounted; without a delay it keeps its place."""
    job = yield from _held(job_id, fence)
    if job is None:
        return False
    ready_at = now + delay_s if delay_s > 0 else job.ready_at
    yield from _wait_again(now, job, ready_at, tries=job.tries, attempts=job.attempts - 1)
    return True


def _wait_again(
    now: float, job: Job, ready_at: float, *, tries: tuple[Try, ...], attempts: int
) -> Transaction[None]:
    yield Run(
        "UPDATE jobs SET state = 'pending', gate = $2, rank = $3, ready_at = $4, tries = $5, attempts = $6,"
        " worker = '', lease_until = 0, started_at = 0 WHERE id = $1",
        (
            job.id,
            int(gate_of(ready_at, now)),
            rank(ready_at, job.work.priority),
            ready_at,
            tries_text(tries),
            attempts,
        ),
    )
    yield Notify(job_topic(job.id))
    yield Notify(work_topic())


def bury(now: float, job_id: str, fence: int, tried: Try | None, burial: Burial) -> Transaction[bool]:
    """DEAD, with its dead letter; a second time with the same letter is no error."""
    job = yield from _locked(job_id)
    if job is None or job.fence != fence:
        return False
    if job.state is not JobState.RUNNING:
        return job.state is JobState.DEAD and job.dead_letter_id == burial.id
    yield from _end(now, job, JobState.DEAD, tried, dead_letter_id=burial.id)
    if not (yield from letters.reopen(burial.id, job.id, tried, burial)):
        yield from letters.insert(_letter(now, job, tried, burial))
    yield from keys.pass_on(
        now, _scope(job), (RecordState.QUEUED, job.id), (RecordState.DEAD_LETTERED, burial.id)
    )
    return True


def _letter(now: float, job: Job, tried: Try | None, burial: Burial) -> DeadLetter:
    return DeadLetter(
        id=burial.id,
        work=job.work,
        cause=burial.cause,
        state=LetterState.OPEN,
        died_at=now,
        expires_at=now + burial.keep_s,
        submitted_at=job.submitted_at,
        attempts=job.attempts,
        tries=longer(job.tries, tried),
        code=letters.code_of(burial),
        message=burial.message,
        job_id=job.id,
        policy=burial.policy,
    )


def cancel(now: float, job_id: str) -> Transaction[Job | None]:
    """CANCELLED unless it has ended."""
    job = yield from _locked(job_id)
    if job is None or job.state in _ENDED:
        return job
    order_key = job.work.order_key
    if job.state is JobState.RUNNING and order_key:
        yield from hold(job.work.tenant, order_key, job.lease_until)
    yield from _end(now, job, JobState.CANCELLED, None)
    yield from _cancel_key(now, job)
    if job.dead_letter_id:
        yield from letters.settle_replay(now, job.dead_letter_id, job.id, resolved=False, outcome="cancelled")
    return (yield from find(now, job_id))


def _cancel_key(now: float, job: Job) -> Transaction[None]:
    """The key of a replay is older than its job: what its letter left unknown stays so."""
    if job.attempts == 0:
        yield from keys.forget_for_job(_scope(job), job.id, job.submitted_at)
    yield from keys.pass_on(now, _scope(job), (RecordState.QUEUED, job.id), (RecordState.AMBIGUOUS, job.id))


def _end(
    now: float,
    job: Job,
    state: JobState,
    tried: Try | None,
    *,
    answer: bytes | None = None,
    dead_letter_id: str = "",
) -> Transaction[None]:
    letter_id = dead_letter_id or job.dead_letter_id
    yield Run(
        "UPDATE jobs SET state = $2, gate = 3, finished_at = $3, tries = $4, answer = $5,"
        " dead_letter_id = $6, lease_until = 0 WHERE id = $1",
        (job.id, state.value, now, tries_text(longer(job.tries, tried)), answer, letter_id),
    )
    yield from let_next_pass(now, job.work.tenant, job.work.order_key)
    yield Notify(job_topic(job.id))
    if job.work.order_key:
        yield Notify(work_topic())


def next_ready_s(now: float) -> Transaction[float | None]:
    """When the next job may be ready: one index look-up for each way of becoming it."""
    rows = yield Run("SELECT 1 FROM jobs WHERE gate = 0 AND expires_at > $1 LIMIT 1", (now,))
    if rows:
        return 0.0
    rows = yield Run(
        "SELECT min(at) FROM (SELECT min(ready_at) AS at FROM jobs WHERE gate = 1"
        " UNION ALL SELECT min(lease_until) AS at FROM jobs WHERE state = 'running') AS times"
    )
    at = rows[0][0]
    return None if at is None or at == math.inf else max(0.0, at - now)


def _held(job_id: str, fence: int) -> Transaction[Job | None]:
    """The job, locked, when it runs under this fence."""
    job = yield from _locked(job_id)
    return job if job is not None and job.fence == fence and job.state is JobState.RUNNING else None


def _locked(job_id: str) -> Transaction[Job | None]:
    if not (yield from lock_order_of(job_id)):
        return None
    rows = yield Run(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = $1 {FOR_UPDATE}", (job_id,))
    return job_of(rows[0]) if rows else None


def _known(job_id: str) -> Transaction[Job]:
    rows = yield Run(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = $1", (job_id,))
    return job_of(rows[0])


def _of_key(scope: Scope) -> Transaction[Job | None]:
    """The job that last had the key: the first, or the replay of its dead letter."""
    rows = yield Run(
        f"SELECT {JOB_COLUMNS} FROM jobs WHERE tenant = $1 AND method = $2 AND key = $3"
        " ORDER BY seq DESC LIMIT 1",
        (scope.tenant, scope.method, scope.key),
    )
    return job_of(rows[0]) if rows else None


def _scope(job: Job) -> Scope:
    return Scope(job.work.tenant, job.work.method, job.work.key)
