"""Carrying one call to its upstream and its answer back: the shell around `relay_service.core.call.Call`.

Two kinds. A unary call is taken whole, then admitted, tried, and answered whole: so a slow caller holds
no worker, any attempt can be repeated, and nothing reaches the caller before the verdict. A streaming
call flows through in both directions with backpressure, and can be tried again only while nothing was
delivered and what the caller sent still fits the replay buffer.

No task runs per call: everything here happens inside a callback of the data plane or of a timer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from relay_service import contract
from relay_service.core.admission import Admitted, Demand, Offer
from relay_service.core.call import (
    Aborted,
    Actions,
    AnswerBegan,
    AttemptDone,
    BackoffElapsed,
    Begin,
    Call,
    CancelAttempt,
    Cancelled,
    DeadlinePassed,
    Event,
    Finish,
    RetryRefused,
    StartAttempt,
    State,
    WaitBackoff,
)
from relay_service.core.evidence import Delivery
from relay_service.core.limit import Outcome, outcome_of
from relay_service.core.policy import MethodPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.ports import (
    Attempt,
    AttemptEnd,
    CallObserver,
    Headers,
    Reply,
    TimerHandle,
    Timers,
    UpstreamPort,
)

FRAME_PREFIX_BYTES = 5
"""gRPC's message prefix: one compressed flag, four bytes of length."""

FLOW_HIGH_WATER_BYTES = 256 * 1024
"""With more than this queued towards one side, the other side gets no further window."""


class Host(Protocol):
    """What a call needs of the relay that carries it."""

    timers: Timers

    def now(self) -> float:
        """Monotonic seconds."""

    def take_worker(self, call: "UnaryCall") -> "Offer[UnaryCall]":
        """Ask for a worker; when QUEUED, `UnaryCall.worker_granted` or `UnaryCall.shed` follows, or
        `leave_queue` ends it."""

    def give_worker_back(self, outcome: Outcome, held_s: float, now: float) -> None:
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

    def call_ended(self, call: "ForwardedCall") -> None:
        """The call is over."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided about a call at its headers."""

    method: str
    metadata: Headers
    """What every attempt carries: the caller's metadata, the derived key, the hop count."""
    upstream: UpstreamPort
    policy: MethodPolicy
    deadline: float | None
    """Monotonic seconds."""
    demand: Demand
    """What it asks of the admission."""
    limited: bool = True
    """False for the relay's own services, which no limit holds back and no drain waits for."""


