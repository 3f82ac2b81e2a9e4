"""``relay.v1.RelayService/Relay``: one unary call in an envelope, opened here and carried like any other.

The envelope is answered on the data plane itself: its content goes into the same `Relay` as a direct
call would, and the upstream's answer comes back in an envelope. Deadline and metadata are the envelope's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from google.protobuf.message import DecodeError

from protos.relay.v1.relay_pb2 import RelayRequest, RelayResponse
from relay_service.arrival import timeout_of
from relay_service.compression import ENCODING, UnframeError, unframe
from relay_service.contract import header
from relay_service.core.names import is_method_name
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.message import FRAME_PREFIX_BYTES, Collector, frame
from relay_service.methods import MethodCatalog, MethodFacts
from relay_service.ports import CallHead, Headers, IncomingCall, Reply, TimerHandle
from relay_service.relay import Relay

METHOD = "relay.v1.RelayService/Relay"

_ENCODINGS = (ENCODING, b"grpc-accept-encoding")
TYPE_URL_PREFIX = "type.googleapis.com/"
QUOTED_CHARS_MAX = 200
"""Of what an envelope says, where it is told what is wrong with it."""


class EnvelopeError(Exception):
    """The envelope cannot be opened; says why."""


class EnvelopeOpener:
    """Takes every call first; opens envelopes, hands all else to the relay (a ``CallHandler``)."""

    def __init__(self, relay: Relay, catalog: MethodCatalog) -> None:
        self._relay = relay
        self._catalog = catalog

    def on_call(self, head: CallHead, reply: Reply) -> IncomingCall | None:
        """A call at its headers."""
        if head.method == METHOD:
            return EnvelopeCall(self, head, reply)
        return self._relay.on_call(head, reply)

    def refuse(self, head: CallHead, reply: Reply, reason: Reason, message: str) -> None:
        """Answer an envelope that holds no call, or that there is no room for."""
        pushback_s = None
        if reason is Reason.QUEUE_FULL:
            pushback_s = self._relay.workers.pushback_s(reason, self._relay.now())
        self._relay.refuse(head, reply, reason, message, pushback_s)

    def hold(self, size_bytes: int) -> bool:
        """Ask for so much of the room that the requests of all calls share."""
        return self._relay.workers.hold_request(size_bytes)

    def let_go(self, size_bytes: int) -> None:
        """The room is free again."""
        self._relay.workers.let_go_of_request(size_bytes)

    def open(self, head: CallHead, framed: bytes, reply: Reply) -> tuple[CallHead, bytes, Reply]:
        """The call inside: its head, its framed request, and where its answer goes.

        Raises `EnvelopeError` when there is none.
        """
        request = _parse(head, framed, self.max_message_bytes)
        facts = self._facts(request)
        now = self._relay.now()
        inner = replace(
            head,
            method=request.method,
            metadata=[field for field in head.metadata if field[0] not in _ENCODINGS],
            timeout_s=head.timeout_s and max(0.0, head.timeout_s - (now - head.received_at)),
            unary=True,
        )
        output_type = facts.output_type if facts else ""
        return inner, frame(request.request.value), EnvelopeReply(reply, output_type, self.max_message_bytes)

    def start(self, head: CallHead, reply: Reply) -> IncomingCall | None:
        """Hand the call inside to the relay."""
        return self._relay.on_call(head, reply)

    def call_at_deadline(
        self, head: CallHead, callback: Callable[[EnvelopeCall], None], call: EnvelopeCall
    ) -> TimerHandle | None:
        """Set a timer for the envelope's deadline: the caller's, by the policy for this method."""
        timeout_s = timeout_of(head, self._relay.policy.method_policy(METHOD))
        if timeout_s is None:
            return None
        return self._relay.timers.call_at(head.received_at + timeout_s, callback, call)

    @property
    def max_message_bytes(self) -> int:
        """The largest envelope: that of the policy for this method."""
        return self._relay.policy.method_policy(METHOD).max_message_bytes

    def _facts(self, request: RelayRequest) -> MethodFacts | None:
        upstream = self._relay.policy.route(request.method)
        facts = self._catalog.facts(upstream, request.method) if upstream else None
        if facts is None:
            return None
        if not facts.unary:
            raise EnvelopeError(
                f"{request.method} is a streaming method; an envelope carries one message each way"
            )
        given = request.request.type_url.rpartition("/")[2]
        if given != facts.input_type:
            raise EnvelopeError(
                f"{request.method} takes {facts.input_type}, "
                f"the envelope holds {given[:QUOTED_CHARS_MAX] or 'no type_url'}"
            )
        return facts


class EnvelopeCall:
    """Collects the envelope, then passes on what happens to the call inside (an ``IncomingCall``)."""

    __slots__ = ("_collector", "_head", "_held_bytes", "_inner", "_opener", "_reply", "_timer")

    def __init__(self, opener: EnvelopeOpener, head: CallHead, reply: Reply) -> None:
        self._opener = opener
        self._head = head
        self._reply = reply
        self._collector: Collector | None = Collector(opener.max_message_bytes)
        self._held_bytes = 0
        self._inner: IncomingCall | None = None
        self._timer: TimerHandle | None = opener.call_at_deadline(head, EnvelopeCall.too_late, self)

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        """See `relay_service.ports.IncomingCall`."""
        self._reply.consumed(len(data))
        collector = self._collector
        if collector is None:
            return
        problem = collector.add(data)
        if problem is not None:
            self._refuse(problem)
        elif not self._opener.hold(len(data)):
            self._refuse(Reason.QUEUE_FULL)
        else:
            self._held_bytes += len(data)
            if end:
                self._open(collector.whole())

    def too_late(self) -> None:
        """The deadline came before the whole envelope."""
        self._refuse(Reason.DEADLINE_PASSED)

    def _open(self, framed: bytes | None) -> None:
        self._close()
        if framed is None:
            self._refuse(Reason.MALFORMED_REQUEST)
            return
        try:
            head, body, reply = self._opener.open(self._head, framed, self._reply)
        except EnvelopeError as error:
            self._refuse(Reason.ENVELOPE_INVALID, str(error))
            return
        self._inner = self._opener.start(head, reply)
        if self._inner is not None:
            self._inner.on_request_data(body, end=True)

    def _close(self) -> None:
        """Take no more of the envelope; the call inside holds its own request."""
        self._collector = None
        self._opener.let_go(self._held_bytes)
        self._held_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, reason: Reason, message: str = "") -> None:
        self._close()
        self._opener.refuse(self._head, self._reply, reason, message or reason.meaning)

    def on_cancelled(self) -> None:
        """See `relay_service.ports.IncomingCall`."""
        self._close()
        if self._inner is not None:
            self._inner.on_cancelled()

    def on_reply_drained(self) -> None:
        """The answer is sent in one piece: there is nothing to go on with."""


class EnvelopeReply:
    """Collects the upstream's answer and sends it in an envelope (a ``Reply``)."""

    __slots__ = ("_collected", "_headers", "_max_bytes", "_output_type", "_reply")

    def __init__(self, reply: Reply, output_type: str, max_bytes: int) -> None:
        self._reply = reply
        self._output_type = output_type
        self._max_bytes = max_bytes
        self._headers: Headers = ()
        self._collected = bytearray()

    def send_headers(self, headers: Headers) -> None:
        """Kept until the end: the envelope may still fail."""
        self._headers = headers

    def send_data(self, data: bytes) -> None:
        """Kept until the end. One byte past the limit is kept too, which is how the end knows."""
        room = self._max_bytes + FRAME_PREFIX_BYTES + 1 - len(self._collected)
        self._collected += data[:room]

    def send_trailers(self, code: Code, message: str, trailers: Headers) -> None:
        """Close the envelope and send it, or pass the error on."""
        if code is not Code.OK:
            self._reply.send_trailers(code, message, trailers)
            return
        encoding = header(self._headers, ENCODING)
        try:
            value = unframe(bytes(self._collected), encoding, self._max_bytes)
        except UnframeError as error:
            self._reply.send_trailers(Code.INTERNAL, f"the upstream's answer: {error}", trailers)
            return
        response = RelayResponse()
        response.response.value = value
        if self._output_type:
            response.response.type_url = TYPE_URL_PREFIX + self._output_type
        self._reply.send_headers([field for field in self._headers if field[0] not in _ENCODINGS])
        self._reply.send_data(frame(response.SerializeToString()))
        self._reply.send_trailers(code, message, trailers)

    def consumed(self, size_bytes: int) -> None:
        """The inner request came whole from the envelope: no window to give."""

    @property
    def buffered_bytes(self) -> int:
        """Nothing is queued towards the caller before the end."""
        return 0


def _parse(head: CallHead, framed: bytes, max_bytes: int) -> RelayRequest:
    encoding = header(head.metadata, ENCODING)
    try:
        request = RelayRequest.FromString(unframe(framed, encoding, max_bytes))
    except DecodeError:
        raise EnvelopeError("it is no relay.v1.RelayRequest") from None
    except UnframeError as error:
        raise EnvelopeError(str(error)) from None
    if not is_method_name(request.method):
        raise EnvelopeError(
            f"method must be package.Service/Method, not {request.method[:QUOTED_CHARS_MAX]!r}"
        )
    return request
