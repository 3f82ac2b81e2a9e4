"""What the caller is told at the end of a call that did not simply succeed.

``unknown`` says that an effect may exist and that this matters: that goes before everything else.
"""

from relay_service.core.events import Aborted, AttemptDone, Cancelled, Event
from relay_service.core.evidence import Delivery
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.value import value
from relay_service.core.verdict import Fate, Origin


@value
class Told:
    """The part of a `relay_service.core.verdict.Verdict` that is words to the caller."""

    code: Code
    message: str
    origin: Origin
    fate: Fate
    reason: Reason | None = None
    pushback_s: float | None = None
    subject: str = "relay"


def of_failure(last: AttemptDone, reason: Reason | None, *, says_worst: bool, unknown: bool) -> Told:
    """The last attempt's status; ``says_worst`` when that attempt proves the worst of all."""
    answered = last.delivery is Delivery.ANSWERED
    if unknown and not (answered and says_worst):
        return _unknown(Code.UNKNOWN, last.message)
    return Told(last.code, last.message, Origin.UPSTREAM if answered else Origin.RELAY, Fate.ERROR, reason)


def of_refusal(reason: Reason, last: AttemptDone | None, pushback_s: float, *, unknown: bool) -> Told:
    """No attempt may be made now; ``last`` is the one made before, if any."""
    if last is not None and unknown:
        return _unknown(Code.UNKNOWN, last.message)
    code = reason.code or Code.UNKNOWN
    return Told(code, reason.meaning, Origin.RELAY, _fate(last is not None), reason, pushback_s)


def of_stop(why: Event, *, tried: bool, unknown: bool) -> Told:
    """The call stops for a reason that is not an attempt's answer; ``tried`` when an attempt was made."""
    match why:
        case Cancelled():
            return Told(Code.CANCELLED, "the caller went away", Origin.RELAY, Fate.CANCELLED)
        case Aborted(reason, pushback_s, subject):
            code = reason.code or Code.UNKNOWN
            return Told(code, reason.meaning, Origin.RELAY, _fate(tried), reason, pushback_s, subject)
    if unknown:
        return _unknown(Code.DEADLINE_EXCEEDED, "the deadline passed first")
    reason = Reason.DEADLINE_PASSED
    return Told(Code.DEADLINE_EXCEEDED, reason.meaning, Origin.RELAY, _fate(tried), reason)


def _fate(tried: bool) -> Fate:
    return Fate.ERROR if tried else Fate.REFUSED


def _unknown(code: Code, message: str) -> Told:
    text = f"the call may have been executed, its answer did not arrive: {message}"
    return Told(code, text, Origin.RELAY, Fate.ERROR, Reason.OUTCOME_UNKNOWN)