class ForwardedCall:
    """What both kinds share: events into the machine, its actions out to the transports and timers."""

    __slots__ = (
        "_attempt",
        "_attempt_timer",
        "_backoff_timer",
        "_deadline_timer",
        "_end",
        "_host",
        "_machine",
        "_observer",
        "_plan",
        "_reply",
    )

    def __init__(self, host: Host, plan: Plan, machine: Call, reply: Reply, observer: CallObserver) -> None:
        self._host = host
        self._plan = plan
        self._machine = machine
        self._reply = reply
        self._observer = observer
        self._attempt: Attempt | None = None
        self._end: AttemptEnd | None = None
        self._attempt_timer: TimerHandle | None = None
        self._backoff_timer: TimerHandle | None = None
        self._deadline_timer = (
            host.timers.call_at(plan.deadline, ForwardedCall.deadline_passed, self)
            if plan.deadline is not None
            else None
        )

    @property
    def limited(self) -> bool:
        """Whether the call counts against the relay's limits."""
        return self._plan.limited

    @property
    def demand(self) -> Demand:
        """What the call asks of the admission."""
        return self._plan.demand

    # What happens to the call -------------------------------------------------------------------

    def on_cancelled(self) -> None:
        """The caller is gone."""
        self._stop(Cancelled())

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        """The attempt under way ended by itself."""
        if attempt is self._attempt:
            self._attempt_over(end, self._host.now())

    def turn_away(self) -> None:
        """The relay is shutting down and will not wait for this call."""
        self._stop(Aborted(Reason.DRAINING))

    def deadline_passed(self) -> None:
        """The call's own timer."""
        self._stop(DeadlinePassed())

    def attempt_timed_out(self) -> None:
        """The timer of the attempt under way."""
        if self._attempt is not None:
            self._give_attempt_up(
                Code.UNAVAILABLE, f"the attempt took longer than {self._plan.policy.attempt_timeout_s} s"
            )

    def backoff_elapsed(self) -> None:
        """The timer of the wait before the next attempt."""
        self._handle(BackoffElapsed(), self._host.now())

    def _stop(self, event: Event) -> None:
        self._handle(event, self._host.now())

    # What the machine wants ---------------------------------------------------------------------

    def _handle(self, event: Event, now: float) -> None:
        self._apply(self._machine.handle(event, now), now)

    def _apply(self, actions: Actions, now: float) -> None:
        for action in actions:
            match action:
                case StartAttempt(number, timeout_s):
                    self._start_attempt(number, timeout_s, now)
                case Finish(verdict):
                    self._finish(verdict, now)
                case WaitBackoff(until):
                    self._backoff_timer = self._host.timers.call_at(until, type(self).backoff_elapsed, self)
                case CancelAttempt(code):
                    self._give_attempt_up(code, "given up")

    def _start_attempt(self, number: int, timeout_s: float | None, now: float) -> None:
        plan = self._plan
        metadata = [*plan.metadata, *self._observer.attempt_started(number, plan.upstream.name, now)]
        if number > 1:
            metadata.append((contract.PREVIOUS_ATTEMPTS, b"%d" % (number - 1)))
        self._end = None
        attempt = self._attempt = plan.upstream.start(plan.method, metadata, timeout_s, self)
        if timeout_s is not None and (plan.deadline is None or now + timeout_s < plan.deadline):
            self._attempt_timer = self._host.timers.call_at(
                now + timeout_s, type(self).attempt_timed_out, self
            )
        self._send_request(attempt)

    def _give_attempt_up(self, code: Code, message: str) -> None:
        attempt = self._attempt
        # Without one it could not even be started; whatever raised there must not keep the call for ever.
        delivery = Delivery.NOT_SENT if attempt is None else attempt.cancel()
        self._attempt_over(AttemptEnd(delivery, code, message), self._host.now())

    def _attempt_over(self, end: AttemptEnd, now: float) -> None:
        failed = end.code is not Code.OK
        done = AttemptDone(
            end.delivery,
            end.code,
            end.message,
            pushback_s=contract.pushback_s(end.trailers) if failed and end.trailers else None,
            responded=self._responded,
            replayable=self._replayable,
        )
        peer = self._attempt.peer if self._attempt is not None else ""
        self._attempt = None
        self._end = end
        if self._attempt_timer is not None:
            self._attempt_timer.cancel()
            self._attempt_timer = None
        evidence = self._machine.judgement_of(done).evidence
        self._observer.attempt_ended(self._machine.attempts, peer, end, evidence, now)
        self._handle(done, now)

    def _finish(self, verdict: Verdict, now: float) -> None:
        for timer in (self._deadline_timer, self._backoff_timer):
            if timer is not None:
                timer.cancel()
        if verdict.fate is not Fate.CANCELLED:
            self._answer(verdict)
        self._observer.finished(verdict, now)
        self._host.call_ended(self)

    def _send_trailers(self, verdict: Verdict) -> None:
        end = self._end
        from_upstream = end.trailers if end is not None and verdict.origin is Origin.UPSTREAM else ()
        trailers = contract.trailers_of(verdict, self._plan.method, from_upstream)
        self._reply.send_trailers(verdict.code, verdict.message, trailers)

    # What the kinds do differently --------------------------------------------------------------

    @property
    def _replayable(self) -> bool:
        """Whether another attempt could be made."""
        raise NotImplementedError

    @property
    def _responded(self) -> bool:
        """Whether response messages came."""
        raise NotImplementedError

    def _send_request(self, attempt: Attempt) -> None:
        raise NotImplementedError

    def _answer(self, verdict: Verdict) -> None:
        raise NotImplementedError

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        """See `relay_service.ports.AttemptSink`."""
        raise NotImplementedError

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        """See `relay_service.ports.AttemptSink`."""
        raise NotImplementedError

    def on_attempt_drained(self, attempt: Attempt) -> None:
        """See `relay_service.ports.AttemptSink`."""
        raise NotImplementedError


class Collector:
    """One gRPC message in the making, judged as soon as its prefix is there."""

    __slots__ = ("_chunks", "_expected_bytes", "_max_bytes", "size_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._expected_bytes: int | None = None
        self.size_bytes = 0
        """Collected so far, the prefix included."""

    def add(self, data: bytes) -> Reason | None:
        """Take more bytes; a reason when they cannot become a message that is accepted."""
        self._chunks.append(data)
        self.size_bytes += len(data)
        if self._expected_bytes is None:
            if self.size_bytes < FRAME_PREFIX_BYTES:
                return None
            prefix = b"".join(self._chunks)[:FRAME_PREFIX_BYTES]
            if prefix[0] not in (0, 1):
                return Reason.MALFORMED_REQUEST
            self._expected_bytes = int.from_bytes(prefix[1:]) + FRAME_PREFIX_BYTES
            if self._expected_bytes > self._max_bytes + FRAME_PREFIX_BYTES:
                return Reason.MESSAGE_TOO_LARGE
        return Reason.MALFORMED_REQUEST if self.size_bytes > self._expected_bytes else None

    def whole(self) -> bytes | None:
        """The message with its prefix; None when bytes are missing."""
        if self.size_bytes != self._expected_bytes:
            return None
        if len(self._chunks) > 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]


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

    def __init__(self, host: Host, plan: Plan, machine: Call, reply: Reply, observer: CallObserver) -> None:
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
                self._host.give_worker_back(outcome_of(event.delivery, event.code), now - since, now)

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


