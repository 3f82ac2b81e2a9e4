"""What tracing is told of jobs that are sent on their way; who records it is no matter here."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """A job about to be committed."""

    method: str
    request_bytes: int
    within: str = ""
    """The ``traceparent`` of the call that brought it; empty when none did."""
    origin: str = ""
    """Of a replay: the ``traceparent`` of the work's first submission."""
    dead_letter_id: str = ""
    """Of a replay: the letter."""


class Sending(Protocol):
    """One job on its way to its commit."""

    traceparent: str
    """What the job is kept with, so that its runs can name what they were sent in."""

    def sent(self, job_id: str, *, existed: bool) -> None:
        """It is committed, or ``existed`` already under its key."""

    def refused(self, why: str) -> None:
        """It was not accepted; ``why`` is a reason's name."""


class Sender(Protocol):
    """Follows jobs into the store."""

    def begin(self, message: Message) -> Sending:
        """A job is about to be committed."""


class Untraced:
    """A `Sender` that records nothing: a job is kept with the trace it came in."""

    def begin(self, message: Message) -> Sending:
        """See `Sender.begin`."""
        return UntracedSending(message.within or message.origin)


class UntracedSending:
    """A `Sending` of which nothing is recorded."""

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def sent(self, job_id: str, *, existed: bool) -> None:
        """See `Sending.sent`."""

    def refused(self, why: str) -> None:
        """See `Sending.refused`."""
