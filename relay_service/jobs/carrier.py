"""A job's call, made through the same use case as a caller's.

The job is its own caller: a `Reply` that collects the answer, and a listener before the call's observer
that hears the verdict, so that nothing has to be read back out of trailers.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from relay_service import contract
from relay_service.compression import ENCODING, UnframeError, unframe
from relay_service.core.evidence import Delivery, Evidence, Safety
from relay_service.core.job import Job, Work
from relay_service.core.job_step import Run
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.fault_points import FaultPoint
from relay_service.message import frame
from relay_service.ports import AttemptEnd, CallHead, CallObserver, Headers, IncomingCall, JobRun, Reply

BATCH_HINT = "relay-batch"
"""Metadata of a job, never sent on: with the value ``alone`` it joins no batch."""
ALONE = b"alone"
ATTEMPTS_HINT = "relay-attempts-max"
"""Metadata of a job, never sent on: with the value ``1`` its runs make one attempt each."""
ONCE = b"1"
HINTS = frozenset({BATCH_HINT, ATTEMPTS_HINT})
PEER = "job"
"""What logs and spans name as a job's caller."""
JOB_CLASS = b"SHEDDABLE_PLUS"
"""A job that does not say how critical it is makes way for callers that wait."""
ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""Of a decompressed answer; as it stood on the wire the method's own limit held."""

_WORST_LAST = (Delivery.NOT_SENT, Delivery.ANSWERED, Delivery.UNANSWERED)


class CallCarrier(Protocol):
    """What jobs ask of the relay; `relay_service.relay.Relay` is one."""

    now: Callable[[], float]

    def carry(
        self, head: CallHead, reply: Reply, listener: Callable[[CallObserver], CallObserver]
    ) -> IncomingCall | None:
        """Take a job's call; None when it was refused at its headers."""

    def safety(self, method: str) -> Safety:
        """What a second execution of ``method`` would do."""


class Listener:
    """Passes on what the call's observer hears (a ``CallObserver``) and keeps how attempts and call ended."""

    __slots__ = ("_inner", "_on_finished", "delivery", "key_status", "trace_id")

    def __init__(self, inner: CallObserver, on_finished: Callable[[Verdict], None]) -> None:
        self._inner = inner
        self._on_finished = on_finished
        self.delivery = Delivery.NOT_SENT
        self.key_status = ""
        """What the upstream said of the key: ``executed``, ``replayed``, or nothing."""
        self.trace_id = inner.trace_id

    def queued(self, now: float) -> None:
        """See `CallObserver.queued`."""
        self._inner.queued(now)

    def dequeued(self, now: float) -> None:
        """See `CallObserver.dequeued`."""
        self._inner.dequeued(now)

    def attempt_started(self, number: int, upstream: str, now: float) -> Headers:
        """See `CallObserver.attempt_started`."""
        return self._inner.attempt_started(number, upstream, now)

    def hedge_started(self, number: int, upstream: str, now: float) -> Headers:
        """See `CallObserver.hedge_started`."""
        return self._inner.hedge_started(number, upstream, now)

    def attempt_ended(self, number: int, peer: str, end: AttemptEnd, evidence: Evidence, now: float) -> None:
        """Keep the worst delivery."""
        self.delivery = max(self.delivery, end.delivery, key=_WORST_LAST.index)
        self.key_status = (contract.header(end.trailers, contract.KEY_STATUS) or b"").decode(
            "ascii", "replace"
        )
        self._inner.attempt_ended(number, peer, end, evidence, now)

    def finished(self, verdict: Verdict, now: float) -> None:
        """The call is over."""
        self._inner.finished(verdict, now)
        self._on_finished(verdict)


class CollectedReply:
    """The answer as far as it came (a ``Reply``)."""

    __slots__ = ("_chunks", "headers")

    def __init__(self) -> None:
        self.headers: Headers = ()
        self._chunks: list[bytes] = []

    def send_headers(self, headers: Headers) -> None:
        """See `Reply.send_headers`."""
        self.headers = headers

    def send_data(self, data: bytes) -> None:
        """See `Reply.send_data`; the use case has bounded it already."""
        self._chunks.append(data)

    def send_trailers(self, code: Code, message: str, trailers: Headers) -> None:
        """The verdict says it all."""

    def consumed(self, size_bytes: int) -> None:
        """The request lies here whole: no window to give."""

    @property
    def buffered_bytes(self) -> int:
        """Nothing waits to be written anywhere."""
        return 0

    def message(self, bytes_max: int) -> bytes:
        """The response message. Raises `UnframeError` when it is not exactly one."""
        return unframe(b"".join(self._chunks), contract.header(self.headers, ENCODING), bytes_max)


