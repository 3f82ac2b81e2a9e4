"""A unary call: taken whole, admitted, tried, answered whole."""

from typing import Protocol

from relay_service.core.admission import Admitted
from relay_service.core.call import Call, State
from relay_service.core.events import (
    Aborted,
    Action,
    AttemptDone,
    BackoffElapsed,
    Begin,
    CancelAttempt,
    DeadlinePassed,
    Event,
    HedgeDue,
    HedgeUnserved,
    RetryRefused,
    StartHedge,
    WaitHedge,
)
from relay_service.core.evidence import Delivery
from relay_service.core.limit import load_sign_of
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Origin, Verdict
from relay_service.forwarding import GIVEN_UP, ForwardedCall, Host, Plan, took_too_long
from relay_service.hedge_attempt import HedgeAttempt
from relay_service.message import FRAME_PREFIX_BYTES, Collector, HeldResponse, is_one_message
from relay_service.ports import Attempt, AttemptEnd, CallObserver, Headers, Reply, TimerHandle
from relay_service.workers import Workers

_STARTED, _QUEUED = Admitted.STARTED, Admitted.QUEUED
_READY, _ATTEMPTING = State.READY, State.ATTEMPTING
_ANSWERED = Delivery.ANSWERED
_UPSTREAM = Origin.UPSTREAM
_BEGIN = Begin()


class UnaryHost(Host, Protocol):
    """What a unary call needs of the relay besides: a worker, and room for its request."""

    workers: Workers


