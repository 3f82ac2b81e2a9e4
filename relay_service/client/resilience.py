"""One call after the other through the core's machine, with real attempts and real waits."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from relay_service.client.failures import CallFailedError, Failure, FailureOf
from relay_service.config.document import read_document
from relay_service.config.loading import ONLY_UPSTREAM, build_policy
from relay_service.core.breakers import Breakers
from relay_service.core.budget import RetryGate
from relay_service.core.call import Call
from relay_service.core.criticality import DEFAULT_CRITICALITY
from relay_service.core.events import (
    Actions,
    AttemptDone,
    BackoffElapsed,
    Begin,
    Cancelled,
    DeadlinePassed,
    Finish,
    StartAttempt,
    WaitBackoff,
)
from relay_service.core.evidence import Delivery, Evidence, Safety
from relay_service.core.policy import MethodPolicy, RelayPolicy
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.throttle import AdaptiveThrottle, Throttles
from relay_service.core.verdict import Fate, Origin, Verdict

if TYPE_CHECKING:
    from relay_service.client.interceptor import ResilientInterceptor

T = TypeVar("T")

NO_TARGET = "unused:1"
"""Where calls go is the affair of the channel or function that is wrapped."""


@dataclass(frozen=True, slots=True)
class RetryDetails:
    """A retry that is about to be made."""

    method: str
    """As the policy matches it: ``package.Service/Method``."""
    attempt: int
    """The number, from 1, of the attempt that failed."""
    wait_s: float
    error: Exception | None
    """What it raised; None when its time was up."""
    evidence: Evidence


OnRetry = Callable[[RetryDetails], None]


def ignore_retry(_: RetryDetails) -> None:
    """The hook of those who want none."""


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """What is to be done, as often as the policy wants.

    ``attempt`` gets the seconds that it may take, None for no limit; it is cancelled when they are over.
    """

    method: str
    attempt: Callable[[float | None], Awaitable[T]]
    failure_of: FailureOf
    on_retry: OnRetry = ignore_retry
    timeout_s: float | None = None
    """The caller's own; None takes the policy's."""
    has_key: bool = False


def read_policy(source: str) -> RelayPolicy:
    """The policy in a file, or a preset by its name; upstreams and routes in it play no part here.

    Raises `relay_service.config.problems.ConfigError` with everything that is wrong.
    """
    return build_policy(read_document(source), NO_TARGET)


class Resilience:
    """A policy and what has been learned under it of one service: make one per service and share it.

    Belongs to one event loop. ``upstream`` names the part of the policy, when it has several upstreams.
    State: the retry gate, the breakers, and the throttle if the policy has one.
    """

    def __init__(
        self,
        policy: RelayPolicy,
        *,
        upstream: str = ONLY_UPSTREAM,
        now: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._policy = policy
        self._upstream = upstream if upstream in policy.upstreams else next(iter(policy.upstreams))
        self._now = now
        self._rng = rng or random.Random()
        self.gate = RetryGate(policy.budget, policy.throttling, now())
        self.breakers = Breakers(policy, now())
        self._throttle: AdaptiveThrottle | None = None
        if policy.adaptive_throttle is not None:
            self._throttle = Throttles(policy.adaptive_throttle, now()).of(DEFAULT_CRITICALITY)

    def interceptor(self, on_retry: OnRetry = ignore_retry) -> "ResilientInterceptor":
        """For the unary calls of a ``grpc.aio`` channel; streaming calls pass it by."""
        from relay_service.client.interceptor import ResilientInterceptor

        return ResilientInterceptor(self, on_retry)

    def method_policy(self, method: str) -> MethodPolicy:
        """What holds for ``package.Service/Method``."""
        return self._policy.method_policy(method)

    async def run(self, work: Work[T]) -> T:
        """Do the work: the result of the attempt that succeeded.

        Raises the last attempt's own exception when that is the answer, `CallFailedError` when the call was
        ended here (breaker, throttle, deadline, an outcome that is not known), and at once whatever
        ``work.failure_of`` does not know.
        """
        deadline = self._deadline(work)
        if self._throttle is not None and self._throttle.refuses(self._now(), self._rng):
            reason = Reason.ADAPTIVE_THROTTLE
            pushback_s = self._throttle.pushback_s(self._now(), self._rng)
            raise CallFailedError(_refusal(reason, pushback_s))
        run = _Run(work, self._machine(work, deadline), deadline, self._now)
        return await run.to_its_end()

    def _deadline(self, work: Work[T]) -> float | None:
        policy = self._policy.method_policy(work.method)
        timeout_s = work.timeout_s if work.timeout_s is not None else policy.default_timeout_s
        if policy.max_timeout_s is not None:
            timeout_s = policy.max_timeout_s if timeout_s is None else min(timeout_s, policy.max_timeout_s)
        return None if timeout_s is None else self._now() + timeout_s

    def _machine(self, work: Work[T], deadline: float | None) -> Call:
        policy = self._policy.method_policy(work.method)
        return Call(
            policy.retry,
            safety=policy.safety or Safety.NONE,
            has_key=work.has_key,
            deadline=deadline,
            attempt_limit_s=policy.attempt_timeout_s,
            gate=self.gate,
            rng=self._rng,
            breaker=self.breakers.guarding(self._upstream, work.method),
            throttle=self._throttle,
        )


class _Run(Generic[T]):
    """One call under way. State: the machine's, the result, and how the last attempt failed."""

    def __init__(
        self, work: Work[T], machine: Call, deadline: float | None, now: Callable[[], float]
    ) -> None:
        self._work = work
        self._machine = machine
        self._deadline = deadline
        self._now = now
        self._result: list[T] = []
        self._error: Exception | None = None
        self._last: AttemptDone | None = None

    async def to_its_end(self) -> T:
        actions = self._machine.handle(Begin(), self._now())
        while True:
            match actions:
                case (StartAttempt(number, timeout_s),):
                    done = await self._attempt(timeout_s)
                    actions = self._over(replace(done, number=number))
                case (WaitBackoff(until),):
                    actions = await self._back_off(until)
                case (Finish(verdict),):
                    return self._finish(verdict)
                case _:
                    raise AssertionError(f"the machine wants {actions}, which a lone call cannot do")

    async def _attempt(self, timeout_s: float | None) -> AttemptDone:
        self._error = None
        try:
            async with asyncio.timeout(timeout_s) as limit:
                self._result = [await self._work.attempt(timeout_s)]
        except asyncio.CancelledError:
            self._leave()
            raise
        except Exception as error:  # noqa: BLE001 (whose function it is says what its exceptions mean)
            if isinstance(error, TimeoutError) and limit.expired():
                return AttemptDone(
                    Delivery.UNANSWERED, Code.UNAVAILABLE, f"the attempt took longer than {timeout_s} s"
                )
            return self._failed(error)
        return AttemptDone(Delivery.ANSWERED, Code.OK, "")

    def _failed(self, error: Exception) -> AttemptDone:
        failure = self._work.failure_of(error)
        if failure is None:
            # It says nothing of the service, which must not wait for a probe that has gone.
            self._leave()
            raise error
        self._error = error
        return _done(failure)

    def _leave(self) -> None:
        """Give back what the attempt under way holds; nothing more is to be made."""
        now = self._now()
        self._machine.handle(Cancelled(), now)
        number = self._machine.attempts
        self._machine.handle(AttemptDone(Delivery.UNANSWERED, Code.CANCELLED, "", number=number), now)

    def _over(self, done: AttemptDone) -> Actions:
        self._last = done
        now = self._now()
        if done.delivery is not Delivery.ANSWERED and self._deadline is not None and now >= self._deadline:
            self._machine.handle(DeadlinePassed(), now)
        return self._machine.handle(done, now)

    async def _back_off(self, until: float) -> Actions:
        assert self._last is not None, "a wait follows an attempt"  # noqa: S101 (states that cannot be)
        wait_s = max(0.0, until - self._now())
        evidence = self._machine.judgement_of(self._last).evidence
        details = RetryDetails(self._work.method, self._machine.attempts, wait_s, self._error, evidence)
        self._work.on_retry(details)
        await asyncio.sleep(wait_s)
        return self._machine.handle(BackoffElapsed(), self._now())

    def _finish(self, verdict: Verdict) -> T:
        if verdict.code is Code.OK:
            return self._result[0]
        ended_here = verdict.reason not in (None, Reason.RETRIES_EXHAUSTED, Reason.BUDGET_EXHAUSTED)
        if self._error is None or ended_here:
            raise CallFailedError(verdict) from self._error
        self._error.add_note(f"after {verdict.attempts} attempts: {verdict.decision}")
        raise self._error


def _done(failure: Failure) -> AttemptDone:
    return AttemptDone(failure.delivery, failure.code, failure.message, pushback_s=failure.pushback_s)


def _refusal(reason: Reason, pushback_s: float) -> Verdict:
    code = reason.code or Code.UNKNOWN
    return Verdict(code, reason.meaning, Origin.RELAY, Fate.REFUSED, reason, pushback_s=pushback_s)
