"""What spans say of durable jobs, by OpenTelemetry's messaging conventions
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/): ``send`` is a PRODUCER span whose
context is kept with the job, ``process`` a CONSUMER span for each run, with a link to it.
"""

from collections.abc import Sequence
from typing import Final

from opentelemetry.trace import Link, SpanContext, TraceFlags

from relay_service.ports import JobRun
from relay_service.telemetry import attributes as key
from relay_service.telemetry.trace_context import parse_traceparent

SYSTEM: Final = "resilient_relay"

Attributes = dict[str, str | int | float | bool]


def process_attributes(runs: Sequence[JobRun], method: str) -> Attributes:
    """What a CONSUMER span says of the jobs it is made for."""
    attributes = operation("process", method)
    if len(runs) == 1:
        attributes[key.MESSAGE_ID] = runs[0].job_id
        attributes[key.JOB_RUN] = runs[0].number
    else:
        attributes[key.BATCH_MESSAGE_COUNT] = len(runs)
    return attributes


def links_of(runs: Sequence[JobRun]) -> tuple[Link, ...]:
    """A link to what each job was sent in, as far as that is known. It is no parent: the run may come days
    later, and again."""
    return tuple(link for run in runs if (link := link_to(run.traceparent)) is not None)


def link_to(traceparent: bytes) -> Link | None:
    """A link to the span that ``traceparent`` names; None when it names none."""
    cause = parse_traceparent(traceparent) if traceparent else None
    if cause is None:
        return None
    flags = TraceFlags(cause.flags)
    return Link(
        SpanContext(int(cause.trace_id, 16), int(cause.span_id, 16), is_remote=True, trace_flags=flags)
    )


def operation(name: str, method: str) -> Attributes:
    """What both kinds say; a job's destination is its method, the queue it waits in."""
    return {
        key.MESSAGING_SYSTEM: SYSTEM,
        key.OPERATION_NAME: name,
        key.OPERATION_TYPE: name,
        key.DESTINATION: method,
    }
