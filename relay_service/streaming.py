"""A streaming call: messages flow both ways as they come, and backpressure with them."""

from collections.abc import Sequence

from relay_service.core.call import Call, State
from relay_service.core.events import AnswerBegan, Begin
from relay_service.core.verdict import Verdict
from relay_service.forwarding import ForwardedCall, Host, Plan
from relay_service.ports import Attempt, CallObserver, Headers, Reply

FLOW_HIGH_WATER_BYTES = 256 * 1024
"""With more than this queued towards one side, the other side gets no further window."""


class StreamCall(ForwardedCall):
    """Messages flow both ways as they come.

    Backpressure crosses the relay: bytes that one side may not take yet give no window to the other, so
    memory stays within the windows whoever is slow. State beyond the shared: what is kept of the request
    for another attempt (None once too much was sent or anything was delivered), whether the caller
    half-closed, whether messages came back, and the window credit that each side is owed.
    """

    __slots__ = (
        "_has_responded",
        "_owed_to_attempt",
        "_owed_to_caller",
        "_replay",
        "_replay_bytes",
        "_request_done",
    )

    def __init__(self, host: Host, plan: Plan, machine: Call, reply: Reply, observer: CallObserver) -> None:
        super().__init__(host, plan, machine, reply, observer)
        self._replay: list[bytes] | None = [] if plan.policy.replay_buffer_bytes else None
        self._replay_bytes = 0
        self._request_done = False
        self._owed_to_caller = 0
        self._owed_to_attempt = 0
        self._has_responded = False

    def begin(self, now: float) -> None:
        """Start the first attempt, before any request message is there."""
        self._handle(Begin(), now)

    # Caller to upstream -------------------------------------------------------------------------

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        """Send it on, and keep it for another attempt while that is possible."""
        if self._machine.state is State.DONE:
            self._reply.consumed(len(data))
            return
        self._request_done = self._request_done or end
        self._owed_to_caller += len(data)
        if self._replay is not None:
            self._replay.append(data)
            self._replay_bytes += len(data)
        attempt = self._attempt
        if attempt is None:
            # Between two attempts: what came is in the replay buffer, and the caller gets no window.
            return
        attempt.send_data(data, end=end)
        if self._replay_bytes > self._plan.policy.replay_buffer_bytes:
            self._replay = None
        self._credit_caller(attempt)

    def on_attempt_drained(self, attempt: Attempt) -> None:
        """The upstream has room again."""
        if attempt is self._attempt:
            self._credit_caller(attempt)

    def _credit_caller(self, attempt: Attempt) -> None:
        if self._owed_to_caller and attempt.buffered_bytes < FLOW_HIGH_WATER_BYTES:
            owed, self._owed_to_caller = self._owed_to_caller, 0
            self._reply.consumed(owed)

    @property
    def _replayable(self) -> bool:
        return self._replay is not None

    @property
    def _responded(self) -> bool:
        return self._has_responded

    def _send_request(self, attempt: Attempt) -> None:
        request: Sequence[bytes] = self._replay or ()
        self._owed_to_attempt = 0
        for data in request:
            attempt.send_data(data, end=False)
        if self._request_done:
            attempt.send_data(b"", end=True)
        self._credit_caller(attempt)

    # Upstream to caller -------------------------------------------------------------------------

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        """Send them on at once: a conversation may wait for them. This commits the call."""
        if attempt is self._attempt:
            self._replay = None
            self._handle(AnswerBegan(), self._host.now())
            self._reply.send_headers(headers)

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        """Send it on; the upstream gets its window back when the caller has room."""
        if attempt is not self._attempt:
            return
        self._has_responded = True
        self._reply.send_data(data)
        self._owed_to_attempt += len(data)
        self._credit_attempt(attempt)

    def on_reply_drained(self) -> None:
        """The caller has room again."""
        if self._attempt is not None:
            self._credit_attempt(self._attempt)

    def _credit_attempt(self, attempt: Attempt) -> None:
        if self._owed_to_attempt and self._reply.buffered_bytes < FLOW_HIGH_WATER_BYTES:
            owed, self._owed_to_attempt = self._owed_to_attempt, 0
            attempt.consumed(owed)

    def _answer(self, verdict: Verdict) -> None:
        self._send_trailers(verdict)
