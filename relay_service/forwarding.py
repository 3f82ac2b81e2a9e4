"""Carrying one call to its upstream and its answer back: the shell around `relay_service.core.call.Call`.

This is what both kinds of call share. A unary call (`relay_service.unary`) is taken whole, then admitted,
tried, and answered whole: so a slow caller holds no worker, any attempt can be repeated, and nothing
reaches the caller before the verdict. A streaming call (`relay_service.streaming`) flows through in both
directions with backpressure, and can be tried again only while nothing was delivered and what the caller
sent still fits the replay buffer.

No task runs per call: everything here happens inside a callback of the data plane or of a timer.
"""

from dataclasses import replace
from typing import Any, Protocol

from relay_service import contract
from relay_service.core.admission import Admission, Demand
from relay_service.core.call import Call
from relay_service.core.events import (
    Aborted,
    Action,
    Actions,
    AttemptDone,
    BackoffElapsed,
    CancelAttempt,
    Cancelled,
    DeadlinePassed,
    Event,
    FallBack,
    Finish,
    StartAttempt,
    WaitBackoff,
)
from relay_service.core.evidence import Delivery, Evidence
from relay_service.core.policy import MethodPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.value import value
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.destination import Destination, Diversion
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

_OK = Code.OK
_ANSWERED = Delivery.ANSWERED
_UPSTREAM = Origin.UPSTREAM
_CANCELLED = Fate.CANCELLED
_DEFINITE = Evidence.DEFINITE

GIVEN_UP = "given up"
"""The message of an attempt that the relay itself ended for another's sake."""


class Host(Protocol):
    """What a call needs of the relay that carries it."""

    timers: Timers

    def now(self) -> float:
        """Monotonic seconds."""

    def call_ended(self, call: "ForwardedCall") -> None:
        """The call is over."""


@value
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
    destination: Destination | None = None
    """What keeps the upstream there until the call is over; None for the relay's own services, which no
    limit holds back and no drain waits for."""
    hedge_upstream: UpstreamPort | None = None
    """The same service over connections of its own, for a call that may be hedged."""
    fallbacks: tuple[Destination, ...] = ()
    """Where the call may go on while nothing was executed; kept there like ``destination``."""


def took_too_long(plan: Plan) -> str:
    """The message of an attempt that reached the policy's limit."""
    return f"the attempt took longer than {plan.policy.attempt_timeout_s} s"


