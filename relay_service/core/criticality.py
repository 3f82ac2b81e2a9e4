"""How much a call matters when not all of them can be served.

The four classes are those of Google's SRE book, chapter 21 ("Handling Overload"). A call names its own
in metadata; what it does not say, or says in words this relay does not know, is `CRITICAL`: an
unmarked call must not be the first to go.
"""

from enum import IntEnum


class Criticality(IntEnum):
    """A higher class leaves the queue first and is refused last."""

    SHEDDABLE = 0
    """May be refused for minutes: batch work that will come again."""
    SHEDDABLE_PLUS = 1
    """May be refused now and then: batch work that someone waits for today."""
    CRITICAL = 2
    """Refusing it is seen by users; the class of every call that does not name one."""
    CRITICAL_PLUS = 3
    """Refusing it is an incident."""


DEFAULT_CRITICALITY = Criticality.CRITICAL
