"""One call's life as a state machine: events in, actions out, no I/O and no clock.

    READY --Begin--> ATTEMPTING --AttemptDone--> BACKING_OFF --BackoffElapsed--> ATTEMPTING ...
                         |                           |
                         +--------- Finish ----------+--> DONE

The shell around it carries the actions out and reports what happened as events. It owns the bytes, the
timers of each attempt and the workers; the judgement is here. An attempt that is to be given up ends
like any other: the shell cancels it, asks the transport what is known, and reports `AttemptDone`.
"""

from dataclasses import dataclass
from enum import Enum
from random import Random

from relay_service.core.backoff import Backoff
from relay_service.core.breaker import CircuitBreaker, Outcome, Permit, Work
from relay_service.core.budget import RetryGate
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
from relay_service.core.policy import RetryPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.throttle import AdaptiveThrottle
from relay_service.core.verdict import Fate, Origin, Verdict


@dataclass(frozen=True, slots=True)
class Begin:
    """The call was admitted; a worker is there for its first attempt."""


@dataclass(frozen=True, slots=True)
class AnswerBegan:
    """The upstream began to answer the attempt under way; its end is still to come."""


@dataclass(frozen=True, slots=True)
class AttemptDone:
    """The attempt under way ended."""

    delivery: Delivery
    code: Code
    message: str
    pushback_s: float | None = None
    """When the upstream said to come back; negative means not at all."""
    responded: bool = False
    """Whether response messages came before the end."""
    replayable: bool = True
    """Whether another attempt could be made: the request is still whole and nothing was delivered."""


@dataclass(frozen=True, slots=True)
class BackoffElapsed:
    """The wait before the next attempt is over and a worker is there for it."""


@dataclass(frozen=True, slots=True)
class RetryRefused:
    """The wait is over but no worker is to be had: the queue is full."""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The call's deadline is here."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller went away."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """The shell cannot go on (no worker to be had, a message too large); ``reason`` says why."""

    reason: Reason
    pushback_s: float | None = None
    """When the caller should return; None says nothing about it."""


Event = (
    Begin | AnswerBegan | AttemptDone | BackoffElapsed | RetryRefused | DeadlinePassed | Cancelled | Aborted
)


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Make attempt ``number`` (from 1) and give it up after ``timeout_s``; None leaves it without a limit."""

    number: int
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Give the attempt under way up and report `AttemptDone` with ``code`` and what the transport knows."""

    code: Code


