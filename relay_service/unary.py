"""A unary call: taken whole, admitted, tried, answered whole."""

from typing import Protocol

from relay_service.core.admission import Admitted, Offer
from relay_service.core.call import (
    Aborted,
    AttemptDone,
    BackoffElapsed,
    Begin,
    Call,
    DeadlinePassed,
    Event,
    RetryRefused,
    State,
)
from relay_service.core.limit import LoadSign, load_sign_of
from relay_service.core.reason import Reason
from relay_service.core.verdict import Origin, Verdict
from relay_service.forwarding import ForwardedCall, Host, Plan
from relay_service.message import FRAME_PREFIX_BYTES, Collector
from relay_service.ports import Attempt, CallObserver, Headers, Reply


class UnaryHost(Host, Protocol):
    """What a unary call needs of the relay besides: a worker, and room for its request."""

    def take_worker(self, call: "UnaryCall") -> "Offer[UnaryCall]":
        """Ask for a worker; when QUEUED, `UnaryCall.worker_granted` or `UnaryCall.shed` follows, or
        `leave_queue` ends it."""

    def give_worker_back(self, outcome: LoadSign, held_s: float, now: float) -> None:
        """The worker, held for so long, is free for the next in the queue."""

    def worker_unused(self, now: float) -> None:
        """A worker was given and no attempt was made with it."""

    def hold_request(self, size_bytes: int) -> bool:
        """Ask for so much room for a request; False when too many requests are held already."""

    def let_go_of_request(self, size_bytes: int) -> None:
        """The room is free again."""

    def leave_queue(self, call: "UnaryCall") -> None:
        """The call waits no longer."""

    def pushback_s(self, reason: Reason, now: float) -> float:
        """When a caller that is refused for this reason should return; negative means not at all."""


class UnaryCall(ForwardedCall):
    """One message each way, both held whole; at most ``max_message_bytes`` each.

    State beyond the shared: the request in the making and whole, the response so far, and what the call
    has of the relay: a place in the queue, a worker, room for its request.
    """

    __slots__ = (
        "_collector",
        "_held_bytes",
        "_in_queue",
        "_request",
        "_response",
        "_response_bytes",
        "_response_headers",
        "_worker_since",
    )

    _host: UnaryHost

    def __init__(
        self, host: UnaryHost, plan: Plan, machine: Call, reply: Reply, observer: CallObserver
    ) -> None:
        super().__init__(host, plan, machine, reply, observer)
        self._collector = Collector(plan.policy.max_message_bytes)
        self._request: bytes | None = None
        self._held_bytes = 0
        self._response: list[bytes] = []
        self._response_bytes = 0
        self._response_headers: Headers | None = None
        self._in_queue = False
        self._worker_since: float | None = None

    # The request --------------------------------------------------------------------------------

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        """Collect the request; when it is whole, ask for a worker."""
        if self._machine.state is not State.READY or self._request is not None:
            return
        self._reply.consumed(len(data))
        problem = self._collector.add(data)
        if problem is not None:
            self._stop(Aborted(problem))
        elif not self._hold(len(data)):
            self._stop(Aborted(Reason.QUEUE_FULL, self._host.pushback_s(Reason.QUEUE_FULL, self._host.now())))
        elif end:
            self._request = self._collector.whole()
            if self._request is None:
                self._stop(Aborted(Reason.MALFORMED_REQUEST))
            else:
                self._seek_worker(Begin())

    def _hold(self, size_bytes: int) -> bool:
        if not self._host.hold_request(size_bytes):
            return False
        self._held_bytes += size_bytes
        return True

    def on_reply_drained(self) -> None:
        """The answer is sent in one piece: there is nothing to go on with."""

    # Workers ------------------------------------------------------------------------------------

    def backoff_elapsed(self) -> None:
        """Another attempt needs a worker again."""
        self._seek_worker(BackoffElapsed())

    def _seek_worker(self, then: Event) -> None:
        now = self._host.now()
        match self._host.take_worker(self):
            case Offer(Admitted.STARTED):
                if not self._use_worker(then, now):
                    self._host.worker_unused(now)
            case Offer(Admitted.QUEUED):
                self._in_queue = True
                self._observer.queued(now)
            case Offer(Admitted.REFUSED, reason):
                self._no_worker(reason or Reason.QUEUE_FULL, now)

    def worker_granted(self, now: float) -> bool:
        """The wait in the queue is over; False when the call ended at once and needs no worker."""
        self._in_queue = False
        self._observer.dequeued(now)
        return self._use_worker(Begin() if self._machine.state is State.READY else BackoffElapsed(), now)

    def _use_worker(self, then: Event, now: float) -> bool:
        """Start an attempt with the worker just given; False when the call ended instead."""
        self._worker_since = now
        self._handle(then, now)
        # An attempt never ends inside its start.
        if self._machine.state is not State.ATTEMPTING:
            self._worker_since = None
        return self._worker_since is not None

    def shed(self, reason: Reason, now: float) -> None:
        """The place in the queue is lost: the admission took it, or the time left is too short."""
        self._in_queue = False
        if reason is Reason.DEADLINE_PASSED:
            self._handle(DeadlinePassed(), now)
        else:
            self._no_worker(reason, now)

    def _no_worker(self, reason: Reason, now: float) -> None:
        """Before the first attempt that is a refusal; after it, the end of the retries."""
        if self._machine.state is State.READY:
            self._handle(Aborted(reason, self._host.pushback_s(reason, now)), now)
        else:
            self._handle(RetryRefused(), now)

    def _handle(self, event: Event, now: float) -> None:
        try:
            super()._handle(event, now)
        finally:
            since = self._worker_since
            if since is not None and isinstance(event, AttemptDone):
                self._worker_since = None
                self._host.give_worker_back(load_sign_of(event.delivery, event.code), now - since, now)

    def _finish(self, verdict: Verdict, now: float) -> None:
        if self._in_queue:
            self._in_queue = False
            self._host.leave_queue(self)
        self._host.let_go_of_request(self._held_bytes)
        self._held_bytes = 0
        super()._finish(verdict, now)

    # The attempt and its answer -----------------------------------------------------------------

    @property
    def _replayable(self) -> bool:
        return True

    @property
    def _responded(self) -> bool:
        return self._response_bytes > 0

    def _send_request(self, attempt: Attempt) -> None:
        self._response_headers = None
        self._response.clear()
        self._response_bytes = 0
        attempt.send_data(self._request or b"", end=True)

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        """Keep them until the verdict."""
        if attempt is self._attempt:
            self._response_headers = headers

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        """Keep it until the verdict, up to the policy's limit."""
        if attempt is not self._attempt:
            return
        self._response.append(data)
        self._response_bytes += len(data)
        attempt.consumed(len(data))
        if self._response_bytes > self._plan.policy.max_message_bytes + FRAME_PREFIX_BYTES:
            self._stop(Aborted(Reason.MESSAGE_TOO_LARGE))

    def on_attempt_drained(self, attempt: Attempt) -> None:
        """The request was queued in one piece: there is nothing to go on with."""

    def _answer(self, verdict: Verdict) -> None:
        if verdict.origin is Origin.UPSTREAM and self._response_headers is not None:
            self._reply.send_headers(self._response_headers)
            for chunk in self._response:
                self._reply.send_data(chunk)
        self._send_trailers(verdict)
