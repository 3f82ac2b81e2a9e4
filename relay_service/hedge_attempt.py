"""A hedge: an attempt of a unary call beside its main one, with its own answer, timer and worker."""

from typing import Protocol

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.message import HeldResponse
from relay_service.ports import Attempt, AttemptEnd, Headers, TimerHandle


class HedgedCall(Protocol):
    """What a hedge tells its call."""

    def hedge_over(self, hedge: "HedgeAttempt", end: AttemptEnd) -> None:
        """It ended, by itself or because it was given up."""

    def response_too_large(self) -> None:
        """The answer exceeds what the policy allows."""


class HedgeAttempt:
    """Implements `relay_service.ports.AttemptSink`.

    State: the attempt (None when it could not even be started), its response so far, its timer.
    """

    __slots__ = ("_call", "_response_bytes_max", "attempt", "number", "response", "timer", "worker_since")

    def __init__(self, call: HedgedCall, number: int, response_bytes_max: int, worker_since: float) -> None:
        self._call = call
        self._response_bytes_max = response_bytes_max
        self.number = number
        self.response = HeldResponse()
        self.attempt: Attempt | None = None
        self.timer: TimerHandle | None = None
        self.worker_since = worker_since
        """Monotonic seconds."""

    @property
    def peer(self) -> str:
        """``host:port`` it went to; empty while it waits for a connection."""
        return self.attempt.peer if self.attempt is not None else ""

    def give_up(self, code: Code, message: str) -> None:
        """Cancel it; the call hears of its end at once."""
        delivery = Delivery.NOT_SENT if self.attempt is None else self.attempt.cancel()
        self._call.hedge_over(self, AttemptEnd(delivery, code, message, given_up=True))

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:  # noqa: ARG002 (its own)
        """Keep them until the verdict."""
        self.response.headers = headers

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        """Keep it until the verdict, up to the policy's limit."""
        self.response.add(data)
        attempt.consumed(len(data))
        if self.response.size_bytes > self._response_bytes_max:
            self._call.response_too_large()

    def on_attempt_drained(self, attempt: Attempt) -> None:
        """The request was queued in one piece: there is nothing to go on with."""

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:  # noqa: ARG002 (its own)
        """It ended by itself."""
        self._call.hedge_over(self, end)
