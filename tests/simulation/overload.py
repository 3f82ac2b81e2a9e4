"""A relay in front of an upstream that can do so much and no more, and callers who want more than that."""

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from world import Catalog, Clock, Observer, Reply, framed

from relay_service.core.evidence import Delivery
from relay_service.core.policy import (
    AdmissionPolicy,
    ClientsPolicy,
    MethodPolicy,
    RelayPolicy,
    UpstreamPolicy,
)
from relay_service.core.status import Code
from relay_service.ports import AttemptEnd, AttemptSink, CallHead, Headers
from relay_service.relay import Relay

METHOD = "t.S/Unary"


class Server:
    """``workers`` at once, each busy for a service time; the rest waits, first in first out.

    An attempt that is cancelled while it waits leaves; one that is being served is served to its end.
    """

    name = "upstream"

    def __init__(self, clock: Clock, rng: Random, workers: int, service_s: float) -> None:
        self._clock, self._rng = clock, rng
        self.workers, self.service_s = workers, service_s
        self._waiting: deque[ServerAttempt] = deque()
        self._serving = 0
        self.steady = False
        """Service times within a half of their mean, instead of exponential ones."""
        self.silent = False
        """Takes everything and answers nothing."""
        self.served = 0
        self.wasted = 0
        """Work that ended when its caller had given it up."""

    @property
    def capacity_per_s(self) -> float:
        return self.workers / self.service_s

    def start(
        self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink
    ) -> "ServerAttempt":
        attempt = ServerAttempt(sink)
        if not self.silent:
            self._waiting.append(attempt)
            # The request's bytes come after the headers; only then can it be served.
            self._clock.call_at(self._clock.now, Server._serve, self)
        return attempt

    def _serve(self) -> None:
        while self._waiting and self._serving < self.workers:
            attempt = self._waiting.popleft()
            if not attempt.over:
                self._serving += 1
                self._clock.call_at(self._clock.now + self._drawn_s(), self._served, attempt)

    def _drawn_s(self) -> float:
        if self.steady:
            return self._rng.uniform(0.5, 1.5) * self.service_s
        return self._rng.expovariate(1 / self.service_s)

    def _served(self, attempt: "ServerAttempt") -> None:
        self._serving -= 1
        self.served += 1
        if attempt.over:
            self.wasted += 1
        else:
            attempt.answer()
        self._serve()


class ServerAttempt:
    peer = "upstream:1"
    buffered_bytes = 0

    def __init__(self, sink: AttemptSink) -> None:
        self._sink = sink
        self.over = False

    def send_data(self, data: bytes, *, end: bool) -> None:
        pass

    def consumed(self, size_bytes: int) -> None:
        pass

    def cancel(self) -> Delivery:
        self.over = True
        return Delivery.UNANSWERED

    def answer(self) -> None:
        self.over = True
        self._sink.on_response_headers(self, ())
        self._sink.on_response_data(self, framed(b"done"))
        self._sink.on_end(self, AttemptEnd(Delivery.ANSWERED, Code.OK, ""))


@dataclass
class Group:
    """Callers of one kind: they send at a rate, whatever happens to them."""

    name: str
    rate_per_s: float
    timeout_s: float = 1.0
    metadata: tuple[tuple[bytes, bytes], ...] = ()
    since_s: float = 0.0
    until_s: float = math.inf
    offered: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    """How calls ended: the reason's name, else the code's."""
    ok_at: list[float] = field(default_factory=list)

    @property
    def ok_share(self) -> float:
        return self.ended["OK"] / self.offered

    def ok_between(self, since: float, until: float) -> int:
        return sum(since <= at < until for at in self.ok_at)


class Overload:
    """The world: time 0 is the start; `run` goes on for so long."""

    def __init__(
        self,
        seed: int,
        admission: AdmissionPolicy,
        *,
        workers: int = 10,
        service_s: float = 0.05,
        method: MethodPolicy | None = None,
        clients: ClientsPolicy | None = None,
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.clock = Clock()
        self.server = Server(self.clock, self.rng, workers, service_s)
        self.observer = Observer()
        policy = RelayPolicy(
            "overload",
            {"upstream": UpstreamPolicy(target="127.0.0.1:1")},
            {"": method or MethodPolicy()},
            admission=admission,
            clients=clients,
        )
        self.relay = Relay(
            policy,
            {"upstream": self.server},
            Catalog(),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=self.rng,
            own_services={},
        )
        self.epoch = self.clock.now
        self.pushbacks_ms: list[int] = []

    def at(self, second: float, change: Callable[[], None]) -> None:
        """Call ``change()`` at a time."""
        self.clock.call_at(self.epoch + second, lambda _: change(), None)

    def run(self, seconds: float, *groups: Group, start: float = 0.0) -> None:
        for group in groups:
            if group.rate_per_s:
                until_s = min(seconds, group.until_s)
                self._next(group, self.epoch + max(start, group.since_s), self.epoch + until_s)
        self.clock.run()
        assert self.relay.in_flight == self.relay.admission.busy == self.relay.admission.queued == 0, (
            self.seed
        )

    def _next(self, group: Group, now: float, until: float) -> None:
        at = now + self.rng.expovariate(group.rate_per_s)
        if at < until:
            self.clock.call_at(at, lambda _: self._call_and_go_on(group, until), None)

    def _call_and_go_on(self, group: Group, until: float) -> None:
        self._next(group, self.clock.now, until)
        self.call(group)

    def call(self, group: Group) -> None:
        """One call of the group, now."""
        group.offered += 1
        reply = CountedReply(self, group)
        head = CallHead(METHOD, list(group.metadata), group.timeout_s, self.clock.now, "caller:1")
        call = self.relay.on_call(head, reply)
        if call is not None:
            call.on_request_data(framed(b"x"), end=True)


class CountedReply(Reply):
    """Counts its answer for its group, when it came in time."""

    def __init__(self, world: Overload, group: Group) -> None:
        super().__init__(world.clock)
        self._world, self._group = world, group

    def send_trailers(self, code: Code, message: str, trailers: Headers) -> None:
        super().send_trailers(code, message, trailers)
        fields = self.trailers
        decision = fields[b"relay-decision"].decode()
        self._group.ended[decision if fields[b"relay-origin"] == b"relay" else code.name] += 1
        if code is Code.OK:
            self._group.ok_at.append(self._world.clock.now - self._world.epoch)
        if pushback := fields.get(b"grpc-retry-pushback-ms"):
            self._world.pushbacks_ms.append(int(pushback))
