"""What a replay of a dead letter would do, said before it is done and compared with what it did."""

from dataclasses import dataclass
from enum import Enum

from relay_service.core.evidence import Ending, Evidence, Safety, judge
from relay_service.core.idempotency import Record, RecordState
from relay_service.core.job import DeadLetter, JobState, LetterState, Try
from relay_service.core.status import Code


class Protection(Enum):
    """Why a replay has at most one effect; the last two say that it may have a second one."""

    NOT_EXECUTED = "not_executed"
    """No attempt can have been executed: none was sent, or each was answered with an error that is as good
    as a refusal."""
    HARMLESS = "harmless"
    """The method may be executed again."""
    KEYED = "keyed"
    """The upstream honours the derived key, and it is the same as before."""
    KEY_EXPIRED = "key_expired"
    """The key's record is gone here, so the upstream may have forgotten it too."""
    UNPROTECTED = "unprotected"
    """An attempt may have been executed and nothing tells the upstream that this is the same work."""


class Happened(Enum):
    """How a replay ended."""

    EXECUTED = "executed"
    ALREADY_EXECUTED = "already_executed"
    """The upstream answered from its memory: the effect was there before."""
    FAILED = "failed"
    NOT_STARTED = "not_started"
    """The letter was not open, its key was in use, or the replay had stopped before its turn."""
    UNFINISHED = "unfinished"
    """It had not ended when the waiting did."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of one letter's replay."""

    letter_id: str
    protection: Protection
    breaks_order: bool
    """A later job of its order key is done already."""
    is_open: bool
    """Only an open letter can be replayed."""

    def is_contradicted(self, happened: Happened) -> bool:
        """Whether what happened shows that this was wrong."""
        match happened:
            case Happened.ALREADY_EXECUTED:
                return self.protection is Protection.NOT_EXECUTED
            case Happened.NOT_STARTED:
                return self.is_open
            case _:
                return False


def protection_of(
    letter: DeadLetter, record: Record | None, safety: Safety, retryable: frozenset[Code]
) -> Protection:
    """Why replaying the letter would not do its work twice.

    ``retryable`` are the codes that its method's upstream gives without having executed anything.
    """
    if not may_have_been_executed(letter, retryable):
        return Protection.NOT_EXECUTED
    if safety in (Safety.NO_SIDE_EFFECTS, Safety.IDEMPOTENT):
        return Protection.HARMLESS
    if safety is not Safety.KEYED:
        return Protection.UNPROTECTED
    own_key = letter.work.key == letter.job_id.encode()
    if not own_key and (record is None or record.state is RecordState.EXPIRED):
        return Protection.KEY_EXPIRED
    return Protection.KEYED


def may_have_been_executed(letter: DeadLetter, retryable: frozenset[Code]) -> bool:
    """Whether some run's outcome is unknown, by the rules of calls (`core.evidence`): an error may follow
    an effect. A history that was cut, or has gaps, leaves it open."""
    is_whole = len(letter.tries) >= letter.attempts
    return not is_whole or any(_leaves_open(one, retryable) for one in letter.tries)


def _leaves_open(one: Try, retryable: frozenset[Code]) -> bool:
    return judge(Ending(one.delivery, one.code), retryable).evidence is Evidence.AMBIGUOUS


def what_happened(state: JobState, last_message: str) -> Happened:
    """A replay's end, from its job."""
    match state:
        case JobState.COMPLETED:
            return Happened.ALREADY_EXECUTED if last_message == "replayed" else Happened.EXECUTED
        case JobState.DEAD | JobState.CANCELLED:
            return Happened.FAILED
        case _:
            return Happened.UNFINISHED


def is_replayable(letter: DeadLetter) -> bool:
    """Whether a replay could begin."""
    return letter.state is LetterState.OPEN