class UnaryCall(ForwardedCall):
    """One message each way, both held whole; at most ``max_message_bytes`` each.

    State beyond the shared: the request in the making and whole, the main attempt's response so far and that
    of the attempt that was answered last, what the call has of the relay (a place in the queue, a worker,
    room for its request), the hedges under way by number, and the timer of the next.
    """

    __slots__ = (
        "_answered_with",
        "_collector",
        "_hedge_timer",
        "_hedges",
        "_held_bytes",
        "_in_queue",
        "_request",
        "_response",
        "_worker_since",
    )

    _host: UnaryHost

    def __init__(
        self, host: UnaryHost, plan: Plan, machine: Call, reply: Reply, observer: CallObserver
    ) -> None:
        super().__init__(host, plan, machine, reply, observer)
        self._collector: Collector | None = None
        self._request: bytes | None = None
        self._held_bytes = 0
        self._response = self._answered_with = HeldResponse()
        self._in_queue = False
        self._worker_since: float | None = None
        self._hedges: dict[int, HedgeAttempt] | None = None
        self._hedge_timer: TimerHandle | None = None

    # The request --------------------------------------------------------------------------------

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        """Collect the request; when it is whole, ask for a worker."""
        if self._machine.state is not _READY or self._request is not None:
            return
        self._reply.consumed(len(data))
        problem = self._collect(data, whole=end)
        if problem is not None:
            self._stop(Aborted(problem))
        elif not self._hold(len(data)):
            pushback_s = self._host.workers.pushback_s(Reason.QUEUE_FULL, self._host.now())
            self._stop(Aborted(Reason.QUEUE_FULL, pushback_s))
        elif end:
            if self._collector is not None:
                self._request = self._collector.whole()
            if self._request is None:
                self._stop(Aborted(Reason.MALFORMED_REQUEST))
            else:
                self._seek_worker(_BEGIN)

    def _collect(self, data: bytes, *, whole: bool) -> Reason | None:
        """Take more of the request; a reason when it cannot become a message that is accepted."""
        max_bytes = self._plan.policy.max_message_bytes
        if self._collector is None:
            if whole and len(data) <= max_bytes + FRAME_PREFIX_BYTES and is_one_message(data):
                self._request = data  # in one piece, as most come
                return None
            self._collector = Collector(max_bytes)
        return self._collector.add(data)

    def _hold(self, size_bytes: int) -> bool:
        if not self._host.workers.hold_request(size_bytes):
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
        offer = self._host.workers.take(self, now)
        if offer.admitted is _STARTED:
            if not self._use_worker(then, now):
                self._host.workers.unused(self, now)
        elif offer.admitted is _QUEUED:
            self._in_queue = True
            self._observer.queued(now)
        else:
            self._no_worker(offer.reason or Reason.QUEUE_FULL, now)

    def worker_granted(self, now: float) -> bool:
        """The wait in the queue is over; False when the call ended at once and needs no worker."""
        self._in_queue = False
        self._observer.dequeued(now)
        return self._use_worker(_BEGIN if self._machine.state is _READY else BackoffElapsed(), now)

    def _use_worker(self, then: Event, now: float) -> bool:
        """Start an attempt with the worker just given; False when the call ended instead."""
        self._worker_since = now
        self._handle(then, now)
        # An attempt never ends inside its start.
        if self._machine.state is _ATTEMPTING:
            return True
        self._worker_since = None
        return False

    def shed(self, reason: Reason, now: float) -> None:
        """The place in the queue is lost: the admission took it, or the time left is too short."""
        self._in_queue = False
        if reason is Reason.DEADLINE_PASSED:
            self._handle(DeadlinePassed(), now)
        else:
            self._no_worker(reason, now)

    def _no_worker(self, reason: Reason, now: float) -> None:
        """Before the first attempt that is a refusal; after it, the end of the retries."""
        if not self._machine.attempts:
            self._handle(self._host.workers.turned_away(self, reason, now), now)
        else:
            self._handle(RetryRefused(), now)

    def _handle(self, event: Event, now: float) -> None:
        try:
            self._apply(self._machine.handle(event, now), now)
        finally:
            since = self._worker_since
            # Of the main attempt: those of hedges take another way.
            if since is not None and isinstance(event, AttemptDone):
                self._worker_since = None
                sign = load_sign_of(event.delivery, event.code, given_up=event.given_up)
                self._host.workers.give_back(self, sign, now - since, now)

    def _finish(self, verdict: Verdict, now: float) -> None:
        if self._in_queue:
            self._in_queue = False
            self._host.workers.leave_queue(self)
        self._host.workers.let_go_of_request(self._held_bytes)
        self._held_bytes = 0
        super()._finish(verdict, now)

    # The main attempt ---------------------------------------------------------------------------

    @property
    def _replayable(self) -> bool:
        return True

    @property
    def _responded(self) -> bool:
        return self._response.size_bytes > 0

    def _send_request(self, attempt: Attempt) -> None:
        if self._number > 1:
            self._response = HeldResponse()
        attempt.send_data(self._request or b"", end=True)

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        """Keep them until the verdict."""
        if attempt is self._attempt:
            self._response.headers = headers

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        """Keep it until the verdict, up to the policy's limit."""
        if attempt is not self._attempt:
            return
        self._response.add(data)
        attempt.consumed(len(data))
        if self._response.size_bytes > self._response_bytes_max:
            self.response_too_large()

    @property
    def _response_bytes_max(self) -> int:
        return self._plan.policy.max_message_bytes + FRAME_PREFIX_BYTES

    def response_too_large(self) -> None:
        """End the call: one attempt's answer exceeds what the policy allows."""
        self._stop(Aborted(Reason.MESSAGE_TOO_LARGE))

    def on_attempt_drained(self, attempt: Attempt) -> None:
        """The request was queued in one piece: there is nothing to go on with."""

    def _attempt_over(self, end: AttemptEnd, now: float) -> None:
        if end.delivery is _ANSWERED:
            self._answered_with = self._response
        if self._hedge_timer is not None and not self._hedges:
            self._call_hedge_off()
        super()._attempt_over(end, now)

    def _answer(self, verdict: Verdict) -> None:
        response = self._answered_with
        if verdict.origin is _UPSTREAM and response.headers is not None:
            self._reply.send_headers(response.headers)
            for chunk in response.chunks:
                self._reply.send_data(chunk)
        self._send_trailers(verdict)

    # Hedges -------------------------------------------------------------------------------------

    def _act_on_hedge(self, action: Action, now: float) -> None:
        match action:
            case WaitHedge(until):
                self._call_hedge_off()
                self._hedge_timer = self._host.timers.call_at(until, UnaryCall.hedge_due, self)
            case StartHedge(number, timeout_s):
                self._start_hedge(number, timeout_s, now)
            case CancelAttempt(number, code) if self._hedges is not None:
                self._hedges[number].give_up(code, GIVEN_UP)

    def hedge_due(self) -> None:
        """The timer of the next hedge."""
        self._hedge_timer = None
        now = self._host.now()
        if not self._host.workers.take_spare(self):
            self._handle(HedgeUnserved(), now)
            return
        attempts = self._machine.attempts
        self._handle(HedgeDue(), now)
        if self._machine.attempts == attempts:
            self._host.workers.unused(self, now)

    def _start_hedge(self, number: int, timeout_s: float | None, now: float) -> None:
        plan = self._plan
        upstream = plan.hedge_upstream
        assert upstream is not None, "a call that may be hedged has where to"  # noqa: S101 (states that cannot be)
        if self._hedges is None:
            self._hedges = {}
        hedge = self._hedges[number] = HedgeAttempt(self, number, self._response_bytes_max, now)
        trace = self._observer.hedge_started(number, upstream.name, now)
        hedge.attempt = upstream.start(plan.method, self._metadata(number, trace), timeout_s, hedge)
        if timeout_s is not None and (plan.deadline is None or now + timeout_s < plan.deadline):
            hedge.timer = self._host.timers.call_at(now + timeout_s, self._hedge_timed_out, hedge)
        hedge.attempt.send_data(self._request or b"", end=True)

    def _hedge_timed_out(self, hedge: HedgeAttempt) -> None:
        hedge.give_up(Code.UNAVAILABLE, took_too_long(self._plan))

    def hedge_over(self, hedge: HedgeAttempt, end: AttemptEnd) -> None:
        """A hedge ended, by itself or because it was given up."""
        hedges = self._hedges
        if hedges is None or hedges.pop(hedge.number, None) is None:
            return
        now = self._host.now()
        if hedge.timer is not None:
            hedge.timer.cancel()
        if end.delivery is Delivery.ANSWERED:
            self._answered_with = hedge.response
        if self._attempt is None and not hedges:
            self._call_hedge_off()
        done = self._done(hedge.number, end, responded=hedge.response.size_bytes > 0)
        self._tell_end(done, hedge.peer, end, now)
        try:
            super()._handle(done, now)
        finally:
            sign = load_sign_of(end.delivery, end.code, given_up=end.given_up)
            self._host.workers.give_back(self, sign, now - hedge.worker_since, now)

    def _call_hedge_off(self) -> None:
        """None is due any more."""
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
            self._hedge_timer = None
