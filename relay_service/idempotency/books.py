"""What a flight writes into the store and reads from it, within the store's patience, timed and counted."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

from relay_service import contract
from relay_service.core.idempotency import Record, Scope
from relay_service.core.job import Cause, DeadLetter, LetterState, Work
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.settlement import Bury, Keep, LeaveAmbiguous, Release, settlement_of
from relay_service.core.verdict import KeyStatus, Verdict
from relay_service.idempotency.answer import Answer
from relay_service.idempotency.caller import message_of
from relay_service.idempotency.counters import KeyCounters, StoreTimes
from relay_service.idempotency.intent import Intent
from relay_service.idempotency.work import KeyedWork
from relay_service.stores.interface import Claim, Claimed, Store, StoreError, StoreUnavailableError

STORE_PATIENCE_S = 2.0
"""A store that has not answered for so long is unavailable, whatever it says later."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settled:
    """What was written of a claim at its end."""

    status: KeyStatus | None
    """The key's, for those who sent it; None when it is free again."""
    letter_id: str = ""
    """The dead letter that the call became."""


_UNSETTLED = Settled(KeyStatus.UNKNOWN)


class Books:
    """The store as the flights of one relay use it; ``now`` is monotonic seconds."""

    def __init__(
        self,
        store: Store,
        letters: LetterPolicy,
        counters: KeyCounters,
        store_took: StoreTimes,
        now: Callable[[], float],
    ) -> None:
        self.store = store
        self.counters = counters
        self._letters = letters
        self._store_took = store_took
        self._now = now

    async def look_up(self, scope: Scope) -> Record | None:
        """What is known of a key. Raises `StoreError`."""
        return await self._ask("look_up", self.store.look_up(scope))

    async def claim(self, claim: Claim) -> Claimed:
        """Take a key if it is free. Raises `StoreError`, and the claim may have been made all the same."""
        claimed = await self._ask("claim", self.store.claim(claim))
        self.counters.decisions[claimed.decision] += 1
        return claimed

    async def settle(
        self, intent: Intent, framed: bytes, work: KeyedWork, verdict: Verdict, record: Record
    ) -> Settled:
        """Write what became of a claim, under its fence. A store that fails here fails no call."""
        settlement = settlement_of(verdict, intent.keys, self._letters)
        scope, fence, letter_id = record.scope, record.fence, ""
        status: KeyStatus | None
        match settlement:
            case Keep(keep_s, then):
                kept = _answer_of(work).encode()
                name, status = "kept", KeyStatus.EXECUTED
                writing = self.store.finish(scope, fence, kept, keep_s, then)
            case Release():
                name, status = "released", None
                writing = self.store.release(scope, fence)
            case LeaveAmbiguous():
                name, status = "ambiguous", KeyStatus.UNKNOWN
                writing = self.store.leave_ambiguous(scope, fence)
            case Bury(cause):
                letter = self._letter(intent, framed, work, verdict, record=record, cause=cause)
                name, status, letter_id = "dead_lettered", KeyStatus.UNKNOWN, letter.id
                writing = self.store.put_letter(letter, scope, fence, self._letters.keep_s)
        try:
            written = await self._ask("settle", writing)
        except StoreError as error:
            self.counters.store_errors += 1
            self.counters.settled["lost"] += 1
            log.warning("the outcome of a key could not be stored: %s", error)
            return _UNSETTLED
        if not written:
            self.counters.settled["lost"] += 1
            self.counters.stale += 1
            return _UNSETTLED
        self.counters.settled[name] += 1
        return Settled(status, letter_id)

    def _letter(
        self,
        intent: Intent,
        framed: bytes,
        work: KeyedWork,
        verdict: Verdict,
        *,
        record: Record,
        cause: Cause,
    ) -> DeadLetter:
        now = self.store.now()
        trace_id = work.watched.trace_id
        scope = record.scope
        return DeadLetter(
            id=str(uuid.uuid4()),
            work=Work(
                tenant=scope.tenant,
                method=scope.method,
                request=message_of(framed, intent.head, intent.policy),
                metadata=contract.without_credentials(intent.head.metadata),
                key=scope.key,
                fingerprint=record.fingerprint,
                traceparent=f"00-{trace_id}-{trace_id[:16]}-00",
            ),
            cause=cause,
            state=LetterState.OPEN,
            died_at=now,
            expires_at=now + self._letters.keep_s,
            submitted_at=record.changed_at,
            attempts=verdict.attempts,
            tries=work.watched.tries,
            code=verdict.code,
            message=verdict.message,
            policy=json.dumps(asdict(intent.policy), default=str),
        )

    async def _ask(self, operation: str, answer: Awaitable[Result]) -> Result:
        started = self._now()
        try:
            async with asyncio.timeout(STORE_PATIENCE_S):
                return await answer
        except TimeoutError:
            raise StoreUnavailableError(f"no answer to {operation} within {STORE_PATIENCE_S:g} s") from None
        finally:
            self._store_took(operation, self._now() - started)


def _answer_of(work: KeyedWork) -> Answer:
    answer = work.catcher.answer
    assert answer is not None, "what is definite was answered"  # noqa: S101 (states that cannot be)
    return answer
