"""A call that is refused at its headers, before anything was executed for it."""

from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict


class Refusal(Exception):  # noqa: N818 (a refusal is an answer, not a fault)
    """A call that ends at its headers."""

    def __init__(self, reason: Reason, pushback_s: float | None = None, subject: str = "relay") -> None:
        """``subject`` is whose limit it was; ``pushback_s`` when to return, None where nobody can say."""
        self.reason = reason
        self.pushback_s = pushback_s
        self.subject = subject


def refused(reason: Reason, message: str, pushback_s: float | None = None, subject: str = "relay") -> Verdict:
    """The verdict on a refused call."""
    code = reason.code or Code.UNKNOWN
    return Verdict(code, message, Origin.RELAY, Fate.REFUSED, reason, pushback_s=pushback_s, subject=subject)
