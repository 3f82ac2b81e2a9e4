"""Between the values of jobs and dead letters and their messages: the only place where both are named."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from protos.relay.v1 import dead_letter_pb2, job_pb2
from relay_service.core.evidence import Delivery
from relay_service.core.job import Cause, DeadLetter, Job, JobState, LetterState, Replay, Try, Work
from relay_service.core.status import Code
from relay_service.envelope import TYPE_URL_PREFIX
from relay_service.jobs.carrier import HINTS
from relay_service.jobs.forecast import Forecast, Happened, Protection
from relay_service.jobs.replaying import ReplayEnd, ReplayReport
from relay_service.methods import MethodFacts
from relay_service.stores.interface import JobFilter, LetterFilter, LetterGroup
from relay_service.times import seconds, timestamp

_JOB_STATES = {one: job_pb2.JobState.Value(f"JOB_STATE_{one.name}") for one in JobState}
_LETTER_STATES = {one: dead_letter_pb2.LetterState.Value(f"LETTER_STATE_{one.name}") for one in LetterState}
_CAUSES = {one: dead_letter_pb2.Cause.Value(f"CAUSE_{one.name}") for one in Cause}
_PROTECTIONS = {one: dead_letter_pb2.Protection.Value(f"PROTECTION_{one.name}") for one in Protection}
_HAPPENED = {one: dead_letter_pb2.Happened.Value(f"HAPPENED_{one.name}") for one in Happened}
_JOB_STATE_OF = {int(number): one for one, number in _JOB_STATES.items()}
_LETTER_STATE_OF = {int(number): one for one, number in _LETTER_STATES.items()}
_CAUSE_OF = {int(number): one for one, number in _CAUSES.items()}


class UnreadableMessageError(ValueError):
    """A message holds something that means nothing; the text names the field."""


# To messages ------------------------------------------------------------------------------------


def job_message(job: Job, facts: MethodFacts | None, *, payloads: bool) -> job_pb2.Job:
    """A job; its payloads only with ``payloads``, typed as far as ``facts`` tell."""
    message = job_pb2.Job(
        id=job.id,
        work=work_message(job.work, facts, payloads=payloads),
        state=_JOB_STATES[job.state],
        submit_time=_timestamp(job.submitted_at),
        ready_time=_timestamp(job.ready_at),
        expire_time=_timestamp(job.expires_at),
        finish_time=_timestamp(job.finished_at),
        attempts=job.attempts,
        lost_leases=job.lost_leases,
        tries=[_try(one) for one in job.tries],
        worker=job.worker,
        response_bytes=len(job.answer or b""),
        dead_letter_id=job.dead_letter_id,
    )
    if payloads and job.answer is not None:
        message.response.CopyFrom(_any(job.answer, facts.output_type if facts else ""))
    return message


def work_message(work: Work, facts: MethodFacts | None, *, payloads: bool) -> job_pb2.Work:
    """What is to be done."""
    message = job_pb2.Work(
        method=work.method,
        idempotency_key=work.key.decode("ascii", "replace"),
        order_key=work.order_key,
        priority=work.priority,
        metadata={
            name: value.decode("ascii", "replace") for name, value in work.metadata if name not in HINTS
        },
        request_bytes=len(work.request),
    )
    if payloads:
        message.request.CopyFrom(_any(work.request, facts.input_type if facts else ""))
    return message


def letter_message(
    letter: DeadLetter, facts: MethodFacts | None, *, payloads: bool
) -> dead_letter_pb2.DeadLetter:
    """A dead letter; its request only with ``payloads``."""
    return dead_letter_pb2.DeadLetter(
        id=letter.id,
        work=work_message(letter.work, facts, payloads=payloads),
        cause=_CAUSES[letter.cause],
        state=_LETTER_STATES[letter.state],
        death_time=_timestamp(letter.died_at),
        expire_time=_timestamp(letter.expires_at),
        submit_time=_timestamp(letter.submitted_at),
        attempts=letter.attempts,
        tries=[_try(one) for one in letter.tries],
        code=int(letter.code),
        message=letter.message,
        job_id=letter.job_id,
        policy=letter.policy,
        replays=[
            dead_letter_pb2.LetterReplay(
                time=_timestamp(one.at), by=one.by, job_id=one.job_id, outcome=one.outcome
            )
            for one in letter.replays
        ],
        note=letter.note,
        traceparent=letter.work.traceparent,
        fingerprint=letter.work.fingerprint,
        tenant=letter.work.tenant,
    )


def group_message(group: LetterGroup) -> dead_letter_pb2.LetterGroup:
    """Letters that died of the same."""
    return dead_letter_pb2.LetterGroup(
        method=group.method,
        cause=_CAUSES[group.cause],
        code=group.code,
        state=_LETTER_STATES[group.state],
        count=group.count,
        oldest_time=_timestamp(group.oldest),
        newest_time=_timestamp(group.newest),
        sample_id=group.sample_id,
        sample_message=group.sample_message,
    )


def forecast_message(forecast: Forecast) -> dead_letter_pb2.Forecast:
    """What is expected of a replay."""
    return dead_letter_pb2.Forecast(
        letter_id=forecast.letter_id,
        protection=_PROTECTIONS[forecast.protection],
        breaks_order=forecast.breaks_order,
        replayable=forecast.is_open,
    )


def end_message(end: ReplayEnd) -> dead_letter_pb2.ReplayEnd:
    """How one replay ended."""
    return dead_letter_pb2.ReplayEnd(
        forecast=forecast_message(end.forecast),
        happened=_HAPPENED[end.happened],
        job_id=end.job_id,
        detail=end.detail,
    )


def report_message(report: ReplayReport) -> dead_letter_pb2.ReplayReport:
    """How all of them did."""
    happened = report.happened
    return dead_letter_pb2.ReplayReport(
        total=report.total,
        executed=happened[Happened.EXECUTED],
        already_executed=happened[Happened.ALREADY_EXECUTED],
        failed=happened[Happened.FAILED],
        not_started=happened[Happened.NOT_STARTED] + report.not_begun,
        unfinished=happened[Happened.UNFINISHED],
        stopped=report.stopped,
        contradicted=[end_message(end) for end in report.contradicted],
    )


# From messages ----------------------------------------------------------------------------------


def work_of(message: job_pb2.Work, tenant: str, traceparent: str) -> Work:
    """What a caller wants done. Raises `UnreadableMessageError` for text that is no ASCII."""
    try:
        return Work(
            tenant=tenant,
            method=message.method,
            request=message.request.value,
            metadata=tuple((name, value.encode("ascii")) for name, value in sorted(message.metadata.items())),
            key=message.idempotency_key.encode("ascii"),
            order_key=message.order_key,
            priority=message.priority,
            traceparent=traceparent,
        )
    except UnicodeEncodeError as error:
        raise UnreadableMessageError(f"work: {error.object[:200]!r} is not ASCII") from None


def job_filter_of(message: job_pb2.JobFilter, tenant: str) -> JobFilter:
    """Which jobs. Raises `UnreadableMessageError`."""
    return JobFilter(
        tenant=tenant,
        method=message.method or None,
        states=_all(message.states, _JOB_STATE_OF, "filter.states"),
        order_key=message.order_key or None,
    )


def letter_filter_of(message: dead_letter_pb2.LetterFilter) -> LetterFilter:
    """Which letters. Raises `UnreadableMessageError`."""
    return LetterFilter(
        ids=frozenset(message.ids) or None,
        method=message.method or None,
        causes=_all(message.causes, _CAUSE_OF, "filter.causes"),
        states=_all(message.states, _LETTER_STATE_OF, "filter.states"),
        code=message.code if message.HasField("code") else None,
        died_after=seconds(message.died_after) if message.HasField("died_after") else None,
        died_before=seconds(message.died_before) if message.HasField("died_before") else None,
    )


def letter_of(message: dead_letter_pb2.DeadLetter) -> DeadLetter:
    """An exported letter. Raises `UnreadableMessageError`."""
    if not message.id or not message.work.method or not message.work.HasField("request"):
        raise UnreadableMessageError("letter must have id, work.method and work.request")
    work = work_of(message.work, message.tenant, message.traceparent)
    return DeadLetter(
        id=message.id,
        work=replace(work, fingerprint=message.fingerprint),
        cause=_one(message.cause, _CAUSE_OF, "letter.cause"),
        state=LetterState.OPEN,
        died_at=seconds(message.death_time),
        expires_at=seconds(message.expire_time),
        submitted_at=seconds(message.submit_time),
        attempts=message.attempts,
        tries=tuple(_try_of(one) for one in message.tries),
        code=_code(message.code),
        message=message.message,
        job_id=message.job_id,
        policy=message.policy,
        replays=tuple(Replay(seconds(one.time), one.by, one.job_id, one.outcome) for one in message.replays),
        note=message.note,
    )


def _try(one: Try) -> job_pb2.Try:
    return job_pb2.Try(
        time=_timestamp(one.at),
        worker=one.worker,
        code=int(one.code),
        message=one.message,
        delivery=one.delivery.value,
    )


def _try_of(message: job_pb2.Try) -> Try:
    try:
        delivery = Delivery(message.delivery)
    except ValueError:
        raise UnreadableMessageError(f"tries.delivery: {message.delivery[:200]!r} is none") from None
    return Try(seconds(message.time), message.worker, _code(message.code), message.message, delivery)


def _any(value: bytes, type_name: str) -> Any:
    return Any(type_url=TYPE_URL_PREFIX + type_name if type_name else "", value=value)


def _timestamp(unix_s: float) -> Timestamp | None:
    """None for a time that has not come, or never will."""
    if not 0 < unix_s < 253_402_300_800:
        return None
    return timestamp(unix_s)


def _code(number: int) -> Code:
    return Code(number) if 0 <= number <= max(Code) else Code.UNKNOWN


E = TypeVar("E", JobState, LetterState, Cause)


def _all(numbers: Iterable[int], known: Mapping[int, E], field: str) -> frozenset[E] | None:
    return frozenset(_one(number, known, field) for number in numbers) or None


def _one(number: int, known: Mapping[int, E], field: str) -> E:
    try:
        return known[number]
    except KeyError:
        raise UnreadableMessageError(f"{field}: {number} means nothing here") from None
