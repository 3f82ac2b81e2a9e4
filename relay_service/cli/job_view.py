"""Jobs as lines for people."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from relay_service.cli.work import as_line, code_name, counted, moment, name_of

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

    from protos.relay.v1 import job_pb2

ROW = ("id", "state", "method", "key", "submitted", "ready", "runs", "last")
LAST_CHARS_MAX = 60


def job_row(job: "job_pb2.Job") -> tuple[str, ...]:
    """One line of a listing."""
    last = f"{code_name(job.tries[-1].code)}: {job.tries[-1].message}" if job.tries else ""
    return (
        job.id,
        state_name(job),
        job.work.method,
        job.work.idempotency_key,
        moment(job.submit_time),
        moment(job.ready_time),
        str(job.attempts),
        last[:LAST_CHARS_MAX],
    )


def state_name(job: "job_pb2.Job") -> str:
    """Where a job stands, in one word."""
    from protos.relay.v1 import job_pb2

    return name_of(job_pb2.JobState, job.state, "JOB_STATE_")


def change_line(job: "job_pb2.Job") -> str:
    """One change of a job that is watched."""
    line = f"{state_name(job)} after {counted(job.attempts, 'run')}"
    if job.tries:
        line += f", the last {code_name(job.tries[-1].code)}: {job.tries[-1].message}"[:200]
    return f"{line} (dead letter {job.dead_letter_id})" if state_name(job) == "DEAD" else line


def job_lines(job: "job_pb2.Job", known: "DescriptorPool | None") -> Iterator[str]:
    """All of one job."""
    lost = f", {counted(job.lost_leases, 'lease')} lost" if job.lost_leases else ""
    yield from pairs(
        ("job", job.id),
        ("state", f"{state_name(job)}, {counted(job.attempts, 'run')}{lost}"),
        *work_pairs(job.work, known),
        ("submitted", moment(job.submit_time)),
        ("ready", moment(job.ready_time)),
        ("expires", moment(job.expire_time)),
        ("finished", moment(job.finish_time)),
        ("worker", job.worker),
        ("dead letter", job.dead_letter_id),
        ("response", payload_text(job, "response", job.response_bytes, known)),
    )
    yield from try_lines(job.tries)


def work_pairs(work: Any, known: "DescriptorPool | None") -> Iterator[tuple[str, str]]:
    """What is to be done."""
    yield "method", work.method
    yield "key", work.idempotency_key
    yield "order key", work.order_key
    yield "priority", str(work.priority) if work.priority else ""
    for name, value in sorted(work.metadata.items()):
        yield "metadata", f"{name}: {value}"
    yield "request", payload_text(work, "request", work.request_bytes, known)


def payload_text(holder: Any, field: str, size_bytes: int, known: "DescriptorPool | None") -> str:
    """A payload, or how large it is where it was not asked for."""
    if holder.HasField(field):
        from relay_service.cli.payloads import as_text

        return as_text(getattr(holder, field), known)
    return f"{counted(size_bytes, 'byte')} (--payloads shows it)" if size_bytes else ""


def try_lines(tries: Sequence[Any]) -> Iterator[str]:
    """The history, a line each."""
    for number, one in enumerate(tries):
        head = "runs" if number == 0 else ""
        yield (
            f"{head:12} {moment(one.time)}  {code_name(one.code)}: {one.message}"
            f"  ({one.delivery}, worker {one.worker[:12]})"
        )


def pairs(*of: tuple[str, str]) -> Iterator[str]:
    """Names and what they stand for, those without left out."""
    return (f"{name:12} {value}" for name, value in of if value)


def shown(message: Any, lines: Iterable[str], known: "DescriptorPool | None", *, as_json: bool) -> str:
    """One thing, for programs or for people."""
    return as_line(message, known) if as_json else "\n".join(lines)
