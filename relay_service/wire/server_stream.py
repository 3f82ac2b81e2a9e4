"""One call on the wire: the caller's end of it, as the use case sees it."""

from typing import TYPE_CHECKING

from relay_service.core.status import Code
from relay_service.ports import CallHandler, CallHead, Headers, IncomingCall, RepeatedHeaders
from relay_service.wire import h2, heads
from relay_service.wire.connection import CREDIT_BATCH_BYTES
from relay_service.wire.phases import REPLIES, ReplyPhase, ReplyStep

if TYPE_CHECKING:
    from relay_service.wire.server import ServerConnection


# Reading an enumeration's member off its class costs as much as five method calls (Python 3.11).
_OK = Code.OK
_SILENT, _COMMITTED = ReplyPhase.SILENT, ReplyPhase.COMMITTED
_HEADERS, _END, _CLOSED = ReplyStep.HEADERS, ReplyStep.END, ReplyStep.CLOSED

SHORT_MESSAGE_CHARS = 256
"""Of the message of an end whose details are too large to send."""


class ServerStream:
    """One call, and our end of it: implements `relay_service.ports.Reply`."""

    __slots__ = (
        "_call",
        "_connection",
        "_credit_bytes",
        "_phase",
        "_sent_data",
        "id",
        "outstanding_bytes",
        "request_open",
    )

    def __init__(self, connection: "ServerConnection", stream_id: int, *, request_open: bool) -> None:
        self._connection = connection
        self.id = stream_id
        self.request_open = request_open
        self.outstanding_bytes = 0
        self._credit_bytes = 0
        self._phase = _SILENT
        self._sent_data = False
        self._call: IncomingCall | None = None

    # -- Reply -------------------------------------------------------------------------------------------

    def send_headers(self, headers: Headers) -> None:
        """Send response headers (``:status 200`` and ``content-type`` are added). This commits the call."""
        if self._phase is not _SILENT:
            return
        connection = self._connection
        if connection.departures.full:
            connection.counters.replies_given_up += 1
            self._take(ReplyStep.GIVE_UP)
            connection.reset_stream(self, h2.ErrorCode.ENHANCE_YOUR_CALM)
            return
        try:
            connection.engine.send_response(self.id, heads.response_headers(headers))
        except h2.EngineError:  # reset or lost; the event that says so is on its way
            return
        self._take(_HEADERS)
        if not connection.flush_due:
            connection.schedule_flush()

    def send_data(self, data: bytes) -> None:
        """Queue framed bytes; they leave as the caller's flow-control window allows."""
        if self._phase is not _COMMITTED:
            return
        connection = self._connection
        try:
            connection.engine.send_data(self.id, data)
        except h2.EngineError:
            return
        # What is sent in one piece cannot be above the mark, unless the piece is.
        if self._sent_data or len(data) > connection.settings.stream_high_water_bytes:
            connection.note_queued(self)
        self._sent_data = True
        if not connection.flush_due:
            connection.schedule_flush()

    def send_trailers(self, code: Code, message: str, trailers: Headers) -> None:
        """End the call. Without earlier headers this is one Trailers-Only block."""
        phase = self._phase
        if phase is _COMMITTED:
            fields = heads.trailers(code, message, trailers)
        elif phase is _SILENT:
            if isinstance(trailers, RepeatedHeaders):
                self.reject(heads.repeated_trailers_only(code, message, trailers))
                return
            fields = heads.trailers_only(code, message, trailers)
        else:
            self._call = None  # it has said its last word, whoever hears it
            return
        connection = self._connection
        # Those of an OK are as large as they came, which is less; not worth a look at every call.
        if code is not _OK and h2.header_block_bytes(fields) > self._header_block_bytes_max:
            self.send_trailers(code, message[:SHORT_MESSAGE_CHARS], ())
            return
        try:
            if phase is _COMMITTED:
                connection.engine.send_trailers(self.id, fields)
            else:
                connection.engine.send_response(self.id, fields, end_stream=True)
        except h2.EngineError:
            return
        self._answered()

    def consumed(self, size_bytes: int) -> None:
        """Say that so many request bytes left the relay, so that the caller may send as many more."""
        self._credit_bytes += size_bytes
        if self._credit_bytes >= CREDIT_BATCH_BYTES:
            credit = min(self._credit_bytes, self.outstanding_bytes)
            self.outstanding_bytes -= credit
            self._credit_bytes = 0
            if credit:
                self._connection.acknowledge(self.id, credit)

    @property
    def buffered_bytes(self) -> int:
        """Response bytes queued and not yet written to the caller's connection."""
        return self._connection.engine.queued_body_size(self.id)

    # -- driven by the connection ------------------------------------------------------------------------

    def begin(self, handler: CallHandler, head: CallHead) -> None:
        """Hand the call over."""
        call = handler(head, self)
        if call is None:
            return
        phase = self._phase
        if phase is _SILENT or phase is _COMMITTED:
            self._call = call
        if not self.request_open:
            call.on_request_data(b"", end=True)

    def reject(self, fields: list[tuple[bytes, bytes]]) -> None:
        """Answer with one block that is known to be small enough."""
        try:
            self._connection.engine.send_response(self.id, fields, end_stream=True)
        except h2.EngineError:  # reset in the same breath; the event that says so is on its way
            return
        self._answered()

    def on_data(self, data: bytes, end: bool) -> None:
        """Request bytes, and whether they were the last."""
        if end:
            self.request_open = False
        size = len(data)
        self.outstanding_bytes += size
        call = self._call
        if call is not None:
            call.on_request_data(data, end=end)
        else:
            self.consumed(size)

    def on_closed(self) -> None:
        """The stream is no more; a call that was not answered hears that its caller is gone."""
        call = self._call
        self._call = None
        self._take(_CLOSED)
        if call is not None:
            call.on_cancelled()

    def on_drained(self) -> None:
        """The queue fell below the low-water mark."""
        if self._call is not None:
            self._call.on_reply_drained()

    @property
    def _header_block_bytes_max(self) -> int:
        return self._connection.settings.limits.header_block_sent_bytes

    def _take(self, step: ReplyStep) -> None:
        self._phase = REPLIES.get((self._phase, step), self._phase)

    def _answered(self) -> None:
        self._take(_END)
        self._call = None
        connection = self._connection
        connection.answered.append(self)
        if not connection.flush_due:
            connection.schedule_flush()
