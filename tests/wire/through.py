"""A relay without policy: a listener and an upstream joined by the ports."""

import asyncio
import random
from dataclasses import dataclass, field

from relay_service.ports import Attempt, AttemptEnd, CallHead, Headers, Reply
from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream, UpstreamSettings
from relay_service.wire.connection import ConnectionSettings
from relay_service.wire.listener import Listener, ListenerSettings
from tests.wire.peers import BOUND_S

HIGH_WATER_BYTES = ConnectionSettings().stream_high_water_bytes


class Bridge:
    """One call handed straight to one attempt: an `IncomingCall` and an `AttemptSink` in one."""

    __slots__ = ("attempt", "held_request_bytes", "held_response_bytes", "relay", "reply")

    def __init__(self, relay: "PassThrough", reply: Reply) -> None:
        self.relay = relay
        self.reply = reply
        self.attempt: Attempt | None = None
        self.held_request_bytes = 0
        self.held_response_bytes = 0

    def on_request_data(self, data: bytes, *, end: bool) -> None:
        attempt = self.attempt
        attempt.send_data(data, end=end)
        if attempt.buffered_bytes > HIGH_WATER_BYTES:
            self.held_request_bytes += len(data)
        else:
            self.reply.consumed(len(data))

    def on_cancelled(self) -> None:
        self.relay.cancelled += 1
        self.attempt.cancel()

    def on_reply_drained(self) -> None:
        held, self.held_response_bytes = self.held_response_bytes, 0
        self.attempt.consumed(held)

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        self.reply.send_headers(headers)

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        self.reply.send_data(data)
        buffered = self.reply.buffered_bytes
        self.relay.buffered_max = max(self.relay.buffered_max, buffered)
        if buffered > HIGH_WATER_BYTES:
            self.held_response_bytes += len(data)
        else:
            attempt.consumed(len(data))

    def on_attempt_drained(self, attempt: Attempt) -> None:
        held, self.held_request_bytes = self.held_request_bytes, 0
        self.reply.consumed(held)

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        self.relay.ends.append(end)
        self.reply.send_trailers(end.code, end.message, end.trailers)


class PassThrough:
    """A listener and an upstream joined by the ports, with no policy between."""

    def __init__(
        self,
        target: str,
        listener: ListenerSettings | None = None,
        upstream: UpstreamSettings | None = None,
        seed: int = 1,
    ) -> None:
        self.timers = TimerWheel(asyncio.get_running_loop())
        self.upstream = Upstream("test", target, self.timers, upstream, rng=random.Random(seed))
        self.listener = Listener(self._handle, self.timers, listener)
        self.address = ""
        self.cancelled = 0
        self.buffered_max = 0
        self.ends: list[AttemptEnd] = []

    def _handle(self, head: CallHead, reply: Reply) -> Bridge:
        bridge = Bridge(self, reply)
        bridge.attempt = self.upstream.start(head.method, head.metadata, head.timeout_s, bridge)
        return bridge

    async def start(self) -> "PassThrough":
        self.upstream.open()
        self.address = await self.listener.start("127.0.0.1", 0)
        return self

    async def close(self, grace_s: float = 0.0) -> None:
        await self.listener.close(grace_s)
        await self.upstream.close(grace_s)
        self.timers.close()


@dataclass
class RecordingSink:
    """An `AttemptSink` that keeps what it hears and gives every window back."""

    headers: list[Headers] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    ends: list[AttemptEnd] = field(default_factory=list)
    drained: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    headed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        self.headers.append(headers)
        self.headed.set()

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        self.data.append(data)
        attempt.consumed(len(data))

    def on_attempt_drained(self, attempt: Attempt) -> None:
        self.drained += 1

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        self.ends.append(end)
        self.ended.set()

    async def end(self) -> AttemptEnd:
        await asyncio.wait_for(self.ended.wait(), BOUND_S)
        assert len(self.ends) == 1
        return self.ends[0]
