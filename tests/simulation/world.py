"""A world without sockets or clocks: the whole relay over modelled callers, network and upstream.

Everything that happens is an entry in one heap ordered by virtual time, so a seed decides a run.
"""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from relay_service.core.evidence import Delivery, Evidence, Safety
from relay_service.core.policy import RelayPolicy
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Verdict
from relay_service.message import FRAME_PREFIX_BYTES
from relay_service.methods import MethodFacts
from relay_service.ports import AttemptEnd, AttemptSink, CallHead, Headers
from relay_service.relay import Relay

TICK_S = 0.004
"""How late a coarse timer may fire."""


@dataclass(slots=True)
class Entry:
    callback: Callable[[Any], None]
    argument: Any
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Virtual time and the timers on it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._heap: list[tuple[float, int, Entry]] = []
        self._order = 0

    def call_at(self, when: float, callback: Callable[[Any], None], argument: Any) -> Entry:
        self._order += 1
        entry = Entry(callback, argument)
        heapq.heappush(self._heap, (max(when, self.now), self._order, entry))
        return entry

    def run(self) -> None:
        while self._heap:
            self.step()

    def step(self) -> None:
        """The next thing that happens."""
        at, _, entry = heapq.heappop(self._heap)
        if not entry.cancelled:
            self.now = max(self.now, at)
            entry.callback(entry.argument)


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(FRAME_PREFIX_BYTES - 1) + message


@dataclass
class Behaviour:
    """What the upstream and the network do to an attempt: chances, in this order."""

    refuse_connect: float = 0.0
    lose_before: float = 0.0
    """The request never arrives and nobody says so until the attempt's limit."""
    fail_before: float = 0.0
    """UNAVAILABLE, nothing executed."""
    fail_definite: float = 0.0
    """INVALID_ARGUMENT, nothing executed."""
    lose_after: float = 0.0
    """Executed, then the connection resets."""
    latency_s: float = 0.02
    slow: float = 0.0
    """Chance of an attempt to take ``slow_s`` longer."""
    slow_s: float = 1.0


