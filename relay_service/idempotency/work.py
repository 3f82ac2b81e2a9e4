"""The request of a keyed call, carried to the upstream: a unary call that waits for its claim."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay_service.core.call import Call, State
from relay_service.core.events import Aborted, Begin, Cancelled, DeadlinePassed, Event
from relay_service.core.evidence import Evidence
from relay_service.core.job import Try, with_try
from relay_service.core.reason import Reason
from relay_service.core.verdict import Verdict
from relay_service.forwarding import Plan
from relay_service.idempotency.answer import AnswerCatcher
from relay_service.idempotency.intent import Intent
from relay_service.ports import AttemptEnd, CallObserver, Headers, TimerHandle
from relay_service.unary import UnaryCall, UnaryHost

if TYPE_CHECKING:
    from collections.abc import Callable

TIMER_SLACK_S = 0.001
"""Times that are closer are the same: they were reckoned in different ways."""


class NoWork(Exception):  # noqa: N818 (a refusal is an answer, not a fault)
    """The relay makes no attempt now."""

    def __init__(self, reason: Reason, pushback_s: float | None, subject: str) -> None:
        self.reason = reason
        self.pushback_s = pushback_s
        self.subject = subject


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """What is to be carried."""

    intent: Intent
    key: bytes
    """The caller's, or the one made of its request."""
    framed: bytes
    outcome_open: bool
    """An earlier call under the key may have been executed."""


class WorkObserver:
    """Passes on what happens to the attempts, keeps their history, and has the end for itself."""

    def __init__(self, observer: CallObserver, owner: str, store_now: Callable[[], float]) -> None:
        self._observer = observer
        self._owner = owner
        self._store_now = store_now
        self.tries: tuple[Try, ...] = ()
        self.hedges = 0
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Verdict] = loop.create_future()

    @property
    def trace_id(self) -> str:
        """See `relay_service.ports.CallObserver`."""
        return self._observer.trace_id

    def queued(self, now: float) -> None:
        """See `relay_service.ports.CallObserver`."""
        self._observer.queued(now)

    def dequeued(self, now: float) -> None:
        """See `relay_service.ports.CallObserver`."""
        self._observer.dequeued(now)

    def attempt_started(self, number: int, upstream: str, now: float) -> Headers:
        """See `relay_service.ports.CallObserver`."""
        return self._observer.attempt_started(number, upstream, now)

    def hedge_started(self, number: int, upstream: str, now: float) -> Headers:
        """See `relay_service.ports.CallObserver`."""
        self.hedges += 1
        return self._observer.hedge_started(number, upstream, now)

    def attempt_ended(self, number: int, peer: str, end: AttemptEnd, evidence: Evidence, now: float) -> None:
        """See `relay_service.ports.CallObserver`."""
        tried = Try(self._store_now(), self._owner, end.code, end.message, end.delivery)
        self.tries = with_try(self.tries, tried)
        self._observer.attempt_ended(number, peer, end, evidence, now)

    def finished(self, verdict: Verdict, now: float) -> None:  # noqa: ARG002 (an observer hears when)
        """The caller's own end is told by whoever answers it."""
        if not self.ended.done():
            self.ended.set_result(verdict)


class KeyedWork(UnaryCall):
    """Takes a worker, waits for the claim, then is tried like any unary call.

    It has no deadline of its own: it goes on as long as somebody waits (`somebody_waits`), and when nobody
    does an attempt under way has ``settle_s`` more to tell what became of it. State beyond the shared: the
    worker that waits for the claim, until when anybody waits, and the timer of the time to settle.
    """

    __slots__ = (
        "_begun",
        "_has_idle_worker",
        "_settle_s",
        "_settle_timer",
        "_wanted_until",
        "_worker",
        "catcher",
        "watched",
    )

    def __init__(
        self, host: UnaryHost, plan: Plan, machine: Call, observer: WorkObserver, settle_s: float
    ) -> None:
        self.catcher = AnswerCatcher()
        self.watched = observer
        self._worker: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._has_idle_worker = False
        self._begun = False
        self._settle_s = settle_s
        self._wanted_until = math.inf
        self._settle_timer: TimerHandle | None = None
        super().__init__(host, plan, machine, self.catcher, observer)

    @property
    def attempts(self) -> int:
        """Attempts made so far."""
        return self._machine.attempts

    @property
    def over(self) -> bool:
        """Whether it has its verdict."""
        return self.watched.ended.done()

    async def worker(self) -> bool:
        """Wait for a worker; False when the work ended without one."""
        return await asyncio.shield(self._worker)

    async def ended(self) -> Verdict:
        """Wait for its end."""
        return await asyncio.shield(self.watched.ended)

    def begin(self, now: float, *, outcome_open: bool) -> None:
        """The key is claimed: make the first attempt. Harmless when the work has ended."""
        if not self._has_idle_worker:
            return
        self._has_idle_worker = False
        self._begun = True
        if outcome_open:
            self._machine.outcome_is_open()
        if not super()._use_worker(Begin(), now):
            self._host.workers.unused(self, now)

    def give_up(self, reason: Reason) -> None:
        """The key is not to be had: no attempt is made. Harmless when the work has ended."""
        self._stop(Aborted(reason))

    # Those who wait -----------------------------------------------------------------------------

    def somebody_waits(self, until: float | None) -> None:
        """It may go on until then, in monotonic seconds."""
        if self._settle_timer is not None:
            self._settle_timer.cancel()
            self._settle_timer = None
        self._wanted_until = math.inf if until is None else until
        self._machine.move_deadline(until)

    def nobody_waits(self) -> None:
        """An attempt under way may settle the key; whatever waits or backs off ends here."""
        if self.over:
            return
        now = self._host.now()
        self._wanted_until = now
        self._machine.move_deadline(now)
        if self._machine.state is State.ATTEMPTING:
            settle_until = now + self._settle_s
            self._settle_timer = self._host.timers.call_at(settle_until, KeyedWork.time_to_settle_over, self)
        else:
            self._stop(Cancelled())

    def time_to_settle_over(self) -> None:
        """The timer of the time to settle."""
        self._stop(DeadlinePassed())

    def attempt_timed_out(self) -> None:
        """The timer of the attempt under way. Who waits longer may have come since it was set: then it goes
        on, up to its own limit."""
        now = self._host.now()
        limit_s = self._plan.policy.attempt_timeout_s
        began = self._worker_since
        limit = math.inf if limit_s is None or began is None else began + limit_s
        given_up_at = min(limit, self._wanted_until + self._settle_s)
        if now < given_up_at - TIMER_SLACK_S:
            if given_up_at < math.inf:
                self._attempt_timer = self._host.timers.call_at(
                    given_up_at, type(self).attempt_timed_out, self
                )
        elif limit <= now + TIMER_SLACK_S:
            super().attempt_timed_out()
        else:
            self._stop(DeadlinePassed())

    # What differs from a unary call -------------------------------------------------------------

    def _hold(self, size_bytes: int) -> bool:  # noqa: ARG002 (the flight holds the request)
        return True

    def _use_worker(self, then: Event, now: float) -> bool:
        if self._begun:
            return super()._use_worker(then, now)
        self._has_idle_worker = True
        if not self._worker.done():
            self._worker.set_result(True)
        return True

    def _finish(self, verdict: Verdict, now: float) -> None:
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        if self._has_idle_worker:
            self._has_idle_worker = False
            self._host.workers.unused(self, now)
        if not self._worker.done():
            self._worker.set_result(False)
        super()._finish(verdict, now)
