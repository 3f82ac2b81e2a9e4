"""One attempt on the wire: what was asked, what came back, and what is therefore known.

Each attempt's end states its evidence exactly: NOT_SENT while its HEADERS never reached the transport,
were refused (REFUSED_STREAM) or lie above the last stream of a GOAWAY; ANSWERED when a ``grpc-status``
came; UNANSWERED for all else. The table is `relay_service.wire.phases.ATTEMPTS`.
"""

from typing import TYPE_CHECKING, Protocol

from relay_service.core.evidence import Delivery
from relay_service.core.status import Code
from relay_service.ports import Attempt, AttemptEnd, AttemptSink, Headers
from relay_service.wire import h2, heads
from relay_service.wire.connection import CREDIT_BATCH_BYTES
from relay_service.wire.phases import ATTEMPTS, AttemptPhase, AttemptStep
from relay_service.wire.status import code_of_reset

if TYPE_CHECKING:
    from relay_service.wire.client import ClientConnection


# Reading an enumeration's member off its class costs as much as five method calls (Python 3.11).
_WAITING, _OVER = AttemptPhase.WAITING, AttemptPhase.OVER
_BIND, _RESPOND, _ANSWER = AttemptStep.BIND, AttemptStep.RESPOND, AttemptStep.ANSWER
_NOT_SENT, _UNANSWERED = Delivery.NOT_SENT, Delivery.UNANSWERED


class WaitingRoom(Protocol):
    """Who keeps attempts that have no connection yet (`relay_service.upstream.Upstream`)."""

    def leave(self, stream: "ClientStream") -> None:
        """The attempt was cancelled while it waited."""


class _Nobody:
    """The sink of an attempt that is over."""

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        """Never called."""

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        """Never called."""

    def on_attempt_drained(self, attempt: Attempt) -> None:
        """Never called."""

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        """Never called."""


_NOBODY = _Nobody()