class JobCarrier:
    """Makes the calls of jobs. ``timeout_s`` bounds each, besides its method's own deadline."""

    def __init__(self, relay: CallCarrier, *, timeout_s: float, fault_point: FaultPoint) -> None:
        self._relay = relay
        self._timeout_s = timeout_s
        self._fault_point = fault_point

    def is_repeatable(self, work: Work) -> bool:
        """Whether work that may have been executed may be executed again; every job has a key."""
        return self._relay.safety(work.method).allows_repeat(has_key=True)

    async def carry(self, job: Job) -> Run:
        """One call for one job. Cancelling this gives the call up."""
        work = job.work
        head = self._head(work.method, job_metadata(job), [job])
        if (ATTEMPTS_HINT, ONCE) in work.metadata:
            head = replace(head, once=True)
        return await self._call(head, work.request)

    async def call(self, method: str, metadata: Headers, request: bytes, jobs: Sequence[Job]) -> Run:
        """One unary call for several jobs of one tenant and method."""
        return await self._call(self._head(method, metadata, jobs), request)

    def _head(self, method: str, metadata: Headers, jobs: Sequence[Job]) -> CallHead:
        work = jobs[0].work
        return CallHead(
            method,
            metadata,
            self._timeout_s,
            self._relay.now(),
            PEER,
            work.tenant,
            unary=True,
            bound=self._relay.safety(work.method).binds_to_upstream,
            runs=tuple(JobRun(job.id, job.attempts, job.work.traceparent.encode()) for job in jobs),
        )

    async def _call(self, head: CallHead, request: bytes) -> Run:
        over: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        reply = CollectedReply()
        listeners: list[Listener] = []

        def listen(observer: CallObserver) -> CallObserver:
            listeners.append(Listener(observer, lambda verdict: _tell(over, verdict)))
            return listeners[0]

        incoming = self._relay.carry(head, reply, listen)
        if incoming is not None:
            incoming.on_request_data(frame(request), end=True)
            self._fault_point("job-dispatched")
        try:
            verdict = await over
        except asyncio.CancelledError:
            if incoming is not None:
                incoming.on_cancelled()
            raise
        self._fault_point("job-answered")
        return _run(verdict, listeners[0], reply)


def job_metadata(job: Job) -> Headers:
    """What the job's call carries: the submitter's metadata, its key, its class."""
    metadata = [(name.encode(), value) for name, value in job.work.metadata if name not in HINTS]
    if contract.header(metadata, contract.CRITICALITY) is None:
        metadata.append((contract.CRITICALITY, JOB_CLASS))
    return [*metadata, (contract.IDEMPOTENCY_KEY, job.work.key)]


def goes_alone(work: Work) -> bool:
    """Whether the job must not be joined with others."""
    return (BATCH_HINT, ALONE) in work.metadata


def unreadable(message: str) -> Verdict:
    """The end of a run whose answer came and cannot be read: it may well have been executed."""
    return Verdict(
        Code.INTERNAL, message, Origin.RELAY, Fate.ERROR, Reason.OUTCOME_UNKNOWN, Evidence.AMBIGUOUS, 1
    )


def _tell(over: "asyncio.Future[Verdict]", verdict: Verdict) -> None:
    if not over.done():
        over.set_result(verdict)


def _run(verdict: Verdict, listener: Listener, reply: CollectedReply) -> Run:
    if verdict.code is not Code.OK:
        return Run(verdict, listener.delivery)
    try:
        answer = reply.message(ANSWER_BYTES_MAX)
    except UnframeError as error:
        return Run(unreadable(f"the upstream's answer: {error}"), listener.delivery)
    return Run(verdict, listener.delivery, answer, listener.key_status)
