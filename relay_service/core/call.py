"""One call's life as a state machine: events in, actions out, no I/O and no clock.

    READY --Begin--> ATTEMPTING --AttemptDone--> BACKING_OFF --BackoffElapsed--> ATTEMPTING ...
                       |      |                       |
                       |   answered beside others     |
                       |      |                       |
                       |   SETTLING (they are given up)
                       |      |                       |
                       +------+----- Finish ----------+--> DONE

Most calls have one attempt under way, the main one: the first, or a retry of it. A call that is hedged has
others beside it (`relay_service.core.hedged`). The first answer that another attempt would not change ends
the call, and whatever else is under way is given up before the caller hears; when one of several fails, the
others go on; when the last of them has failed, the rules for retries apply.

The shell around it carries the actions out and reports what happened as events. It owns the bytes, the
timers of each attempt and the workers; the judgement is here. An attempt that is to be given up ends
like any other: the shell cancels it, asks the transport what is known, and reports `AttemptDone`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from random import Random

from relay_service.core import told
from relay_service.core.backoff import Backoff
from relay_service.core.breaker import CircuitBreaker, Outcome, Permit, Work
from relay_service.core.budget import RetryGate
from relay_service.core.events import (
    Aborted,
    Actions,
    AnswerBegan,
    AttemptDone,
    BackoffElapsed,
    Begin,
    CancelAttempt,
    Cancelled,
    DeadlinePassed,
    Event,
    FallBack,
    Finish,
    HedgeDue,
    HedgeUnserved,
    RetryRefused,
    StartAttempt,
    StartHedge,
    WaitBackoff,
)
from relay_service.core.evidence import (
    SETTLING_CODES,
    Delivery,
    Ending,
    Evidence,
    Judgement,
    Repeat,
    Safety,
    judge,
)
from relay_service.core.hedged import Hedges
from relay_service.core.lane import NOTHING_EXECUTED, Lane
from relay_service.core.policy import RetryPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.throttle import AdaptiveThrottle
from relay_service.core.told import Told
from relay_service.core.verdict import Fate, Origin, Verdict

# Reading an enumeration's member off its class costs as much as five method calls (Python 3.11), so what
# every call reads has a name of its own.
_OK = Code.OK
_ANSWERED = Delivery.ANSWERED
_DEFINITE = Evidence.DEFINITE
_NOT_SENT = Evidence.NOT_SENT
_AMBIGUOUS = Evidence.AMBIGUOUS
_SUCCESS = Outcome.SUCCESS
_CALL, _STREAM = Work.CALL, Work.STREAM
_FORWARDED = Told(_OK, "", Origin.UPSTREAM, Fate.OK)

DEADLINE_RACE_S = 0.02
"""A client whose deadline passes resets its stream, and that may arrive just before our own timer fires."""


class State(Enum):
    """Where a call stands."""

    READY = "ready"
    ATTEMPTING = "attempting"
    SETTLING = "settling"
    BACKING_OFF = "backing_off"
    DONE = "done"


_READY, _ATTEMPTING, _SETTLING = State.READY, State.ATTEMPTING, State.SETTLING
_BACKING_OFF, _DONE = State.BACKING_OFF, State.DONE


class Call:
    """Retries by evidence and hedges, within the budget and the deadline, and the verdict that follows.

    ``attempt_limit_s`` is None for calls whose attempts may last as long as the call (streams).
    ``deadline`` is monotonic seconds or None; an attempt under way may outlive it by ``settle_s``, so that
    its outcome becomes known. ``breaker`` is asked before each attempt; None lets all through. ``throttle``
    hears of each attempt and is asked before each retry: before the first attempt the shell asks it, when
    the call arrives, and a fallback's is asked before the call goes there. ``hedges`` is None for calls that
    are not to be hedged; where a second execution would do harm it is not used. ``fallbacks`` are other
    upstreams that may be asked, in this order, while nothing was executed (`relay_service.core.lane`);
    ``fell_back`` says that the call has left its own before it began.

    State: where the call stands, the attempts made, the main attempt under way (its number, 0 for none) and
    the breaker's permit for it, whether the next retry has been paid for, the hedges, the worst evidence so
    far, how the last attempt ended (when SETTLING: the answer), and why the call stops, while attempts are
    given up for that.
    """

    __slots__ = (
        "_attempt_limit_s",
        "_attempts",
        "_backoff",
        "_breaker",
        "_deadline",
        "_evidence",
        "_fallbacks",
        "_fell_back",
        "_gate",
        "_hedged_before",
        "_hedges",
        "_is_first_here",
        "_last",
        "_main",
        "_may_repeat",
        "_paid",
        "_pending",
        "_permit",
        "_retry",
        "_rng",
        "_safety",
        "_settle_s",
        "_state",
        "_streaming",
        "_throttle",
        "_won_by_hedge",
    )

    def __init__(
        self,
        retry: RetryPolicy,
        *,
        safety: Safety,
        has_key: bool,
        deadline: float | None,
        attempt_limit_s: float | None,
        gate: RetryGate,
        rng: Random,
        streaming: bool = False,
        breaker: CircuitBreaker | None = None,
        throttle: AdaptiveThrottle | None = None,
        hedges: Hedges | None = None,
        settle_s: float = 0.0,
        fallbacks: Sequence[Lane] = (),
        fell_back: bool = False,
    ) -> None:
        self._retry = retry
        self._safety = safety
        self._streaming = streaming
        self._may_repeat = safety.allows_repeat(has_key=has_key)
        self._deadline = deadline
        self._attempt_limit_s = attempt_limit_s
        self._gate = gate
        self._rng = rng
        self._breaker = breaker
        self._throttle = throttle
        self._fallbacks = enumerate(fallbacks) if fallbacks else iter(())
        self._fell_back = fell_back
        self._is_first_here = True
        self._hedged_before = 0
        self._hedges = hedges if self._may_repeat else None
        self._main = 0
        self._settle_s = settle_s
        self._permit: Permit | None = None
        self._state = _READY
        self._attempts = 0
        self._evidence = _NOT_SENT
        self._last: AttemptDone | None = None
        self._backoff: Backoff | None = None
        self._pending: Event | None = None
        self._won_by_hedge = False
        self._paid = False

    @property
    def state(self) -> State:
        """Where the call stands."""
        return self._state

    @property
    def attempts(self) -> int:
        """Attempts started so far."""
        return self._attempts

    def move_deadline(self, deadline: float | None) -> None:
        """Those who wait for the call have changed, and with them how long it may go on."""
        self._deadline = deadline

    def outcome_is_open(self) -> None:
        """An earlier call under the same key may have been executed: that is known of this one, too."""
        self._evidence = Evidence.AMBIGUOUS

    def handle(self, event: Event, now: float) -> Actions:
        """Advance. Events that come after the end, or that do not fit the state, change nothing."""
        state = self._state
        if state is _ATTEMPTING:
            if isinstance(event, AttemptDone):
                return self._attempt_done(event, now) if self._is_under_way(event.number) else ()
            return self._while_attempting(event, now)
        if state is _READY:
            return self._start(now) if isinstance(event, Begin) else self._while_waiting(event)
        if state is _BACKING_OFF:
            return self._start(now) if isinstance(event, BackoffElapsed) else self._while_waiting(event)
        if state is _SETTLING and isinstance(event, AttemptDone) and self._is_under_way(event.number):
            return self._loser_done(event, now)
        return ()

    def _while_waiting(self, event: Event) -> Actions:
        """Nothing is under way: the call has not begun, or waits to try again."""
        match event:
            case RetryRefused() if self._state is State.BACKING_OFF:
                return self._give_up(Reason.RETRIES_EXHAUSTED)
            case DeadlinePassed() | Cancelled() | Aborted():
                return self._stop(event)
        return ()

    def _while_attempting(self, event: Event, now: float) -> Actions:
        """Something else than an attempt's end, while attempts are under way."""
        match event:
            case HedgeDue() if self._hedges is not None and self._pending is None:
                return self._hedge(self._hedges, now)
            case HedgeUnserved() if self._hedges is not None:
                self._hedges.unserved()
            case AnswerBegan() if self._breaker is not None and self._permit is not None:
                self._breaker.answering(self._permit, now)
            case DeadlinePassed() | Cancelled() | Aborted():
                self._pending = event
                late = isinstance(event, DeadlinePassed)
                return self._cancel_all(Code.DEADLINE_EXCEEDED if late else Code.CANCELLED)
        return ()

    def _start(self, now: float) -> Actions:
        if self._is_past(now):
            return self._stop(DeadlinePassed())
        if self._breaker is not None:
            self._permit = self._breaker.enter(_STREAM if self._streaming else _CALL, now)
            if self._permit is None:
                return self._breaker_open(self._breaker, now)
        self._state = _ATTEMPTING
        self._attempts += 1
        self._main = self._attempts
        self._paid = False
        if self._is_first_here:
            self._is_first_here = False
            self._gate.first_attempt()
        start = StartAttempt(self._attempts, self._attempt_timeout_s(now))
        if self._hedges is None:
            return (start,)
        return (start, *self._hedges.main_started(self._attempts, now))

    def _attempt_timeout_s(self, now: float) -> float | None:
        limit_s = self._attempt_limit_s
        if self._deadline is None:
            return limit_s
        left_s = self._deadline + self._settle_s - now
        if limit_s is not None and limit_s < left_s:
            return limit_s
        return max(0.0, left_s)

    # Attempts end -------------------------------------------------------------------------------

    def _attempt_done(self, done: AttemptDone, now: float) -> Actions:
        permit = self._take_off(done.number)
        if self._throttle is not None:
            self._throttle.ended(done.delivery, done.code, now)
        if done.code is _OK and done.delivery is _ANSWERED:
            self._settle(permit, _SUCCESS, now)
            self._gate.record(failed=False)
            return self._answered(done, now)
        judgement = self.judgement_of(done)
        self._settle(permit, self._says_of_upstream(done, judgement, now), now)
        if self._pending is not None:
            return self._given_up(done, judgement, now)
        if judgement.repeat is not Repeat.NEVER:
            self._gate.record(failed=True)
        if self._decides(done, judgement):
            return self._answered(done, now)
        return self._failed(done, judgement, now)

    def _failed(self, done: AttemptDone, judgement: Judgement, now: float) -> Actions:
        """Without an answer that ends the call: the others may still bring one, else it may be repeated."""
        self._note_evidence(done, judgement)
        self._last = done
        if self._hedges is not None:
            self._hedges.failed(done.number, done.pushback_s, now)
            if self._is_attempting:
                return self._hedges.at_once(self._attempts, now)
        return self._after_failure(done, judgement, now)

    def _given_up(self, done: AttemptDone, judgement: Judgement, now: float) -> Actions:
        """The call stops, which it does when nothing is under way any more."""
        self._note_evidence(done, judgement)
        self._last = done
        if self._hedges is not None:
            self._hedges.given_up(done.number, now)
        assert self._pending is not None  # noqa: S101 (states that cannot be)
        return () if self._is_attempting else self._stop(self._pending)

    def _is_under_way(self, number: int) -> bool:
        return number == self._main or (self._hedges is not None and number in self._hedges.under_way)

    @property
    def _is_attempting(self) -> bool:
        return self._main > 0 or (self._hedges is not None and bool(self._hedges.under_way))

    def _take_off(self, number: int) -> Permit | None:
        """The attempt is not under way any more; its permit."""
        if self._hedges is not None and number != self._main:
            return self._hedges.ended(number)
        permit, self._permit, self._main = self._permit, None, 0
        return permit

    def _settle(self, permit: Permit | None, outcome: Outcome, now: float) -> None:
        if self._breaker is not None and permit is not None:
            self._breaker.settle(permit, outcome, now)

    def _decides(self, done: AttemptDone, judgement: Judgement) -> bool:
        """Whether this answer, which is not OK, is the call's whatever the other attempts may say."""
        if done.delivery is not Delivery.ANSWERED:
            return False
        if self._hedges is not None and self._hedges.is_fatal(done.code):
            return True
        return judgement.evidence is Evidence.DEFINITE

    def _note_evidence(self, done: AttemptDone, judgement: Judgement) -> None:
        settled = self._safety is Safety.KEYED and done.code in SETTLING_CODES
        if settled and judgement.evidence is Evidence.DEFINITE:
            self._evidence = Evidence.DEFINITE
        else:
            self._evidence = max(self._evidence, judgement.evidence)

    def _says_of_upstream(self, done: AttemptDone, judgement: Judgement, now: float) -> Outcome:
        """What an attempt that did not succeed tells the breaker.

        An attempt that was given up says nothing, unless its time was up: then it failed. An answer that
        another attempt would not change is the caller's affair; and an upstream that sheds load
        (RESOURCE_EXHAUSTED) works as much as it can, so that a breaker opening on it would turn some
        goodput into none. A request too large to send says nothing.
        """
        match self._pending:
            case Cancelled() if self._deadline is None or now < self._deadline - DEADLINE_RACE_S:
                return Outcome.IGNORED
            case Aborted():
                return Outcome.IGNORED
        if done.delivery is Delivery.NOT_SENT and judgement.repeat is Repeat.NEVER:
            return Outcome.IGNORED
        sheds = done.delivery is Delivery.ANSWERED and done.code is Code.RESOURCE_EXHAUSTED
        return Outcome.SUCCESS if sheds or judgement.repeat is Repeat.NEVER else Outcome.FAILURE

    def judgement_of(self, done: AttemptDone) -> Judgement:
        """What this one attempt means, under this call's policy."""
        ending = Ending(
            done.delivery, done.code, done.pushback_s is not None, done.responded, self._streaming
        )
        return judge(ending, self._retry.retryable_codes)

    def _after_failure(self, done: AttemptDone, judgement: Judgement, now: float) -> Actions:
        if judgement.repeat is Repeat.NEVER:
            return self._give_up(Reason.MESSAGE_TOO_LARGE if done.delivery is Delivery.NOT_SENT else None)
        if judgement.repeat is Repeat.IF_HARMLESS and not self._may_repeat:
            return self._give_up(None)
        if done.delivery is Delivery.NOT_SENT and done.replayable and (elsewhere := self._fall_back(now)):
            return elsewhere
        if not done.replayable or self._attempts >= self._retry.max_attempts:
            return self._give_up(Reason.RETRIES_EXHAUSTED)
        delay_s = self._delay_s(self._pushback_s(done, now))
        if delay_s is None or self._is_past(now + delay_s):
            return self._give_up(Reason.RETRIES_EXHAUSTED)
        if self._breaker is not None and self._breaker.wait_s(now) > delay_s:
            # The retry would find it open: say so now, with its cost unspent.
            return self._breaker_open(self._breaker, now)
        if self._throttle is not None and self._throttle.refuses(now, self._rng):
            return self._refused(Reason.ADAPTIVE_THROTTLE, self._throttle.pushback_s(now, self._rng))
        if not self._gate.allow_retry(now):
            return self._give_up(Reason.BUDGET_EXHAUSTED)
        self._paid = True
        self._state = State.BACKING_OFF
        return (WaitBackoff(now + delay_s),)

    def _is_past(self, when: float) -> bool:
        return self._deadline is not None and when >= self._deadline

    def _delay_s(self, pushback_s: float | None) -> float | None:
        """The wait before the next attempt; None when the upstream said not to come back."""
        if self._backoff is None:
            self._backoff = Backoff(self._retry)
        if pushback_s is None:
            return self._backoff.next_s(self._rng)
        self._backoff.reset()
        return pushback_s if pushback_s >= 0.0 else None

    def _pushback_s(self, done: AttemptDone, now: float) -> float | None:
        """What the upstream told this attempt, else what it told one that was under way beside it."""
        if done.pushback_s is not None or self._hedges is None or self._hedges.come_back_at is None:
            return done.pushback_s
        wait_s = self._hedges.come_back_at - now
        return max(0.0, wait_s) if math.isfinite(wait_s) else -1.0

    # Several attempts at once -------------------------------------------------------------------

    def _hedge(self, hedges: Hedges, now: float) -> Actions:
        """Make another attempt beside what is under way, if everything allows it."""
        if not hedges.may_start(self._gate, self._breaker, self._deadline, now):
            return ()
        permit = self._breaker.enter(Work.CALL, now) if self._breaker is not None else None
        self._attempts += 1
        hedges.started(self._attempts, permit)
        start = StartHedge(self._attempts, self._attempt_timeout_s(now))
        return (start, *hedges.next_after(self._attempts, now))

    def _answered(self, done: AttemptDone, now: float) -> Actions:
        """The call has its answer; what else is under way is given up before the caller hears."""
        self._last = done
        hedges = self._hedges
        if hedges is None:
            return self._conclude(done)
        hedges.answered(done.number, now)
        self._won_by_hedge = done.number in hedges.numbers
        if not self._is_attempting:
            return self._conclude(done)
        self._state = State.SETTLING
        return self._cancel_all(Code.CANCELLED)

    def _loser_done(self, loser: AttemptDone, now: float) -> Actions:
        """It was given up: neither breaker nor budget hear of it, but what it may have done counts."""
        self._settle(self._take_off(loser.number), Outcome.IGNORED, now)
        self._evidence = max(self._evidence, self.judgement_of(loser).evidence)
        answer = self._last
        assert self._hedges is not None and answer is not None  # noqa: S101, PT018 (states that cannot be)
        self._hedges.given_up(loser.number, now)
        return () if self._is_attempting else self._conclude(answer)

    def _conclude(self, answer: AttemptDone) -> Actions:
        """End with this answer, after all other attempts."""
        if answer.code is _OK:
            self._evidence = _DEFINITE
            message = answer.message
            return self._end(replace(_FORWARDED, message=message) if message else _FORWARDED)
        self._note_evidence(answer, self.judgement_of(answer))
        return self._give_up(None)

    def _cancel_all(self, code: Code) -> Actions:
        main = (CancelAttempt(self._main, code),) if self._main else ()
        if self._hedges is None:
            return main
        return (*main, *(CancelAttempt(number, code) for number in self._hedges.under_way))

    def _give_up(self, reason: Reason | None) -> Actions:
        """End with the last attempt's status, unless what is known says something worse."""
        last = self._last
        assert last is not None, "a call gives up only after an attempt"  # noqa: S101 (states that cannot be)
        says_worst = self.judgement_of(last).evidence >= self._evidence
        return self._end(told.of_failure(last, reason, says_worst=says_worst, unknown=self._outcome_unknown))

    def _breaker_open(self, breaker: CircuitBreaker, now: float) -> Actions:
        return self._fall_back(now) or self._refused(Reason.BREAKER_OPEN, breaker.pushback_s(now, self._rng))

    def _fall_back(self, now: float) -> Actions:
        """Go on at the next upstream whose breaker lets attempts through, unless its throttle holds the call
        back; nothing when there is none, or when an attempt may have been executed. A worker is asked for
        anew: it may be another's by now."""
        if self._evidence not in NOTHING_EXECUTED:
            return ()
        for index, lane in self._fallbacks:
            if not lane.is_open(now):
                if lane.throttle is not None and lane.throttle.refuses(now, self._rng):
                    pushback_s = lane.throttle.pushback_s(now, self._rng)
                    return self._refused(Reason.ADAPTIVE_THROTTLE, pushback_s)
                self._refund()
                self._gate, self._breaker, self._throttle = lane
                self._fell_back = self._is_first_here = True
                self._backoff = None
                if self._hedges is not None:
                    self._hedged_before, self._hedges = len(self._hedges.numbers), None
                self._state = State.BACKING_OFF
                return (FallBack(index), WaitBackoff(now))
        return ()

    def _refused(self, reason: Reason, pushback_s: float) -> Actions:
        """End because no attempt may be made now."""
        unknown = self._outcome_unknown
        return self._end(told.of_refusal(reason, self._last, pushback_s, unknown=unknown))

    def _stop(self, why: Event) -> Actions:
        """End for a reason that is not an attempt's answer."""
        return self._end(told.of_stop(why, tried=self._attempts > 0, unknown=self._outcome_unknown))

    @property
    def _outcome_unknown(self) -> bool:
        """Whether the caller must be told that an effect may exist. Nobody minds a second execution of
        a method that is safe to repeat by itself, so there the last status says more."""
        harmless = self._safety in (Safety.NO_SIDE_EFFECTS, Safety.IDEMPOTENT)
        return self._evidence is Evidence.AMBIGUOUS and not harmless

    def _refund(self) -> None:
        """A retry that is not made costs nothing."""
        if self._paid:
            self._paid = False
            self._gate.refund()

    def _end(self, words: Told) -> Actions:
        self._state = _DONE
        known = self._attempts or self._evidence is _AMBIGUOUS
        verdict = Verdict(
            words.code,
            words.message,
            words.origin,
            words.fate,
            words.reason,
            self._evidence if known else None,
            self._attempts,
            words.pushback_s,
            hedges=len(self._hedges.numbers) if self._hedges is not None else self._hedged_before,
            hedge_won=self._won_by_hedge,
            fell_back=self._fell_back,
            subject=words.subject,
        )
        self._refund()
        return (Finish(verdict),)
