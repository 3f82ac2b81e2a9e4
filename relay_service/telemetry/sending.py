"""The PRODUCER span of each job that is sent on its way: a submission, or a dead letter's replay."""

from collections.abc import Callable

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from relay_service.jobs.sending import Message, Sending, UntracedSending
from relay_service.telemetry import attributes as key
from relay_service.telemetry.messaging import Attributes, link_to, operation
from relay_service.telemetry.trace_context import (
    SAMPLED,
    TRACEPARENT,
    HeadSampler,
    TraceHead,
    follow_causes,
)
from relay_service.telemetry.tracing import SpanTarget, as_text


class JobSender:
    """A `Sender` that records. ``now`` is monotonic; ``wall_offset_ns`` makes wall time of it."""

    def __init__(
        self,
        target: SpanTarget,
        sampler: HeadSampler,
        *,
        now: Callable[[], float],
        wall_offset_ns: Callable[[], int],
    ) -> None:
        self.target = target
        self.now = now
        self.wall_offset_ns = wall_offset_ns
        self._sampler = sampler

    def begin(self, message: Message) -> Sending:
        """See `Sender.begin`: within the call that brought the job. A replay is the root of a trace of its
        own, recorded whenever the first submission was, for it is linked to that."""
        trace = self._sampler.begin(((TRACEPARENT, message.within.encode()),) if message.within else ())
        follow_causes(trace, [message.origin.encode()])
        if not trace.flags & SAMPLED:
            return UntracedSending(message.within or message.origin)
        return _JobSending(self, message, trace)


class _JobSending:
    """A job's PRODUCER span, under way."""

    def __init__(self, sender: JobSender, message: Message, trace: TraceHead) -> None:
        self._sender = sender
        self._message = message
        self._trace = trace
        self._offset_ns = sender.wall_offset_ns()
        self._began_at = sender.now()
        ((_, traceparent),) = trace.outgoing(trace.span_id)
        self.traceparent = traceparent.decode()

    def sent(self, job_id: str, *, existed: bool) -> None:
        """See `Sending.sent`."""
        marks: Attributes = {key.MESSAGE_ID: job_id}
        if existed:
            marks[key.JOB_EXISTED] = True
        self._end(marks, Status(StatusCode.UNSET))

    def refused(self, why: str) -> None:
        """See `Sending.refused`."""
        self._end({key.ERROR_TYPE: why}, Status(StatusCode.ERROR))

    def _end(self, marks: Attributes, status: Status) -> None:
        message, trace, target = self._message, self._trace, self._sender.target
        origin = link_to(message.origin.encode())
        if message.dead_letter_id:
            marks[key.DEAD_LETTER_ID] = message.dead_letter_id
        if origin is not None:
            marks[key.ORIGINAL_TRACE_ID] = f"{origin.context.trace_id:032x}"
        parent = trace.parent
        target.offer(
            ReadableSpan(
                name=f"send {as_text(message.method)}",
                context=SpanContext(
                    int(trace.trace_id, 16),
                    trace.span_id,
                    is_remote=False,
                    trace_flags=TraceFlags(trace.flags),
                ),
                parent=None
                if parent is None
                else SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True),
                resource=target.resource,
                attributes={
                    **operation("send", as_text(message.method)),
                    key.MESSAGE_BODY_SIZE: message.request_bytes,
                    **marks,
                },
                kind=SpanKind.PRODUCER,
                status=status,
                links=() if origin is None else (origin,),
                start_time=self._offset_ns + int(self._began_at * 1e9),
                end_time=self._offset_ns + int(self._sender.now() * 1e9),
                instrumentation_scope=target.scope,
            )
        )