class Upstream:
    """Counts the effects of each call and loses things as told; its ledger honours keys."""

    name = "upstream"

    def __init__(self, clock: Clock, rng: Random, behaviour: Behaviour) -> None:
        self._clock = clock
        self._rng = rng
        self.behaviour = behaviour
        self.attempts: list[tuple[float, bytes, bool]] = []
        self.effects: Counter[bytes] = Counter()
        self.ledger: set[bytes] = set()
        self.running: Counter[bytes] = Counter()
        self.stalled_until: dict[str, float] = {}
        """By connection: nothing gets through before."""

    def start(self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> "Attempt":
        return self.start_on("main", metadata, sink)

    def start_on(self, connection: str, metadata: Headers, sink: AttemptSink) -> "Attempt":
        fields = dict(metadata)
        attempt = Attempt(self, sink, fields[b"call-id"], fields.get(b"idempotency-key"))
        self.attempts.append((self._clock.now, attempt.call_id, b"grpc-previous-rpc-attempts" in fields))
        self.running[attempt.call_id] += 1
        took_s = self._rng.expovariate(1 / self.behaviour.latency_s)
        if self.behaviour.slow and self._rng.random() < self.behaviour.slow:
            took_s += self.behaviour.slow_s
        arrives_at = max(self._clock.now + took_s, self.stalled_until.get(connection, 0.0))
        self._clock.call_at(arrives_at, Attempt.arrive, attempt)
        return attempt

    def draw(self) -> str:
        behaviour, point = self.behaviour, self._rng.random()
        for fate in ("refuse_connect", "lose_before", "fail_before", "fail_definite", "lose_after"):
            point -= getattr(behaviour, fate)
            if point < 0:
                return fate
        return "answer"

    def execute(self, attempt: "Attempt") -> None:
        if attempt.key is None or attempt.key not in self.ledger:
            self.effects[attempt.call_id] += 1
        if attempt.key is not None:
            self.ledger.add(attempt.key)


class HedgePort:
    """The same upstream over a connection of its own."""

    name = "upstream"

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def start(self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> "Attempt":
        return self._upstream.start_on("hedges", metadata, sink)


class Attempt:
    """One try as the relay sees it."""

    peer = "upstream:1"
    buffered_bytes = 0

    def __init__(self, upstream: Upstream, sink: AttemptSink, call_id: bytes, key: bytes | None) -> None:
        self.upstream, self.sink, self.call_id, self.key = upstream, sink, call_id, key
        self.over = False
        self.sent = False
        self.request = b""

    def send_data(self, data: bytes, *, end: bool) -> None:
        self.request += data

    def consumed(self, size_bytes: int) -> None:
        pass

    def cancel(self) -> Delivery:
        assert not self.over, "an attempt that is over was cancelled"
        self.over = True
        self.upstream.running[self.call_id] -= 1
        return Delivery.UNANSWERED if self.sent else Delivery.NOT_SENT

    def arrive(self) -> None:
        if self.over:
            return
        self.sent = True
        match self.upstream.draw():
            case "refuse_connect":
                self.sent = False
                self._end(AttemptEnd(Delivery.NOT_SENT, Code.UNAVAILABLE, "connection refused"))
            case "lose_before":
                pass
            case "fail_before":
                self._end(AttemptEnd(Delivery.ANSWERED, Code.UNAVAILABLE, "busy"))
            case "fail_definite" if self.key not in self.upstream.ledger:  # else the ledger knows better
                self._end(AttemptEnd(Delivery.ANSWERED, Code.INVALID_ARGUMENT, "bad"))
            case "lose_after":
                self.upstream.execute(self)
                self._end(AttemptEnd(Delivery.UNANSWERED, Code.UNAVAILABLE, "connection reset"))
            case _:
                self.upstream.execute(self)
                self.sink.on_response_headers(self, ((b"served", b"yes"),))
                self.sink.on_response_data(self, self.request)
                if not self.over:
                    self._end(AttemptEnd(Delivery.ANSWERED, Code.OK, ""))

    def _end(self, end: AttemptEnd) -> None:
        self.over = True
        self.upstream.running[self.call_id] -= 1
        self.sink.on_end(self, end)


class Reply:
    """What a caller got."""

    buffered_bytes = 0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.headers: Headers | None = None
        self.data = b""
        self.code: Code | None = None
        self.message = ""
        self.trailers: dict[bytes, bytes] = {}
        self.answered_at = 0.0
        self.window_bytes = 0

    def send_headers(self, headers: Headers) -> None:
        assert self.headers is None
        assert self.code is None
        self.headers = headers

    def send_data(self, data: bytes) -> None:
        assert self.headers is not None
        assert self.code is None
        self.data += data

    def send_trailers(self, code: Code, message: str, trailers: Headers) -> None:
        assert self.code is None, "answered twice"
        self.code, self.message, self.trailers = code, message, dict(trailers)
        self.answered_at = self._clock.now

    def consumed(self, size_bytes: int) -> None:
        self.window_bytes += size_bytes


class Observer:
    """Counts what the relay says of its calls."""

    def __init__(self) -> None:
        self.received = 0
        self.by_fate: Counter[Fate] = Counter()
        self.verdicts: dict[bytes, Verdict] = {}

    def call_started(self, head: CallHead, now: float) -> "CallObserver":
        self.received += 1
        return CallObserver(self, dict(head.metadata).get(b"call-id", b""))

    def call_refused(self, head: CallHead, verdict: Verdict, now: float) -> None:
        self.call_started(head, now).finished(verdict, now)


class CallObserver:
    """Checks that the story of each call is told in order."""

    trace_id = "0" * 32

    def __init__(self, parent: Observer, call_id: bytes) -> None:
        self._parent, self._call_id = parent, call_id
        self._running: set[int] = set()
        self._waiting = False
        self._over = False

    def queued(self, now: float) -> None:
        assert not self._waiting
        assert not self._over
        self._waiting = True

    def dequeued(self, now: float) -> None:
        assert self._waiting
        self._waiting = False

    def attempt_started(self, number: int, upstream: str, now: float) -> Headers:
        assert not self._running
        return self._started(number)

    def hedge_started(self, number: int, upstream: str, now: float) -> Headers:
        assert self._running, "a hedge is made beside something"
        return self._started(number)

    def _started(self, number: int) -> Headers:
        self._running.add(number)
        return ((b"traceparent", b"00-%032d-%016d-00" % (1, number)),)

    def attempt_ended(self, number: int, peer: str, end: AttemptEnd, evidence: Evidence, now: float) -> None:
        self._running.remove(number)

    def finished(self, verdict: Verdict, now: float) -> None:
        assert not self._over, "a call ended twice"
        assert not self._running
        self._over = True
        self._parent.by_fate[verdict.fate] += 1
        self._parent.verdicts[self._call_id] = verdict


class Catalog:
    """Knows one unary and one streaming method, and says the same of them each time, as the real one does."""

    def __init__(self, safety: Safety | None = None) -> None:
        self._unary, self._streaming = (
            MethodFacts(unary=unary, safety=safety, input_type="t.In", output_type="t.Out")
            for unary in (True, False)
        )

    def facts(self, upstream: str, method: str) -> MethodFacts | None:
        return self._streaming if method.endswith("Stream") else self._unary


class World:
    """A relay in front of a modelled upstream."""

    def __init__(
        self, seed: int, policy: RelayPolicy, behaviour: Behaviour, safety: Safety | None = None
    ) -> None:
        self.rng = Random(seed)
        self.clock = Clock()
        self.upstream = Upstream(self.clock, self.rng, behaviour)
        self.observer = Observer()
        self.relay = Relay(
            policy,
            {"upstream": self.upstream},
            Catalog(safety),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=self.rng,
            own_services={},
            hedge_upstreams={"upstream": HedgePort(self.upstream)},
        )
        self.replies: dict[bytes, Reply] = {}
        self.sent_at: dict[bytes, float] = {}

    def call(
        self,
        call_id: bytes,
        *,
        method: str = "t.S/Unary",
        key: bytes | None = None,
        timeout_s: float | None = None,
        metadata: Headers = (),
        body: bytes = b"hello",
    ) -> Any:
        """One whole call, now."""
        fields = [(b"call-id", call_id), *metadata]
        if key is not None:
            fields.append((b"idempotency-key", key))
        reply = self.replies[call_id] = Reply(self.clock)
        self.sent_at[call_id] = self.clock.now
        call = self.relay.on_call(CallHead(method, fields, timeout_s, self.clock.now, "caller:1"), reply)
        if call is not None:
            call.on_request_data(framed(body), end=True)
        return call

    def call_at(self, delay_s: float, call_id: bytes, **how: Any) -> None:
        """One whole call, later."""
        self.clock.call_at(self.clock.now + delay_s, lambda _: self.call(call_id, **how), None)
