"""An engine in memory, for the simulator and unit tests only: the keys, and as much of letters as they need.

Every operation is atomic because nothing in it awaits between reading and writing; `pause` is awaited before
and after, so that whoever drives it can lose a request, lose an answer, or stop the world in between.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

from relay_service.core.idempotency import Afterwards, Decision, Record, RecordState, Scope, decide
from relay_service.core.job import DeadLetter
from relay_service.stores.interface import Claim, Claimed, Durability

Pause = Callable[[str], Awaitable[None]]


async def at_once(_moment: str) -> None:
    """No pause."""


class MemoryStore:
    """State: the records, which of them were ambiguous before their claim, the letters, and who waits."""

    durability = Durability("memory", "nothing survives this process")

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.records: dict[Scope, Record] = {}
        self.letters_by_id: dict[str, DeadLetter] = {}
        self._were_ambiguous: set[Scope] = set()
        self._fence = 0
        self._waiters: dict[Scope, set[asyncio.Event]] = {}

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def healthy(self) -> str:
        return ""

    async def look_up(self, scope: Scope) -> Record | None:
        return self.records.get(scope)

    async def claim(self, claim: Claim) -> Claimed:
        record = self.records.get(claim.scope)
        now = self.now()
        decision = decide(record, claim.fingerprint, now, repeatable=claim.repeatable)
        if decision is not Decision.EXECUTE:
            assert record is not None
            return Claimed(decision, record)
        self._fence += 1
        afresh = record is None or record.state is RecordState.DONE
        taken = Record(
            claim.scope,
            claim.fingerprint,
            RecordState.IN_PROGRESS,
            self._fence,
            claim.owner,
            first_seen=now if record is None or afresh else record.first_seen,
            changed_at=now,
            lease_until=now + claim.lease_s,
            expires_at=math.inf,
            attempts=1 if record is None or afresh else record.attempts + 1,
        )
        self.records[claim.scope] = taken
        (self._were_ambiguous.discard if afresh else self._were_ambiguous.add)(claim.scope)
        return Claimed(Decision.EXECUTE, taken, was_ambiguous=not afresh)

    async def renew(self, owner: str, claims: Collection[tuple[Scope, int]], lease_s: float) -> None:
        for scope, fence in claims:
            record = self._held(scope, fence)
            if record is not None and record.owner == owner:
                self.records[scope] = replace(record, lease_until=self.now() + lease_s)

    async def finish(
        self,
        scope: Scope,
        fence: int,
        answer: bytes,
        keep_s: float,
        then: Afterwards = Afterwards.TOMBSTONE,
    ) -> bool:
        expires_at = self.now() + keep_s
        return self._write(
            scope, fence, state=RecordState.DONE, answer=answer, expires_at=expires_at, then=then
        )

    async def leave_ambiguous(self, scope: Scope, fence: int) -> bool:
        return self._write(scope, fence, state=RecordState.AMBIGUOUS)

    async def release(self, scope: Scope, fence: int) -> bool:
        if self._held(scope, fence) is None:
            return False
        if scope in self._were_ambiguous:
            return self._write(scope, fence, state=RecordState.AMBIGUOUS)
        del self.records[scope]
        self._wake(scope)
        return True

    async def changed(self, scope: Scope, fence: int, timeout_s: float) -> Record | None:
        record = self._held(scope, fence)
        if record is not None:
            news = asyncio.Event()
            self._waiters.setdefault(scope, set()).add(news)
            try:
                wait_s = max(0.0, min(timeout_s, record.lease_until - self.now()))
                await asyncio.wait_for(news.wait(), wait_s)
            except TimeoutError:
                pass
            finally:
                self._waiters[scope].discard(news)
        return self.records.get(scope)

    async def ambiguous(self, *, tenant: str | None, after: str, limit: int) -> tuple[Sequence[Record], str]:
        found = [
            record
            for record in self.records.values()
            if record.state is RecordState.AMBIGUOUS
            or (record.state is RecordState.IN_PROGRESS and record.lease_until <= self.now())
            if tenant is None or record.scope.tenant == tenant
        ]
        start = int(after or 0)
        page = found[start : start + limit]
        return page, str(start + limit) if start + limit < len(found) else ""

    async def sweep_keys(self, *, tombstone_s: float, limit: int) -> int:
        now, touched = self.now(), 0
        for scope, record in list(self.records.items()):
            ended = record.state in (RecordState.DONE, RecordState.EXPIRED) and record.expires_at <= now
            if not ended or touched == limit:
                continue
            touched += 1
            if record.state is RecordState.EXPIRED or record.then is Afterwards.FORGOTTEN:
                del self.records[scope]
            else:
                tombstone = replace(
                    record, state=RecordState.EXPIRED, answer=None, expires_at=now + tombstone_s
                )
                self.records[scope] = tombstone
        return touched

    async def put_letter(self, letter: DeadLetter, scope: Scope | None, fence: int, keep_s: float) -> bool:
        if scope is not None and not self._write(
            scope, fence, state=RecordState.DEAD_LETTERED, reference=letter.id
        ):
            return False
        self.letters_by_id[letter.id] = letter
        return True

    def _held(self, scope: Scope, fence: int) -> Record | None:
        record = self.records.get(scope)
        held = record is not None and record.fence == fence and record.state is RecordState.IN_PROGRESS
        return record if held else None

    def _write(self, scope: Scope, fence: int, **changes: object) -> bool:
        record = self._held(scope, fence)
        if record is None:
            return False
        self.records[scope] = replace(record, changed_at=self.now(), **changes)  # type: ignore[arg-type]
        self._wake(scope)
        return True

    def _wake(self, scope: Scope) -> None:
        for news in self._waiters.get(scope, ()):
            news.set()
