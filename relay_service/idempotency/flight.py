"""One key on its way through this relay, with all callers who sent it.

    look up --- replay, refuse ----------------------------------------------> land
      |  ^---- it is another relay's: wait until that has changed ----.
      v                                                               |
    admission (a worker) --> claim --> attempts --> settle --> land   |
                               `--------------------------------------'

A flight is a task, because at each step the store must be awaited. A kill at any step leaves either nothing,
or a claim whose lease runs out: an outcome nobody knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from relay_service.core.idempotency import Decision, Record, Scope, decide
from relay_service.core.key_policy import InFlight
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import KeyStatus, Origin, Verdict
from relay_service.fault_points import FaultPoint
from relay_service.idempotency.answer import Answer, UnreadableAnswerError
from relay_service.idempotency.books import Books
from relay_service.idempotency.caller import KeyedCall
from relay_service.idempotency.intent import Intent
from relay_service.idempotency.leases import Leases
from relay_service.idempotency.outcome import Outcome, executed, refused, replayed
from relay_service.idempotency.work import KeyedWork, NoWork, WorkObserver, WorkOrder
from relay_service.stores.interface import Claim, Claimed, StoreError

CHANGED_WAIT_S = 30.0
"""How long the news of another relay's call are waited for before the key is looked up again."""

_REFUSALS = {
    Decision.UNKNOWN: Reason.OUTCOME_UNKNOWN,
    Decision.KEY_REUSED: Reason.IDEMPOTENCY_KEY_REUSED,
    Decision.KEY_EXPIRED: Reason.IDEMPOTENCY_KEY_EXPIRED,
    Decision.DEAD_LETTERED: Reason.IDEMPOTENCY_KEY_DEAD_LETTERED,
    Decision.QUEUED: Reason.IDEMPOTENCY_IN_PROGRESS,
}

_PERSONAL = frozenset(
    {
        Reason.CLIENT_QUOTA,
        Reason.DEADLINE_INFEASIBLE,
        Reason.SHED_BY_CRITICALITY,
        Reason.FAIR_SHARE,
        Reason.ADAPTIVE_THROTTLE,
    }
)
"""Refusals that hang on who calls: its client, its deadline, its class."""

log = logging.getLogger(__name__)


class FlightHost(Protocol):
    """What a flight needs of the relay."""

    def now(self) -> float:
        """Monotonic seconds."""

    def start_work(self, order: WorkOrder, observer: WorkObserver) -> KeyedWork:
        """Have the request carried, from the admission on. Raises `NoWork`."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all flights of a relay share."""

    host: FlightHost
    books: Books
    leases: Leases
    reached: FaultPoint
    landed: Callable[[Flight], None]


