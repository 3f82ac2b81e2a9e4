"""What a check concludes: held, broken, or could not tell, and which calls say so."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from chaos.history import CallRecord
from chaos.model import Interval

OFFENDERS_SHOWN_MAX = 20


class Verdict(Enum):
    """The three ends of a check; the value is the exit code of a run that ends so."""

    HELD = 0
    BROKEN = 1
    COULD_NOT_TELL = 2
    """Too little happened to say, which must never pass for held."""

    @property
    def words(self) -> str:
        """For people."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Offender:
    """A call (or a ledger entry) that breaks a promise."""

    call_id: int | None
    operation: str
    trace_id: str
    what: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise, judged."""

    promise: str
    """Its id: ``I1`` to ``I7``, or ``C01`` and the like for a feature's measured claim."""
    statement: str
    """What was promised, in words."""
    verdict: Verdict
    detail: str
    """What was seen."""
    offenders: tuple[Offender, ...] = ()
    """The first `OFFENDERS_SHOWN_MAX`."""
    offender_count: int = 0
    measured: float | None = None
    expected: float | None = None
    interval: Interval | None = None
    unit: str = ""
    """Of ``measured`` and ``expected``: ``%`` for shares, ``x`` for factors, ``s``, ``ms``."""


def offender(call: CallRecord, what: str) -> Offender:
    """The call as an offender."""
    return Offender(call.id, call.operation, call.trace_id, what)


def judge(
    promise: str, statement: str, checked: int, offenders: Iterable[Offender], minimum: int = 1
) -> Finding:
    """Held when nothing of at least ``minimum`` checked things offends; too few are no proof either way."""
    iterator: Iterator[Offender] = iter(offenders)
    shown = tuple(islice(iterator, OFFENDERS_SHOWN_MAX))
    count = len(shown) + sum(1 for _ in iterator)
    if shown:
        return Finding(
            promise, statement, Verdict.BROKEN, f"{count} of {checked:,}: {shown[0].what}", shown, count
        )
    if checked < minimum:
        seen = f"only {checked:,} to judge by, {minimum:,} are needed"
        return Finding(promise, statement, Verdict.COULD_NOT_TELL, seen)
    return Finding(promise, statement, Verdict.HELD, f"all {checked:,}")


def worst(findings: Iterable[Finding]) -> Verdict:
    """Broken beats could not tell, which beats held. Nothing judged means could not tell."""
    verdicts = {finding.verdict for finding in findings}
    for verdict in (Verdict.BROKEN, Verdict.COULD_NOT_TELL, Verdict.HELD):
        if verdict in verdicts:
            return verdict
    return Verdict.COULD_NOT_TELL
