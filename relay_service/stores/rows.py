"""How values become rows and rows become values: the same columns in every engine."""

import base64
import json
from dataclasses import replace

from relay_service.core.evidence import Delivery
from relay_service.core.idempotency import Afterwards, Record, RecordState, Scope
from relay_service.core.job import Cause, DeadLetter, Job, JobState, LetterState, Replay, Try, Work, with_try
from relay_service.core.status import Code
from relay_service.stores.statements import Row, compact_json

RECORD_COLUMNS = (
    "tenant, method, key, fingerprint, state, fence, owner, first_seen, changed_at, lease_until, expires_at,"
    " answer, reference, attempts, afterwards, was_ambiguous, id"
)
WORK_COLUMNS = "tenant, method, request, metadata, key, fingerprint, order_key, priority, traceparent"
JOB_COLUMNS = (
    f"seq, id, {WORK_COLUMNS}, state, submitted_at, ready_at, expires_at, attempts, lost_leases, tries,"
    " fence, worker, lease_until, started_at, finished_at, answer, dead_letter_id"
)
LETTER_COLUMNS = (
    f"seq, id, {WORK_COLUMNS}, cause, state, died_at, expires_at, submitted_at, attempts, tries, code,"
    " message, job_id, policy, replays, note, fields"
)
_WORK = slice(2, 11)


def record_of(row: Row) -> Record:
    """A key's record, from `RECORD_COLUMNS`."""
    return Record(
        scope=Scope(row[0], row[1], row[2]),
        fingerprint=row[3],
        state=RecordState(row[4]),
        fence=row[5],
        owner=row[6],
        first_seen=row[7],
        changed_at=row[8],
        lease_until=row[9],
        expires_at=row[10],
        answer=row[11],
        reference=row[12],
        attempts=row[13],
        then=Afterwards(row[14]),
    )


def was_ambiguous(row: Row) -> bool:
    """Whether a claimed record's outcome was unknown before, from `RECORD_COLUMNS`."""
    return bool(row[15])


def record_id(row: Row) -> int:
    """A record's place in listings, from `RECORD_COLUMNS`."""
    return int(row[16])


def work_values(work: Work) -> tuple[object, ...]:
    """For `WORK_COLUMNS`."""
    return (
        work.tenant,
        work.method,
        work.request,
        _metadata_value(work) if work.metadata else "",
        work.key,
        work.fingerprint,
        work.order_key,
        work.priority,
        work.traceparent,
    )


def _metadata_value(work: Work) -> str:
    return compact_json([[name, base64.b64encode(value).decode()] for name, value in work.metadata])


def _work_of(values: Row) -> Work:
    tenant, method, request, metadata, key, fingerprint, order_key, priority, traceparent = values
    return Work(
        tenant=tenant,
        method=method,
        request=request,
        metadata=tuple((name, base64.b64decode(value)) for name, value in json.loads(metadata or "[]")),
        key=key,
        fingerprint=fingerprint,
        order_key=order_key,
        priority=priority,
        traceparent=traceparent,
    )


def job_of(row: Row) -> Job:
    """A job, from `JOB_COLUMNS`."""
    return Job(
        id=row[1],
        work=_work_of(row[_WORK]),
        state=JobState(row[11]),
        submitted_at=row[12],
        ready_at=row[13],
        expires_at=row[14],
        attempts=row[15],
        lost_leases=row[16],
        tries=tries_of(row[17]),
        fence=row[18],
        worker=row[19],
        lease_until=row[20],
        started_at=row[21],
        finished_at=row[22],
        answer=row[23],
        dead_letter_id=row[24],
    )


def letter_of(row: Row) -> DeadLetter:
    """A dead letter, from `LETTER_COLUMNS`."""
    return DeadLetter(
        id=row[1],
        work=_work_of(row[_WORK]),
        cause=Cause(row[11]),
        state=LetterState(row[12]),
        died_at=row[13],
        expires_at=row[14],
        submitted_at=row[15],
        attempts=row[16],
        tries=tries_of(row[17]),
        code=Code(row[18]),
        message=row[19],
        job_id=row[20],
        policy=row[21],
        replays=tuple(Replay(*replay) for replay in json.loads(row[22] or "[]")),
        note=row[23],
        fields=json.loads(row[24] or "{}"),
    )


def letter_values(letter: DeadLetter) -> tuple[object, ...]:
    """For `LETTER_COLUMNS` without the sequence number."""
    return (
        letter.id,
        *work_values(letter.work),
        letter.cause.value,
        letter.state.value,
        letter.died_at,
        letter.expires_at,
        letter.submitted_at,
        letter.attempts,
        tries_text(letter.tries),
        int(letter.code),
        letter.message,
        letter.job_id,
        letter.policy,
        replays_text(letter.replays),
        letter.note,
        compact_json(letter.fields) if letter.fields else "",
    )


def tries_text(tries: tuple[Try, ...]) -> str:
    """Attempts as a column holds them."""
    return (
        compact_json([[t.at, t.worker, int(t.code), t.message, t.delivery.value] for t in tries])
        if tries
        else ""
    )


def tries_of(text: str) -> tuple[Try, ...]:
    """Attempts from their column."""
    if not text:
        return ()
    return tuple(
        Try(at, worker, Code(code), message, Delivery(delivery))
        for at, worker, code, message, delivery in json.loads(text)
    )


def longer(tries: tuple[Try, ...], tried: Try | None) -> tuple[Try, ...]:
    """The history with one more attempt, if there was one."""
    return tries if tried is None else with_try(tries, tried)


def replays_text(replays: tuple[Replay, ...]) -> str:
    """Replays as a column holds them."""
    return compact_json([[r.at, r.by, r.job_id, r.outcome] for r in replays]) if replays else ""


def with_outcome(replays: tuple[Replay, ...], job_id: str, outcome: str) -> tuple[Replay, ...]:
    """The replays with the outcome of one of them."""
    return tuple(replace(r, outcome=outcome) if r.job_id == job_id else r for r in replays)
