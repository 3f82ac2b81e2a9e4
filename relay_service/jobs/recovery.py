"""Dead letters that the policy recovers by itself: by cause, after a delay, so many times."""

import logging

from relay_service.core.job import Cause, DeadLetter, LetterState
from relay_service.core.letter_policy import LetterPolicy, Recovery, RecoveryRule
from relay_service.jobs.counters import JobCounters
from relay_service.jobs.letters import REPLAY_ALONE, REPLAY_AS_IT_WAS, LetterNotOpenError, Letters
from relay_service.stores.interface import DeadLetterStore, LetterFilter, Store

LETTERS_PER_ROUND = 100
"""Of each cause: a store full of letters is recovered in steps, not as a stampede."""
BY = "policy"

log = logging.getLogger(__name__)


class AutomaticRecovery:
    """Goes through the open letters of each cause that has a rule, a page per round.

    State: how far it has got with each cause, so that letters beyond help are not looked at every time.
    """

    def __init__(self, store: Store, letters: Letters, policy: LetterPolicy, counters: JobCounters) -> None:
        self._store: DeadLetterStore = store
        self._now = store.now
        self._letters = letters
        self._rules = policy.recovery
        self._counters = counters
        self._after: dict[Cause, str] = dict.fromkeys(policy.recovery, "")

    async def round(self) -> int:
        """Do what is due; returns how many letters were touched."""
        return sum([await self._round_of(cause, rule) for cause, rule in self._rules.items()])

    async def _round_of(self, cause: Cause, rule: RecoveryRule) -> int:
        which = LetterFilter(
            causes=frozenset({cause}),
            states=frozenset({LetterState.OPEN}),
            died_before=self._now() - rule.delay_s,
        )
        page, self._after[cause] = await self._store.letters(
            which, after=self._after[cause], limit=LETTERS_PER_ROUND
        )
        due = [letter for letter in page if self._is_due(letter, rule)]
        for letter in due:
            await self._recover(letter, rule)
        return len(due)

    def _is_due(self, letter: DeadLetter, rule: RecoveryRule) -> bool:
        replays = letter.replays
        return len(replays) < rule.limit and (not replays or replays[-1].at <= self._now() - rule.delay_s)

    async def _recover(self, letter: DeadLetter, rule: RecoveryRule) -> None:
        try:
            match rule.action:
                case Recovery.DISCARD:
                    note = f"discarded by policy: {letter.cause.value}"
                    await self._letters.set_state(letter.id, LetterState.DISCARDED, note)
                case Recovery.RETRY:
                    await self._letters.replay(letter, BY, REPLAY_ALONE)
                case Recovery.REQUEUE:
                    await self._letters.replay(letter, BY, REPLAY_AS_IT_WAS)
        except LetterNotOpenError:
            return  # another relay or somebody by hand was first
        self._counters.recovered[rule.action] += 1
        log.info("dead letter %s (%s): %s by policy", letter.id, letter.cause.name, rule.action.value)
