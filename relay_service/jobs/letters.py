"""Dead letters, one at a time: forecast, replay, edit, hold, release, discard, take in."""

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from relay_service.core.evidence import Safety
from relay_service.core.idempotency import Scope
from relay_service.core.job import DeadLetter, JobState, LetterState, Replay, Work
from relay_service.core.job_policy import JobPolicy
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.status import Code
from relay_service.fault_points import FaultPoint
from relay_service.jobs.carrier import ALONE, ATTEMPTS_HINT, BATCH_HINT, HINTS, ONCE
from relay_service.jobs.counters import JobCounters
from relay_service.jobs.forecast import Forecast, is_replayable, protection_of
from relay_service.jobs.sending import Message, Sender
from relay_service.stores.interface import JobFilter, KeyTakenError, LetterFilter, Store, Submission

PAGE = 500
LATER_JOBS_LOOKED_AT = 1_000
"""Of an order key, when it is asked whether a replay would break its order."""

REPLAY_ALONE = ((BATCH_HINT, ALONE),)
REPLAY_ONCE = ((BATCH_HINT, ALONE), (ATTEMPTS_HINT, ONCE))
REPLAY_AS_IT_WAS: tuple[tuple[str, bytes], ...] = ()

_BECOMES = {LetterState.HELD: "held", LetterState.OPEN: "released", LetterState.DISCARDED: "discarded"}


class LetterNotOpenError(Exception):
    """The letter's state does not allow what was asked; the text says which it is."""


class Letters:
    """What can be done with a dead letter."""

    def __init__(
        self,
        store: Store,
        safety: Callable[[str], Safety],
        retryable: Callable[[str], frozenset[Code]],
        *,
        jobs: JobPolicy,
        letters: LetterPolicy,
        new_id: Callable[[], str],
        fault_point: FaultPoint,
        sender: Sender,
        counters: JobCounters,
    ) -> None:
        """``safety`` says what a second execution of a method would do, ``retryable`` which codes its
        upstream gives without having executed anything."""
        self._store = store
        self._safety = safety
        self._retryable = retryable
        self._jobs = jobs
        self._letters = letters
        self._new_id = new_id
        self._fault_point = fault_point
        self._sender = sender
        self._counters = counters

    async def each(self, which: LetterFilter) -> AsyncIterator[DeadLetter]:
        """All letters of a filter, newest first, page by page."""
        after = ""
        while True:
            page, after = await self._store.letters(which, after=after, limit=PAGE)
            for letter in page:
                yield letter
            if not after:
                return

    async def forecast(self, letter: DeadLetter) -> Forecast:
        """What a replay now would do; writes nothing."""
        work = letter.work
        record = await self._store.look_up(Scope(work.tenant, work.method, work.key)) if work.key else None
        return Forecast(
            letter.id,
            protection_of(letter, record, self._safety(work.method), self._retryable(work.method)),
            breaks_order=await self._is_overtaken(letter),
            is_open=is_replayable(letter),
        )

    async def _is_overtaken(self, letter: DeadLetter) -> bool:
        work = letter.work
        if not work.order_key:
            return False
        which = JobFilter(
            tenant=work.tenant, order_key=work.order_key, states=frozenset({JobState.COMPLETED})
        )
        page, _ = await self._store.jobs(which, after="", limit=LATER_JOBS_LOOKED_AT)
        return any(job.submitted_at > letter.submitted_at for job in page)

    async def replay(self, letter: DeadLetter, by: str, hints: tuple[tuple[str, bytes], ...]) -> str:
        """Run it again under its key; returns the new job's id.

        Raises `LetterNotOpenError` when it is not open (any more), or its key is in use.
        """
        plain = [one for one in letter.work.metadata if one[0] not in HINTS]
        return await self._begin(letter, replace(letter.work, metadata=(*plain, *hints)), by)

    async def edit(self, letter: DeadLetter, request: bytes, key: bytes, by: str) -> str:
        """Run another request in its place. It is other work, so it has a key of its own: ``key``, or its
        new job's id when that is empty. Raises `LetterNotOpenError`."""
        fingerprint = hashlib.sha256(request).digest()
        return await self._begin(
            letter, replace(letter.work, request=request, fingerprint=fingerprint, key=key), by
        )

    async def _begin(self, letter: DeadLetter, work: Work, by: str) -> str:
        job_id = self._new_id()
        sending = self._sender.begin(
            Message(work.method, len(work.request), origin=letter.work.traceparent, dead_letter_id=letter.id)
        )
        own = replace(work, key=work.key or job_id.encode(), traceparent=sending.traceparent)
        try:
            await self._commit(letter, Submission(job_id, own, delay_s=0.0, ttl_s=self._jobs.ttl_s), by)
        except LetterNotOpenError:
            sending.refused("LETTER_NOT_OPEN")
            raise
        sending.sent(job_id, existed=False)
        self._counters.replayed += 1
        self._fault_point("letter-replayed")
        return job_id

    async def _commit(self, letter: DeadLetter, submission: Submission, by: str) -> None:
        try:
            began = await self._store.replay(
                letter.id, Replay(self._store.now(), by, submission.id), submission
            )
        except KeyTakenError as error:
            raise LetterNotOpenError(f"dead letter {letter.id}: {error}") from error
        if not began:
            raise LetterNotOpenError(await self._not_now(letter.id, "replayed"))

    async def set_state(self, letter_id: str, state: LetterState, note: str) -> None:
        """Hold, release (OPEN) or discard. Raises `LetterNotOpenError` when its state does not allow it."""
        if not await self._store.set_state(letter_id, state, note):
            raise LetterNotOpenError(await self._not_now(letter_id, _BECOMES[state]))

    async def _not_now(self, letter_id: str, done: str) -> str:
        letter = await self._store.letter(letter_id)
        state = letter.state.value if letter else "gone"
        return f"dead letter {letter_id} is {state} and cannot be {done}"

    async def take_in(self, letter: DeadLetter) -> bool:
        """Import a letter; False when it is here already. Its time is counted anew, from now."""
        if await self._store.letter(letter.id) is not None:
            return False
        now = self._store.now()
        # Counted from its death it might be over before anybody has looked at it.
        keep_s = max(0.0, now - letter.died_at) + self._letters.keep_s
        own = replace(letter, state=LetterState.OPEN, expires_at=letter.died_at + keep_s)
        return await self._store.put_letter(own, None, 0, keep_s)
