"""What a `relay_service.core.call.Call` hears (events) and what it asks for (actions)."""

from relay_service.core.evidence import Delivery
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.value import value
from relay_service.core.verdict import Verdict


@value
class Begin:
    """The call was admitted; a worker is there for its first attempt."""


@value
class AnswerBegan:
    """The upstream began to answer a stream's attempt; its end is still to come."""


@value
class AttemptDone:
    """An attempt under way ended."""

    delivery: Delivery
    code: Code
    message: str
    pushback_s: float | None = None
    """When the upstream said to come back; negative means not at all."""
    responded: bool = False
    """Whether response messages came before the end."""
    replayable: bool = True
    """Whether another attempt could be made: the request is still whole and nothing was delivered."""
    number: int = 1
    """Which attempt; most calls make only the first."""
    given_up: bool = False
    """The relay ended it, as its time was over or nobody wanted it any more."""


@value
class BackoffElapsed:
    """The wait before the next attempt is over and a worker is there for it."""


@value
class RetryRefused:
    """The wait is over but no worker is to be had: the queue is full."""


@value
class HedgeDue:
    """The wait before a hedge is over, and a worker that nobody else wants is there for it."""


@value
class HedgeUnserved:
    """The wait before a hedge is over, and every worker is busy or wanted."""


@value
class DeadlinePassed:
    """The call's deadline is here."""


@value
class Cancelled:
    """The caller went away."""


@value
class Aborted:
    """The shell cannot go on (no worker to be had, a message too large); ``reason`` says why."""

    reason: Reason
    pushback_s: float | None = None
    """When the caller should return; None says nothing about it."""
    subject: str = "relay"
    """Whose limit was reached, when one was."""


Event = (
    Begin
    | AnswerBegan
    | AttemptDone
    | BackoffElapsed
    | RetryRefused
    | HedgeDue
    | HedgeUnserved
    | DeadlinePassed
    | Cancelled
    | Aborted
)


@value
class StartAttempt:
    """Make attempt ``number`` (from 1) and give it up after ``timeout_s``; None leaves it without a limit."""

    number: int
    timeout_s: float | None


@value
class StartHedge:
    """Make attempt ``number`` beside what is under way, on a connection of its own."""

    number: int
    timeout_s: float | None


@value
class CancelAttempt:
    """Give attempt ``number`` up and report `AttemptDone` with ``code`` and what the transport knows."""

    number: int
    code: Code


@value
class WaitBackoff:
    """Report `BackoffElapsed` at the monotonic time ``until``; hold no worker, await no hedge meanwhile."""

    until: float


@value
class WaitHedge:
    """Report `HedgeDue` or `HedgeUnserved` at the monotonic time ``until``, which replaces any before."""

    until: float


@value
class FallBack:
    """Make the attempts that follow at the fallback with this index."""

    index: int


@value
class Finish:
    """Answer the caller. Nothing follows."""

    verdict: Verdict


Action = StartAttempt | StartHedge | CancelAttempt | WaitBackoff | WaitHedge | FallBack | Finish
Actions = tuple[Action, ...]