class Flight:
    """State: who is on it, the request carried for them, and what is known of the outcome."""

    def __init__(
        self, ground: Ground, scope: Scope, fingerprint: bytes, framed: bytes, repeatable: bool
    ) -> None:
        self.scope = scope
        self.fingerprint = fingerprint
        self.size_bytes = len(framed)
        self.under_way = False
        """The key is claimed, here or elsewhere: who comes now is a duplicate in flight."""
        self.unsettled: Outcome | None = None
        """How it ended, while that is being stored."""
        self._ground = ground
        self._framed = framed
        self._repeatable = repeatable
        self._callers: dict[KeyedCall, None] = {}
        self._leader: KeyedCall | None = None
        self._work: KeyedWork | None = None
        self._outcome_open = False
        self._elsewhere: asyncio.Future[Record | None] | None = None

    @property
    def callers(self) -> int:
        """How many wait."""
        return len(self._callers)

    @property
    def attempts(self) -> int:
        """Attempts made for its callers so far."""
        return self._work.attempts if self._work is not None else 0

    @property
    def settling(self) -> bool:
        """Whether its work is over and whoever it was made for does not know yet."""
        return self._leader is not None and self._work is not None and self._work.over

    @property
    def effect_possible(self) -> bool:
        """Whether there may be an effect, or may yet come to be one."""
        return self._outcome_open or self.attempts > 0 or self._elsewhere is not None

    # Callers ------------------------------------------------------------------------------------

    def take(self, caller: KeyedCall) -> None:
        """One more waits."""
        self._callers[caller] = None
        if self._work is not None:
            self._work.somebody_waits(self._latest())

    def leave(self, caller: KeyedCall) -> None:
        """One waits no longer."""
        if self._callers.pop(caller, self) is self or self._callers:
            return
        if self._elsewhere is not None:
            self._elsewhere.cancel()
        if self._work is not None:
            self._work.nobody_waits()

    def _latest(self) -> float | None:
        """Until when anybody waits, in monotonic seconds; None for ever."""
        latest = 0.0
        for caller in self._callers:
            if caller.intent.deadline is None:
                return None
            latest = max(latest, caller.intent.deadline)
        return latest

    def _tell(self, outcome: Outcome | None) -> None:
        callers, self._callers = self._callers, {}
        if outcome is None:
            return
        self._ground.books.counters.coalesced += max(0, len(callers) - 1)
        for caller in callers:
            caller.settle(outcome)

    def _turn_duplicates_away(self) -> None:
        """The key is under way: by policy, only the first waits for it."""
        self.under_way = True
        self._abort(list(self._callers)[1:])

    def _abort(self, duplicates: Iterable[KeyedCall]) -> None:
        for caller in duplicates:
            if caller.intent.keys.in_flight is InFlight.ABORT:
                del self._callers[caller]
                caller.settle(refused(Reason.IDEMPOTENCY_IN_PROGRESS, self.scope.method))

    # The way ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the first look-up to the last answer."""
        outcome: Outcome | None = None
        try:
            outcome = await self._fly()
        except StoreError as error:
            self._ground.books.counters.store_errors += 1
            log.warning("a key could not be looked up or claimed: %s", error)
            outcome = self._refused(Reason.STORE_UNAVAILABLE)
        except Exception:
            log.exception("a keyed call broke")
            outcome = self._refused(Reason.OUTCOME_UNKNOWN)
        finally:
            if self._work is not None and not self._work.over:  # only where this task broke or was ended
                self._work.give_up(Reason.DRAINING)
            self._ground.landed(self)  # who comes from now on looks up what was stored
            self._tell(outcome)
            self._return_observer()
        self._ground.reached("replied")

    async def _fly(self) -> Outcome | None:
        while self._still_waited_for():
            record = await self._ground.books.look_up(self.scope)
            self._ground.reached("looked-up")
            if record is not None and await self._ground.leases.let_go_of_stray(record):
                continue
            now = self._ground.books.store.now()
            decision = decide(record, self.fingerprint, now, repeatable=self._repeatable)
            self._outcome_open = decision is Decision.EXECUTE and record is not None
            if decision is Decision.EXECUTE or record is None:
                outcome = await self._execute(record.fence if record else 0) if self._callers else None
            else:
                self._ground.books.counters.decisions[decision] += 1
                outcome = await self._without_claim(decision, record)
            if outcome is not None:
                return outcome
        return None

    def _still_waited_for(self) -> bool:
        """Whether anybody is left; whose time is up is told so now, as its timer may be a tick late."""
        now = self._ground.host.now()
        for caller in list(self._callers):
            if caller.intent.deadline is not None and caller.intent.deadline <= now:
                caller.deadline_passed()
        return bool(self._callers)

    async def _without_claim(self, decision: Decision, record: Record) -> Outcome | None:
        """What those get whose key is not free; None to look again."""
        if decision is Decision.REPLAY:
            return self._replay(record)
        if decision is Decision.WAIT:
            return await self._wait_for(record)
        letter_id = record.reference if decision is Decision.DEAD_LETTERED else ""
        return refused(_REFUSALS[decision], self.scope.method, letter_id=letter_id)

    def _replay(self, record: Record) -> Outcome:
        try:
            answer = Answer.decode(record.answer or b"")
        except UnreadableAnswerError as error:
            log.warning("a stored answer cannot be replayed: %s", error)
            return refused(Reason.OUTCOME_UNKNOWN, self.scope.method)
        return replayed(answer, record.first_seen, self._ground.books.store.durability.name)

    async def _wait_for(self, record: Record) -> Outcome | None:
        """Another relay has it: all here are duplicates in flight."""
        self.under_way = True
        self._abort(list(self._callers))
        if not self._callers:
            return None
        latest = self._latest()
        wait_s = CHANGED_WAIT_S if latest is None else max(0.0, latest - self._ground.host.now())
        changed = self._ground.books.store.changed(self.scope, record.fence, min(wait_s, CHANGED_WAIT_S))
        self._elsewhere = asyncio.ensure_future(changed)
        try:
            await self._elsewhere
        except asyncio.CancelledError:
            if self._callers:  # not because the last caller left
                raise
        finally:
            self._elsewhere = None
        return None

    async def _execute(self, fence_before: int) -> Outcome | None:
        """Admission, claim, attempts, settlement; None when somebody else was faster."""
        leader = self._leader = next(iter(self._callers))
        observer = WorkObserver(
            leader.lend_observer(), self._ground.leases.owner, self._ground.books.store.now
        )
        try:
            order = WorkOrder(leader.intent, self.scope.key, self._framed, self._outcome_open)
            work = self._work = self._ground.host.start_work(order, observer)
        except NoWork as refusal:
            told = self._refused(refusal.reason, refusal.pushback_s, refusal.subject)
            return self._unless_personal(refusal.reason, told)
        work.somebody_waits(self._latest())
        outcome = await self._claim_and_carry(leader.intent, work, fence_before)
        if outcome is None:  # another round, perhaps in another caller's name
            self._return_observer()
        return outcome

    def _unless_personal(self, reason: Reason | None, outcome: Outcome) -> Outcome | None:
        """What only the leader is refused for is the leader's answer alone; the others are judged anew, the
        next of them first."""
        leader = self._leader
        if reason not in _PERSONAL or leader is None or not self._callers.keys() - {leader}:
            return outcome
        if self._callers.pop(leader, self) is not self:
            leader.settle(outcome)
        self._return_observer()
        return None

    async def _claim_and_carry(self, intent: Intent, work: KeyedWork, fence_before: int) -> Outcome | None:
        if not await work.worker():
            return await self._never_dispatched(work)
        ground = self._ground
        claim = Claim(
            self.scope, self.fingerprint, ground.leases.owner, ground.leases.lease_s, self._repeatable
        )
        stray = ground.leases.stop_seeking(self.scope)
        try:
            claimed = await ground.books.claim(claim)
        except StoreError:
            ground.leases.lose(self.scope, fence_before)
            work.give_up(Reason.STORE_UNAVAILABLE)
            raise
        ground.reached("claimed")
        if claimed.decision is not Decision.EXECUTE:
            work.give_up(Reason.IDEMPOTENCY_IN_PROGRESS)
            if stray is not None and ground.leases.is_ours_since(claimed.record, stray.after_fence):
                ground.leases.seek(self.scope, stray)  # it turned up: look again, and let go of it
                return None
            return await self._without_claim(claimed.decision, claimed.record)
        ground.leases.hold(self.scope, claimed.record.fence)
        try:
            return await self._carry(intent, work, claimed)
        finally:
            ground.leases.let_go(self.scope)

    async def _carry(self, intent: Intent, work: KeyedWork, claimed: Claimed) -> Outcome | None:
        self._outcome_open = claimed.was_ambiguous
        self._turn_duplicates_away()
        work.begin(self._ground.host.now(), outcome_open=claimed.was_ambiguous)
        self._ground.reached("dispatched")
        verdict = await work.ended()
        self._ground.reached("answered")
        answer = work.catcher.answer
        if answer is not None:
            self.unsettled = executed(answer, verdict, KeyStatus.UNKNOWN)
        settled = await self._ground.books.settle(intent, self._framed, work, verdict, claimed.record)
        self.unsettled = None
        self._ground.reached("settled")
        if answer is None or _ran_out_of_time(verdict):
            return None
        return executed(
            answer,
            verdict,
            settled.status,
            first_seen=claimed.record.first_seen,
            letter_id=settled.letter_id,
            durability=self._ground.books.store.durability.name,
        )

    async def _never_dispatched(self, work: KeyedWork) -> Outcome | None:
        """It ended in the queue: all share the refusal, unless it was meant for its first caller alone."""
        verdict = await work.ended()
        answer = work.catcher.answer
        if answer is None or _ran_out_of_time(verdict):
            return None
        return self._unless_personal(verdict.reason, executed(answer, verdict, None))

    def _refused(self, reason: Reason, pushback_s: float | None = None, subject: str = "relay") -> Outcome:
        possible = self._outcome_open or self.under_way or self.attempts > 0
        return refused(
            reason, self.scope.method, pushback_s=pushback_s, subject=subject, effect_possible=possible
        )

    def _return_observer(self) -> None:
        if self._leader is not None:
            hedges = self._work.watched.hedges if self._work is not None else 0
            self._leader.take_observer_back(self.attempts, hedges)
            self._leader = self._work = None


def _ran_out_of_time(verdict: Verdict) -> bool:
    """Whether it was given up at a deadline. That is the answer of those whose deadline it was, and they
    have it; whoever waits longer is owed another look."""
    return verdict.code is Code.DEADLINE_EXCEEDED and verdict.origin is Origin.RELAY