class StreamCall(ForwardedCall):
    """Messages flow both ways as they come.

    Backpressure crosses the relay: bytes that one side may not take yet give no window to the other, so
    memory stays within the windows whoever is slow. State beyond the shared: what is kept of the request
    for another attempt (None once too much was sent or anything was delivered), whether the caller
    half-closed, whether messages came back, and the window credit that each side is owed.
    """

    __slots__ = (
        "_has_responded",
        "_owed_to_attempt",
        "_owed_to_caller",
        "_replay",
        "_replay_bytes",
        "_request_done",
    )

    def __init__(self, host: Host, plan: Plan, machine: Call, reply: Reply, observer: CallObserver) -> None:
        super().__init__(host, plan, machine, reply, observer)
        self._replay: list[bytes] | None = [] if plan.policy.replay_buffer_bytes else None
        self._replay_bytes = 0
        self._request_done = False
        self._owed_to_caller = 0
        self._owed_to_attempt = 0
        self._has_responded = False

    def begin(self, now: float) -> None:
        """Start the first attempt, before any request message is there."""
        self._handle(Begin(), now)

    # Caller to upstream -------------------------------------------------------------------------

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        """Send it on, and keep it for another attempt while that is possible."""
        if self._machine.state is State.DONE:
            self._reply.consumed(len(data))
            return
        self._request_done = self._request_done or end
        self._owed_to_caller += len(data)
        if self._replay is not None:
            self._replay.append(data)
            self._replay_bytes += len(data)
        attempt = self._attempt
        if attempt is None:
            # Between two attempts: what came is in the replay buffer, and the caller gets no window.
            return
        attempt.send_data(data, end=end)
        if self._replay_bytes > self._plan.policy.replay_buffer_bytes:
            self._replay = None
        self._credit_caller(attempt)

    def on_attempt_drained(self, attempt: Attempt) -> None:
        """The upstream has room again."""
        if attempt is self._attempt:
            self._credit_caller(attempt)

    def _credit_caller(self, attempt: Attempt) -> None:
        if self._owed_to_caller and attempt.buffered_bytes < FLOW_HIGH_WATER_BYTES:
            owed, self._owed_to_caller = self._owed_to_caller, 0
            self._reply.consumed(owed)

    @property
    def _replayable(self) -> bool:
        return self._replay is not None

    @property
    def _responded(self) -> bool:
        return self._has_responded

    def _send_request(self, attempt: Attempt) -> None:
        request: Sequence[bytes] = self._replay or ()
        self._owed_to_attempt = 0
        for data in request:
            attempt.send_data(data, end=False)
        if self._request_done:
            attempt.send_data(b"", end=True)
        self._credit_caller(attempt)

    # Upstream to caller -------------------------------------------------------------------------

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        """Send them on at once: a conversation may wait for them. This commits the call."""
        if attempt is self._attempt:
            self._replay = None
            self._handle(AnswerBegan(), self._host.now())
            self._reply.send_headers(headers)

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        """Send it on; the upstream gets its window back when the caller has room."""
        if attempt is not self._attempt:
            return
        self._has_responded = True
        self._reply.send_data(data)
        self._owed_to_attempt += len(data)
        self._credit_attempt(attempt)

    def on_reply_drained(self) -> None:
        """The caller has room again."""
        if self._attempt is not None:
            self._credit_attempt(self._attempt)

    def _credit_attempt(self, attempt: Attempt) -> None:
        if self._owed_to_attempt and self._reply.buffered_bytes < FLOW_HIGH_WATER_BYTES:
            owed, self._owed_to_attempt = self._owed_to_attempt, 0
            attempt.consumed(owed)

    def _answer(self, verdict: Verdict) -> None:
        self._send_trailers(verdict)


def is_one_message(framed: bytes) -> bool:
    """Whether the bytes are exactly one gRPC message with its prefix."""
    return (
        len(framed) >= FRAME_PREFIX_BYTES
        and framed[0] in (0, 1)
        and int.from_bytes(framed[1:FRAME_PREFIX_BYTES]) + FRAME_PREFIX_BYTES == len(framed)
    )