class ForwardedCall:
    """What both kinds share: events into the machine, its actions out to the transports and timers.

    State: the main attempt under way, its number and its timer; how the upstream last answered; the timers of
    the backoff and of the deadline. ``admission`` is what its attempts, or it as a stream, are counted by.
    """

    __slots__ = (
        "_attempt",
        "_attempt_timer",
        "_backoff_timer",
        "_deadline_timer",
        "_end",
        "_host",
        "_machine",
        "_number",
        "_observer",
        "_plan",
        "_reply",
        "admission",
    )

    admission: "Admission[Any]"
    """Set by the relay when it takes the call on."""

    def __init__(self, host: Host, plan: Plan, machine: Call, reply: Reply, observer: CallObserver) -> None:
        self._host = host
        self._plan = plan
        self._machine = machine
        self._reply = reply
        self._observer = observer
        self._attempt: Attempt | None = None
        self._number = 0
        self._end: AttemptEnd | None = None
        self._attempt_timer: TimerHandle | None = None
        self._backoff_timer: TimerHandle | None = None
        self._deadline_timer = (
            host.timers.call_at(plan.deadline, ForwardedCall.deadline_passed, self)
            if plan.deadline is not None
            else None
        )

    @property
    def destinations(self) -> tuple[Destination, ...]:
        """All that must be there until the call is over; none for the relay's own services."""
        plan = self._plan
        if plan.destination is None:
            return ()
        return (plan.destination, *plan.fallbacks) if plan.fallbacks else (plan.destination,)

    @property
    def plan(self) -> Plan:
        """What was decided about it, and where it goes by now."""
        return self._plan

    # What happens to the call -------------------------------------------------------------------

    def on_cancelled(self) -> None:
        """The caller is gone."""
        self._stop(Cancelled())

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        """The main attempt under way ended by itself."""
        if attempt is self._attempt:
            self._attempt_over(end, self._host.now())

    def turn_away(self) -> None:
        """The relay is shutting down and will not wait for this call."""
        self._stop(Aborted(Reason.DRAINING))

    def deadline_passed(self) -> None:
        """The call's own timer."""
        self._stop(DeadlinePassed())

    def attempt_timed_out(self) -> None:
        """The timer of the main attempt under way."""
        if self._attempt is not None:
            self._give_attempt_up(Code.UNAVAILABLE, took_too_long(self._plan))

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
            # Those of every call first, and without a pattern, which would cost a multiple.
            if isinstance(action, StartAttempt):
                self._start_attempt(action.number, action.timeout_s, now)
            elif isinstance(action, Finish):
                self._finish(action.verdict, now)
            else:
                self._apply_rare(action, now)

    def _apply_rare(self, action: Action, now: float) -> None:
        match action:
            case WaitBackoff(until):
                self._backoff_timer = self._host.timers.call_at(until, type(self).backoff_elapsed, self)
            case FallBack(index):
                self._fall_back(self._plan.fallbacks[index])
            case CancelAttempt(number, code) if number == self._number:
                self._give_attempt_up(code, GIVEN_UP)
            case _:
                self._act_on_hedge(action, now)

    def _fall_back(self, destination: Destination) -> None:
        self._plan = replace(self._plan, upstream=Diversion(destination), hedge_upstream=None)

    def _start_attempt(self, number: int, timeout_s: float | None, now: float) -> None:
        plan = self._plan
        metadata = self._metadata(number, self._observer.attempt_started(number, plan.upstream.name, now))
        self._end = None
        self._number = number
        attempt = self._attempt = plan.upstream.start(plan.method, metadata, timeout_s, self)
        if timeout_s is not None and (plan.deadline is None or now + timeout_s < plan.deadline):
            self._attempt_timer = self._host.timers.call_at(
                now + timeout_s, type(self).attempt_timed_out, self
            )
        self._send_request(attempt)

    def _metadata(self, number: int, trace: Headers) -> Headers:
        """What attempt ``number`` carries."""
        metadata = [*self._plan.metadata, *trace]
        if number > 1:
            metadata.append((contract.PREVIOUS_ATTEMPTS, b"%d" % (number - 1)))
        return metadata

    def _give_attempt_up(self, code: Code, message: str) -> None:
        attempt = self._attempt
        # Without one it could not even be started; whatever raised there must not keep the call for ever.
        delivery = Delivery.NOT_SENT if attempt is None else attempt.cancel()
        self._attempt_over(AttemptEnd(delivery, code, message, given_up=True), self._host.now())

    def _attempt_over(self, end: AttemptEnd, now: float) -> None:
        number, self._number = self._number, 0
        done = self._done(number, end, responded=self._responded)
        peer = self._attempt.peer if self._attempt is not None else ""
        self._attempt = None
        if self._attempt_timer is not None:
            self._attempt_timer.cancel()
            self._attempt_timer = None
        self._tell_end(done, peer, end, now)
        self._handle(done, now)

    def _done(self, number: int, end: AttemptEnd, *, responded: bool) -> AttemptDone:
        failed = end.code is not _OK
        return AttemptDone(
            end.delivery,
            end.code,
            end.message,
            pushback_s=contract.pushback_s(end.trailers) if failed and end.trailers else None,
            responded=responded,
            replayable=self._replayable,
            number=number,
            given_up=end.given_up,
        )

    def _tell_end(self, done: AttemptDone, peer: str, end: AttemptEnd, now: float) -> None:
        if end.delivery is _ANSWERED:
            self._end = end
        ok = end.code is _OK and end.delivery is _ANSWERED
        evidence = _DEFINITE if ok else self._machine.judgement_of(done).evidence
        self._observer.attempt_ended(done.number, peer, end, evidence, now)

    def _finish(self, verdict: Verdict, now: float) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        if self._backoff_timer is not None:
            self._backoff_timer.cancel()
        if verdict.fate is not _CANCELLED:
            self._answer(verdict)
        self._observer.finished(verdict, now)
        self._host.call_ended(self)

    def _send_trailers(self, verdict: Verdict) -> None:
        end = self._end
        from_upstream = end.trailers if end is not None and verdict.origin is _UPSTREAM else ()
        trailers = contract.trailers_of(verdict, self._plan.method, from_upstream)
        if self._plan.destination is None:
            # A service of our own speaks for the relay: what it acknowledges is as durable as it says.
            trailers = (*trailers, *(field for field in from_upstream if field[0] == contract.DURABILITY))
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

    def _act_on_hedge(self, action: Action, now: float) -> None:
        """Carry out what concerns an attempt beside the main one; a stream never has any."""
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
