"""How a flight ends, for everybody on it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from relay_service import contract
from relay_service.core.evidence import Evidence
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, KeyStatus, Origin, Verdict
from relay_service.idempotency.answer import Answer
from relay_service.ports import Headers

_OF_SHARED_EFFECT = frozenset(
    {
        Reason.IDEMPOTENCY_IN_PROGRESS,
        Reason.IDEMPOTENCY_KEY_EXPIRED,
        Reason.IDEMPOTENCY_KEY_DEAD_LETTERED,
        Reason.OUTCOME_UNKNOWN,
    }
)
"""Refusals of calls whose effect may exist all the same: an earlier call's."""

_STATUS = {
    Reason.IDEMPOTENCY_IN_PROGRESS: KeyStatus.IN_PROGRESS,
    Reason.OUTCOME_UNKNOWN: KeyStatus.UNKNOWN,
}


_KEPT = frozenset({KeyStatus.EXECUTED, KeyStatus.REPLAYED, KeyStatus.COALESCED})


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer and what it means: the verdict of whoever had it executed, and that of all the others."""

    answer: Answer
    first: Verdict
    others: Verdict
    first_seen: float | None = None
    """Unix seconds: when the key was first claimed, told to those who get somebody else's answer."""
    letter_id: str = ""
    durability: str = ""
    """What it means that the answer is kept: the store's word for it."""

    def trailers(self, verdict: Verdict) -> Headers:
        """What the answer of a caller with this verdict says besides the answer itself."""
        more = []
        if verdict.key_status is not None:
            more.append((contract.KEY_STATUS, verdict.key_status.value.encode()))
            if self.durability and verdict.key_status in _KEPT:
                more.append((contract.DURABILITY, self.durability.encode()))
            shared = verdict.key_status in (KeyStatus.REPLAYED, KeyStatus.COALESCED)
            if shared and self.first_seen is not None:
                more.append((contract.FIRST_SEEN, _timestamp(self.first_seen)))
        if self.letter_id:
            more.append((contract.DEAD_LETTER_ID, self.letter_id.encode()))
        return tuple(more)


def executed(
    answer: Answer,
    verdict: Verdict,
    status: KeyStatus | None,
    *,
    first_seen: float | None = None,
    letter_id: str = "",
    durability: str = "",
) -> Outcome:
    """The call was carried to its end here; ``status`` is that of its key afterwards."""
    shared = KeyStatus.COALESCED if status is KeyStatus.EXECUTED else status
    return Outcome(
        answer,
        replace(verdict, key_status=status),
        # The attempts were made once, whoever waits for their answer.
        replace(verdict, key_status=shared, attempts=0),
        first_seen,
        letter_id,
        durability,
    )


def replayed(answer: Answer, first_seen: float, durability: str) -> Outcome:
    """The store had the answer."""
    fate = Fate.OK if answer.code is Code.OK else Fate.ERROR
    verdict = Verdict(
        answer.code,
        answer.message,
        Origin.UPSTREAM,
        fate,
        evidence=Evidence.DEFINITE,
        key_status=KeyStatus.REPLAYED,
    )
    return Outcome(answer, verdict, verdict, first_seen, durability=durability)


def refused(
    reason: Reason,
    method: str,
    *,
    pushback_s: float | None = None,
    subject: str = "relay",
    letter_id: str = "",
    effect_possible: bool = False,
) -> Outcome:
    """Nothing was sent to the upstream for these callers."""
    verdict = Verdict(
        reason.code or Code.UNKNOWN,
        reason.meaning,
        Origin.RELAY,
        Fate.REFUSED,
        reason,
        Evidence.AMBIGUOUS if effect_possible or reason in _OF_SHARED_EFFECT else None,
        pushback_s=pushback_s,
        subject=subject,
        key_status=_STATUS.get(reason),
    )
    trailers = contract.trailers_of(verdict, method, ())
    return Outcome(
        Answer(verdict.code, verdict.message, None, b"", trailers), verdict, verdict, letter_id=letter_id
    )


def _timestamp(unix_s: float) -> bytes:
    """RFC 3339, UTC, to the millisecond."""
    text = datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z").encode()
