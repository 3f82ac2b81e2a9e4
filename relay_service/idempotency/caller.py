"""One caller of a keyed call: its request until it is whole, its deadline, and its answer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Protocol

from relay_service import contract
from relay_service.compression import ACCEPT_ENCODING, ENCODING, UnframeError, unframe
from relay_service.core.evidence import Evidence
from relay_service.core.idempotency import Scope
from relay_service.core.policy import MethodPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, KeyStatus, Origin, Verdict
from relay_service.idempotency.answer import Answer
from relay_service.idempotency.intent import Intent
from relay_service.idempotency.outcome import Outcome, refused
from relay_service.message import Collector, frame
from relay_service.ports import CallHead, CallObserver, Reply, TimerHandle, Timers
from relay_service.workers import Workers


class Boarding(Protocol):
    """What carries callers (`relay_service.idempotency.flight.Flight`)."""

    def leave(self, caller: KeyedCall) -> None:
        """The caller waits no longer."""

    @property
    def attempts(self) -> int:
        """Attempts made for its callers so far."""

    @property
    def effect_possible(self) -> bool:
        """Whether there may be an effect, or may yet come to be one."""

    @property
    def unsettled(self) -> Outcome | None:
        """How it ended, while that is being stored."""


class CallerHost(Protocol):
    """What a caller needs of the relay."""

    timers: Timers
    workers: Workers

    def now(self) -> float:
        """Monotonic seconds."""


class Desk(Protocol):
    """Where callers go with a whole request (`relay_service.idempotency.keys.Keys`)."""

    def board(self, caller: KeyedCall, scope: Scope, fingerprint: bytes, framed: bytes) -> Boarding | None:
        """Put it on the flight of its key; None when it was answered at once instead."""

    def came(self) -> None:
        """A caller is there."""

    def went(self) -> None:
        """It has its answer, or its flight counts it from now on."""


class KeyedCall:
    """An ``IncomingCall``. State: the request in the making, the flight it is on, and whether it is over.

    The observer of whoever has the request executed hears of the attempts, which may outlive their caller:
    it is lent to the flight, and hears the end when it comes back.
    """

    __slots__ = (
        "_collector",
        "_desk",
        "_flight",
        "_held_bytes",
        "_host",
        "_left",
        "_lent",
        "_over",
        "_reply",
        "_timer",
        "intent",
        "observer",
    )

    def __init__(
        self, host: CallerHost, desk: Desk, intent: Intent, reply: Reply, observer: CallObserver
    ) -> None:
        self._host = host
        self._desk = desk
        self.intent = intent
        self._reply = reply
        self.observer = observer
        self._collector: Collector | None = Collector(intent.policy.max_message_bytes)
        self._held_bytes = 0
        self._flight: Boarding | None = None
        self._over = False
        self._lent = False
        self._left: tuple[Verdict, float] | None = None
        self._timer: TimerHandle | None = (
            host.timers.call_at(intent.deadline, KeyedCall.deadline_passed, self)
            if intent.deadline is not None
            else None
        )
        desk.came()

    # The request --------------------------------------------------------------------------------

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        """See `relay_service.ports.IncomingCall`."""
        self._reply.consumed(len(data))
        collector = self._collector
        if self._over or collector is None:
            return
        problem = collector.add(data)
        if problem is not None:
            self._refuse(problem)
        elif not self._host.workers.hold_request(len(data)):
            pushback_s = self._host.workers.pushback_s(Reason.QUEUE_FULL, self._host.now())
            self._refuse(Reason.QUEUE_FULL, pushback_s)
        else:
            self._held_bytes += len(data)
            if end:
                self._collector = None
                self._board(collector.whole())

    def _board(self, framed: bytes | None) -> None:
        intent = self.intent
        if framed is None:
            self._refuse(Reason.MALFORMED_REQUEST)
            return
        fingerprint = hashlib.sha256(message_of(framed, intent.head, intent.policy)).digest()
        key = intent.key if intent.key is not None else contract.payload_key(fingerprint)
        scope = Scope(intent.head.identity, intent.head.method, key)
        self._let_go()  # who has it executed holds it; a duplicate's is needed no longer
        self._flight = self._desk.board(self, scope, fingerprint, framed)

    def on_reply_drained(self) -> None:
        """The answer is sent in one piece: there is nothing to go on with."""

    # The end ------------------------------------------------------------------------------------

    def on_cancelled(self) -> None:
        """The caller is gone; what was begun for it may still be wanted by others."""
        possible = self._flight is not None and self._flight.effect_possible
        evidence = Evidence.AMBIGUOUS if possible else None
        self._leave(
            Verdict(Code.CANCELLED, "the caller went away", Origin.RELAY, Fate.CANCELLED, evidence=evidence),
            None,
        )

    def deadline_passed(self) -> None:
        """The caller's time is up, that of its key perhaps not."""
        flight = self._flight
        if flight is not None and (known := flight.unsettled) is not None:
            self._leave(known.others if not self._lent else known.first, known)
            return
        reason = Reason.DEADLINE_PASSED
        possible = flight is not None and flight.effect_possible
        verdict = Verdict(
            Code.DEADLINE_EXCEEDED,
            reason.meaning,
            Origin.RELAY,
            Fate.ERROR if self._lent and flight is not None and flight.attempts else Fate.REFUSED,
            Reason.OUTCOME_UNKNOWN if possible else reason,
            Evidence.AMBIGUOUS if possible else None,
            key_status=KeyStatus.IN_PROGRESS if possible else None,
        )
        trailers = contract.trailers_of(verdict, self.intent.head.method, ())
        answer = Answer(verdict.code, verdict.message, None, b"", trailers)
        self._leave(verdict, Outcome(answer, verdict, verdict))

    def settle(self, outcome: Outcome) -> None:
        """The flight has ended so."""
        if not self._over:
            self._end(outcome.first if self._lent else outcome.others, outcome)

    def _refuse(self, reason: Reason, pushback_s: float | None = None) -> None:
        self.settle(refused(reason, self.intent.head.method, pushback_s=pushback_s))

    def _leave(self, verdict: Verdict, outcome: Outcome | None) -> None:
        if self._over:
            return
        self._end(verdict, outcome)
        if self._flight is not None:
            self._flight.leave(self)

    def _end(self, verdict: Verdict, outcome: Outcome | None) -> None:
        """Answer, unless nobody is there, and say so to the observer once it is back."""
        self._over = True
        self._let_go()
        if self._timer is not None:
            self._timer.cancel()
        if outcome is not None:
            self._acceptable(outcome.answer).send(self._reply, outcome.trailers(verdict))
        now = self._host.now()
        if self._lent:
            self._left = verdict, now
        else:
            self._finished(verdict, now)

    def _finished(self, verdict: Verdict, now: float) -> None:
        self._desk.went()
        self.observer.finished(verdict, now)

    def _acceptable(self, answer: Answer) -> Answer:
        """The answer as it came, or decompressed for a caller that could not read it."""
        encoding = contract.header(answer.headers or (), ENCODING)
        if encoding is None or encoding in (b"identity", *_accepted(self.intent)):
            return answer
        try:
            plain = unframe(answer.body, encoding, self.intent.policy.max_message_bytes)
        except UnframeError:
            return answer
        headers = [field for field in answer.headers or () if field[0] != ENCODING]
        return replace(answer, headers=headers, body=frame(plain))

    def _let_go(self) -> None:
        self._host.workers.let_go_of_request(self._held_bytes)
        self._held_bytes = 0

    # The observer -------------------------------------------------------------------------------

    def lend_observer(self) -> CallObserver:
        """For the attempts that are made in this caller's name."""
        self._lent = True
        self._desk.went()
        return self.observer

    def take_observer_back(self, attempts: int, hedges: int) -> None:
        """No more attempts are made with it; so many were, and so many of these were hedges."""
        self._lent = False
        self._desk.came()
        if self._left is not None:
            verdict, left_at = self._left
            self._left = None
            # It was in the queue when its caller left, and has been tried since for those who stayed.
            fate = Fate.ERROR if attempts and verdict.fate is Fate.REFUSED else verdict.fate
            self._finished(replace(verdict, fate=fate, attempts=attempts, hedges=hedges), left_at)


def _accepted(intent: Intent) -> list[bytes]:
    value = contract.header(intent.head.metadata, ACCEPT_ENCODING) or b""
    return [one.strip() for one in value.split(b",")]


def message_of(framed: bytes, head: CallHead, policy: MethodPolicy) -> bytes:
    """The request as the upstream's handler sees it, however it was compressed on the way.

    Where the relay cannot decompress it, or it would become larger than a message may be: the bytes as they
    came.
    """
    try:
        return unframe(framed, contract.header(head.metadata, ENCODING), policy.max_message_bytes)
    except UnframeError:
        return framed