@dataclass(frozen=True, slots=True)
class WaitBackoff:
    """Report `BackoffElapsed` at the monotonic time ``until``; hold no worker meanwhile."""

    until: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Answer the caller. Nothing follows."""

    verdict: Verdict


Action = StartAttempt | CancelAttempt | WaitBackoff | Finish
Actions = tuple[Action, ...]

DEADLINE_RACE_S = 0.02
"""A client whose deadline passes resets its stream, and that may arrive just before our own timer fires."""


class State(Enum):
    """Where a call stands."""

    READY = "ready"
    ATTEMPTING = "attempting"
    BACKING_OFF = "backing_off"
    DONE = "done"


class Call:
    """Retries by evidence, within the budget and the deadline, and the verdict that follows.

    ``attempt_limit_s`` is None for calls whose attempts may last as long as the call (streams).
    ``deadline`` is monotonic seconds or None. ``breaker`` is asked before each attempt; None lets all
    through. ``throttle`` hears of each attempt and is asked before each retry: before the first attempt
    the shell asks it, when the call arrives. State: where the call stands, the attempts made, the breaker's
    permit for the one under way, the worst evidence so far, how the last attempt ended, and the verdict that
    waits for a cancelled attempt.
    """

    __slots__ = (
        "_attempt_limit_s",
        "_attempts",
        "_backoff",
        "_breaker",
        "_deadline",
        "_evidence",
        "_gate",
        "_last",
        "_may_repeat",
        "_pending",
        "_permit",
        "_retry",
        "_rng",
        "_safety",
        "_state",
        "_streaming",
        "_throttle",
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
        self._permit: Permit | None = None
        self._state = State.READY
        self._attempts = 0
        self._evidence = Evidence.NOT_SENT
        self._last: AttemptDone | None = None
        self._backoff: Backoff | None = None
        self._pending: Event | None = None

    @property
    def state(self) -> State:
        """Where the call stands."""
        return self._state

    @property
    def attempts(self) -> int:
        """Attempts started so far."""
        return self._attempts

    def handle(self, event: Event, now: float) -> Actions:
        """Advance. Events that come after the end, or that do not fit the state, change nothing."""
        match event, self._state:
            case _, State.DONE:
                return ()
            case AttemptDone(), State.ATTEMPTING:
                return self._attempt_done(event, now)
            case Begin(), State.READY:
                return self._start(now)
            case BackoffElapsed(), State.BACKING_OFF:
                return self._start(now)
            case RetryRefused(), State.BACKING_OFF:
                return self._give_up(Reason.RETRIES_EXHAUSTED)
            case ((DeadlinePassed() | Cancelled() | Aborted()), State.ATTEMPTING):
                self._pending = event
                late = isinstance(event, DeadlinePassed)
                return (CancelAttempt(Code.DEADLINE_EXCEEDED if late else Code.CANCELLED),)
            case ((DeadlinePassed() | Cancelled() | Aborted()), _):
                return self._stop(event)
            case AnswerBegan(), State.ATTEMPTING:
                if self._breaker is not None and self._permit is not None:
                    self._breaker.answering(self._permit, now)
                return ()
            case _:
                return ()

    def _start(self, now: float) -> Actions:
        if self._is_past(now):
            return self._stop(DeadlinePassed())
        if self._breaker is not None:
            self._permit = self._breaker.enter(Work.STREAM if self._streaming else Work.CALL, now)
            if self._permit is None:
                return self._breaker_open(self._breaker, now)
        self._state = State.ATTEMPTING
        self._attempts += 1
        if self._attempts == 1:
            self._gate.first_attempt()
        return (StartAttempt(self._attempts, self._attempt_timeout_s(now)),)

    def _attempt_timeout_s(self, now: float) -> float | None:
        if self._deadline is None:
            return self._attempt_limit_s
        left_s = max(0.0, self._deadline - now)
        return left_s if self._attempt_limit_s is None else min(left_s, self._attempt_limit_s)

    def _attempt_done(self, done: AttemptDone, now: float) -> Actions:
        if self._throttle is not None:
            self._throttle.ended(done.delivery, done.code, now)
        if done.code is Code.OK and done.delivery is Delivery.ANSWERED:
            self._settle(Outcome.SUCCESS, now)
            self._gate.record(failed=False)
            self._evidence = Evidence.DEFINITE
            return self._finish(Code.OK, done.message, Origin.UPSTREAM, Fate.OK)
        judgement = self.judgement_of(done)
        self._settle(self._says_of_upstream(done, judgement, now), now)
        settled = self._safety is Safety.KEYED and done.code in SETTLING_CODES
        if settled and judgement.evidence is Evidence.DEFINITE:
            self._evidence = Evidence.DEFINITE
        else:
            self._evidence = max(self._evidence, judgement.evidence)
        self._last = done
        if self._pending is not None:
            return self._stop(self._pending)
        if judgement.repeat is not Repeat.NEVER:
            self._gate.record(failed=True)
        return self._after_failure(done, judgement, now)

    def _settle(self, outcome: Outcome, now: float) -> None:
        if self._breaker is not None and self._permit is not None:
            self._breaker.settle(self._permit, outcome, now)
            self._permit = None

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
        if not done.replayable or self._attempts >= self._retry.max_attempts:
            return self._give_up(Reason.RETRIES_EXHAUSTED)
        delay_s = self._delay_s(done.pushback_s)
        if delay_s is None or self._is_past(now + delay_s):
            return self._give_up(Reason.RETRIES_EXHAUSTED)
        if self._breaker is not None and self._breaker.wait_s(now) > delay_s:
            # The retry would find it open: say so now, with its cost unspent.
            return self._breaker_open(self._breaker, now)
        if self._throttle is not None and self._throttle.refuses(now, self._rng):
            return self._refused(Reason.ADAPTIVE_THROTTLE, self._throttle.pushback_s(now, self._rng))
        if not self._gate.allow_retry(now):
            return self._give_up(Reason.BUDGET_EXHAUSTED)
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

    def _give_up(self, reason: Reason | None) -> Actions:
        """End with the last attempt's status, unless what is known says something worse."""
        last = self._last
        assert last is not None, "a call gives up only after an attempt"  # noqa: S101 (states that cannot be)
        if last.delivery is Delivery.ANSWERED and self.judgement_of(last).evidence >= self._evidence:
            return self._finish(last.code, last.message, Origin.UPSTREAM, Fate.ERROR, reason)
        if self._outcome_unknown:
            return self._finish(
                Code.UNKNOWN, _unknown(last.message), Origin.RELAY, Fate.ERROR, Reason.OUTCOME_UNKNOWN
            )
        origin = Origin.UPSTREAM if last.delivery is Delivery.ANSWERED else Origin.RELAY
        return self._finish(last.code, last.message, origin, Fate.ERROR, reason)

    def _breaker_open(self, breaker: CircuitBreaker, now: float) -> Actions:
        return self._refused(Reason.BREAKER_OPEN, breaker.pushback_s(now, self._rng))

    def _refused(self, reason: Reason, pushback_s: float) -> Actions:
        """End because no attempt may be made now; what an earlier one left open is worse and goes first."""
        last = self._last
        if last is not None and self._outcome_unknown:
            return self._finish(
                Code.UNKNOWN, _unknown(last.message), Origin.RELAY, Fate.ERROR, Reason.OUTCOME_UNKNOWN
            )
        code = reason.code or Code.UNKNOWN
        return self._finish(
            code, reason.meaning, Origin.RELAY, self._failure_fate, reason, pushback_s=pushback_s
        )

    @property
    def _outcome_unknown(self) -> bool:
        """Whether the caller must be told that an effect may exist. Nobody minds a second execution of
        a method that is safe to repeat by itself, so there the last status says more."""
        harmless = self._safety in (Safety.NO_SIDE_EFFECTS, Safety.IDEMPOTENT)
        return self._evidence is Evidence.AMBIGUOUS and not harmless

    def _stop(self, why: Event) -> Actions:
        """End for a reason that is not an attempt's answer."""
        match why:
            case Cancelled():
                return self._finish(Code.CANCELLED, "the caller went away", Origin.RELAY, Fate.CANCELLED)
            case Aborted(reason, pushback_s):
                code = reason.code or Code.UNKNOWN
                return self._finish(
                    code, reason.meaning, Origin.RELAY, self._failure_fate, reason, pushback_s=pushback_s
                )
            case _:
                return self._deadline_passed()

    def _deadline_passed(self) -> Actions:
        if self._outcome_unknown:
            text = _unknown("the deadline passed first")
            return self._finish(
                Code.DEADLINE_EXCEEDED, text, Origin.RELAY, Fate.ERROR, Reason.OUTCOME_UNKNOWN
            )
        reason = Reason.DEADLINE_PASSED
        return self._finish(Code.DEADLINE_EXCEEDED, reason.meaning, Origin.RELAY, self._failure_fate, reason)

    @property
    def _failure_fate(self) -> Fate:
        return Fate.ERROR if self._attempts else Fate.REFUSED

    def _finish(
        self,
        code: Code,
        message: str,
        origin: Origin,
        fate: Fate,
        reason: Reason | None = None,
        *,
        pushback_s: float | None = None,
    ) -> Actions:
        self._state = State.DONE
        evidence = self._evidence if self._attempts else None
        return (Finish(Verdict(code, message, origin, fate, reason, evidence, self._attempts, pushback_s)),)


def _unknown(message: str) -> str:
    return f"the call may have been executed, its answer did not arrive: {message}"