class ClientStream:
    """One attempt: implements `relay_service.ports.Attempt`. Without a connection while it waits for one."""

    __slots__ = (
        "_credit_bytes",
        "_delivery",
        "_queued",
        "_queued_bytes",
        "_request_ended",
        "_room",
        "connection",
        "deadline",
        "id",
        "marked_at",
        "metadata",
        "method",
        "outstanding_bytes",
        "phase",
        "sent_bytes",
        "sink",
    )

    def __init__(
        self, room: WaitingRoom, method: str, metadata: Headers, deadline: float | None, sink: AttemptSink
    ) -> None:
        self._room = room
        self.method = method
        self.metadata = metadata
        self.deadline = deadline
        """Monotonic seconds; what is left of it when the headers leave becomes ``grpc-timeout``."""
        self.sink = sink
        self.connection: ClientConnection | None = None
        self.id = 0
        self.phase = _WAITING
        self.outstanding_bytes = 0
        self._credit_bytes = 0
        self._delivery = _NOT_SENT
        """What is known once it is over."""
        self.sent_bytes = 0
        """Request bytes given to `send_data` since ``marked_at``: both tell an upload from a trickle."""
        self.marked_at = 0.0
        self._queued: list[bytes] = []
        self._queued_bytes = 0
        self._request_ended = False

    # -- Attempt -----------------------------------------------------------------------------------------

    def send_data(self, data: bytes, *, end: bool) -> None:
        """Queue framed request bytes; ``end`` half-closes."""
        if self.phase is _OVER or self._request_ended:
            return
        self._request_ended = end
        size = len(data)
        # What is sent in one piece cannot be above the high-water mark, unless the piece is.
        whole = end and not self.sent_bytes
        self.sent_bytes += size
        connection = self.connection
        if connection is None:
            if data:
                self._queued.append(data)
                self._queued_bytes += len(data)
            return
        if self.sent_bytes > connection.upload_bytes:
            connection.note_upload(self)
        try:
            connection.engine.send_data(self.id, data, end_stream=end)
        except h2.EngineError:  # reset or lost; the event that says so is on its way
            return
        if not whole or size > connection.settings.stream_high_water_bytes:
            connection.note_queued(self)
        if not connection.flush_due:
            connection.schedule_flush()

    def cancel(self) -> Delivery:
        """Give the attempt up (RST_STREAM CANCEL if it was sent), say what is known; no `on_end` follows."""
        if self.over:
            return self._delivery
        self._take(self._loss())
        self.sink = _NOBODY
        connection = self.connection
        if connection is None:
            self._room.leave(self)
        else:
            connection.reset_stream(self, h2.ErrorCode.CANCEL)
            connection.release(self)
        return self._delivery

    def consumed(self, size_bytes: int) -> None:
        """Say that so many response bytes left the relay, so that the upstream may send as many more."""
        self._credit_bytes += size_bytes
        if self._credit_bytes >= CREDIT_BATCH_BYTES and self.connection is not None:
            credit = min(self._credit_bytes, self.outstanding_bytes)
            self.outstanding_bytes -= credit
            self._credit_bytes = 0
            if credit:
                self.connection.acknowledge(self.id, credit)

    @property
    def buffered_bytes(self) -> int:
        """Request bytes queued and not yet written to the upstream's connection."""
        if self.connection is None:
            return self._queued_bytes
        return self.connection.engine.queued_body_size(self.id)

    @property
    def peer(self) -> str:
        """``host:port`` the attempt went to; empty while it waits for a connection."""
        return self.connection.peer if self.connection is not None else ""

    @property
    def over(self) -> bool:
        """Ended or cancelled; nothing more is said to the sink."""
        return self.phase is _OVER

    # -- driven by the connection ------------------------------------------------------------------------

    def bind(self, connection: "ClientConnection", stream_id: int, now: float) -> None:
        """The headers are with the engine; what was sent meanwhile follows them."""
        self._take(_BIND)
        self.connection = connection
        self.id = stream_id
        self.marked_at = now
        engine = connection.engine
        if self._queued:
            for data in self._queued:
                engine.send_data(stream_id, data)
            self._queued.clear()
            self._queued_bytes = 0
            connection.note_queued(self)
            if self.sent_bytes > connection.upload_bytes:
                connection.note_upload(self)
        if self._request_ended:
            engine.end_stream(stream_id)

    def on_response(self, headers: Headers, end: bool) -> None:
        """The response's (first) header block; ``end`` makes it Trailers-Only."""
        if self.phase is _OVER:
            return
        if end:
            self._finish(heads.parse_end(headers))
            return
        parsed = heads.parse_response(headers)
        if isinstance(parsed, AttemptEnd):
            connection = self.connection
            if connection is not None:
                connection.reset_stream(self, h2.ErrorCode.CANCEL)
            self._end(AttemptStep.MALFORM, parsed.code, parsed.message)
            return
        self._take(_RESPOND)
        self.sink.on_response_headers(self, parsed)

    def on_data(self, data: bytes, end: bool) -> None:
        """Response bytes; ``end`` means that no trailers will follow."""
        size = len(data)
        self.outstanding_bytes += size
        if self.phase is _OVER:
            self._drop_outstanding()
            return
        if size:
            self.sink.on_response_data(self, data)
        if end and not self.over:
            self._finish(heads.missing_status())

    def on_trailers(self, headers: Headers) -> None:
        """The end."""
        if self.phase is not _OVER:
            self._finish(heads.parse_end(headers))

    def on_reset(self, error_code: int) -> None:
        """RST_STREAM from the upstream."""
        if self.over:
            return
        step = AttemptStep.REFUSE if error_code == h2.ErrorCode.REFUSED_STREAM else AttemptStep.RESET
        text = f"the upstream reset the stream: {h2.error_name(error_code)}"
        self._end(step, code_of_reset(error_code), text)

    def on_closed(self, error_code: int, local_error: Exception | None) -> None:
        """The engine closed the stream, and the upstream had not ended it."""
        if isinstance(local_error, h2.USED_UP):
            self._end(AttemptStep.REJECT, Code.UNAVAILABLE, f"the connection takes none: {local_error}")
        elif local_error is not None:
            self.on_unsendable(local_error)
        elif error_code == h2.ErrorCode.REFUSED_STREAM:
            self._end(
                AttemptStep.REFUSE, Code.UNAVAILABLE, "the upstream went away before this stream (GOAWAY)"
            )
        else:
            text = f"malformed response from the upstream: {h2.error_name(error_code)}"
            self._end(AttemptStep.MALFORM, code_of_reset(error_code), text)

    def on_lost(self, message: str) -> None:
        """There is no connection, or no more."""
        if not self.over:
            self._end(self._loss(), Code.UNAVAILABLE, message)

    def on_unsendable(self, error: Exception) -> None:
        """No connection can carry this request; another try would end the same."""
        if not self.over:
            self._end(AttemptStep.REJECT, Code.RESOURCE_EXHAUSTED, f"the request cannot be sent: {error}")

    def fail(self) -> None:
        """The relay's own code failed amid the answer: give the stream up and end the attempt."""
        connection = self.connection
        if self.over or connection is None:
            return
        connection.reset_stream(self, h2.ErrorCode.CANCEL)
        self._end(AttemptStep.LOSE, Code.INTERNAL, "the relay failed to handle the upstream's answer")

    def on_drained(self) -> None:
        """The queue fell below the low-water mark."""
        if not self.over:
            self.sink.on_attempt_drained(self)

    def _finish(self, end: AttemptEnd) -> None:
        """End, the upstream having said its last word; a request still going on is of no use any more."""
        connection = self.connection
        if connection is not None and (not self._request_ended or self.buffered_bytes):
            connection.reset_stream(self, h2.ErrorCode.NO_ERROR)
        if end.delivery is _UNANSWERED:
            self._end(AttemptStep.MALFORM, end.code, end.message, end.trailers)
        else:
            self._take(_ANSWER)
            self._tell(end)

    def _loss(self) -> AttemptStep:
        """What it means for the request that no answer will be waited for."""
        connection = self.connection
        return (
            AttemptStep.LOSE if connection is None or connection.wrote(self) else AttemptStep.LOSE_UNWRITTEN
        )

    def _take(self, step: AttemptStep) -> None:
        self.phase, delivery = ATTEMPTS[self.phase, step]
        if delivery is not None:
            self._delivery = delivery

    def _end(self, step: AttemptStep, code: Code, message: str, trailers: Headers = ()) -> None:
        self._take(step)
        self._tell(AttemptEnd(self._delivery, code, message, trailers))

    def _tell(self, end: AttemptEnd) -> None:
        # The sink holds this attempt: without this every call would be a cycle for the collector to find.
        sink, self.sink = self.sink, _NOBODY
        if self.outstanding_bytes and self.connection is not None:
            self.connection.release(self)
        sink.on_end(self, end)

    def _drop_outstanding(self) -> None:
        if self.connection is not None:
            self.connection.release(self)
