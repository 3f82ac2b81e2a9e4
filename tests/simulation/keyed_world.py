"""Several relays on one store, before an upstream that honours keys or ignores them; relays die and stall."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from virtual_loop import LoopClock
from world import Attempt, Behaviour, Catalog, Observer, Reply, Upstream, framed

from relay_service.core.evidence import Delivery, Safety
from relay_service.core.policy import RelayPolicy
from relay_service.core.status import Code
from relay_service.idempotency.keys import KeysSetup
from relay_service.ports import AttemptEnd, CallHead, Headers
from relay_service.relay import Relay
from relay_service.stores.interface import StoreUnavailableError
from tests.stores.memory import MemoryStore

STEPS = ("looked-up", "claimed", "dispatched", "answered", "settled", "replied")
LEASE_S = 2.0


class Crashed(BaseException):
    """This relay's process is gone."""


class KeyedUpstream(Upstream):
    """Counts effects by key, and gives every execution an answer of its own."""

    def __init__(self, clock: LoopClock, rng: Random, behaviour: Behaviour, *, honours_keys: bool) -> None:
        super().__init__(clock, rng, behaviour)  # type: ignore[arg-type]
        self._honours_keys = honours_keys
        self.effects_by_key: Counter[bytes] = Counter()
        self.answers: dict[bytes, bytes] = {}

    def send(self, attempt: Attempt) -> None:
        """On its way."""
        delay_s = self._rng.expovariate(1 / self.behaviour.latency_s)
        self._clock.call_at(self._clock.now + delay_s, Attempt.arrive, attempt)

    def execute(self, attempt: Attempt) -> None:
        assert attempt.key is not None
        if self._honours_keys and attempt.key in self.answers:
            attempt.request = self.answers[attempt.key]
            return
        self.effects_by_key[attempt.key] += 1
        self.ledger.add(attempt.key)
        number = sum(self.effects_by_key.values())
        attempt.request = self.answers[attempt.key] = framed(b"effect %d" % number)


class LateAttempt(Attempt):
    """Its end may have come while its relay was stopped, which then gives it up first."""

    def cancel(self) -> Delivery:
        return Delivery.UNANSWERED if self.over else super().cancel()


class Node:
    """One relay's process: everything that reaches the relay passes here, and waits while it is stopped."""

    def __init__(self, world: "KeyedWorld", name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self._stopped = False
        self._missed: list[Callable[[], None]] = []
        self._awake = asyncio.Event()
        self._awake.set()
        self.observer = Observer()
        self.relay = Relay(
            world.policy,
            {"upstream": Port(self)},
            Catalog(world.safety),
            self.observer,
            self,
            now=lambda: world.clock.now,
            rng=Random(world.rng.random()),
            own_services={},
            keys=KeysSetup(GatedStore(self), name, self.reached),  # type: ignore[arg-type]
        )

    def deliver(self, happening: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self._stopped:
            self._missed.append(happening)
            return
        with contextlib.suppress(Crashed):
            happening()

    def call_at(self, when: float, callback: Callable[[Any], None], argument: Any) -> Any:
        gated = lambda _: self.deliver(lambda: callback(argument))  # noqa: E731 (one line, one use)
        return self.world.clock.call_at(when, gated, None)

    def reached(self, step: str) -> None:
        if not self.alive:
            raise Crashed(step)
        self.world.steps[step] += 1
        fate = self.world.draw_fate(step)
        if fate == "kill":
            self.alive = False
            self.world.restart_later(self)
            raise Crashed(step)
        if fate == "stop":
            self.stop()

    def stop(self) -> None:
        self._stopped = True
        self._awake.clear()
        wake_at = self.world.clock.now + self.world.rng.uniform(0.5, 2.5) * LEASE_S
        self.world.clock.call_at(wake_at, lambda _: self._wake(), None)

    def _wake(self) -> None:
        self._stopped = False
        self._awake.set()
        missed, self._missed = self._missed, []
        for happening in missed:
            self.deliver(happening)

    async def awake(self) -> None:
        while self._stopped:
            await self._awake.wait()
        if not self.alive:
            await asyncio.Event().wait()  # until the end of the world


class Port:
    """The upstream as one relay reaches it."""

    name = "upstream"

    def __init__(self, node: Node) -> None:
        self._node = node

    def start(self, method: str, metadata: Headers, timeout_s: float | None, sink: Any) -> Any:
        upstream = self._node.world.upstream
        fields = dict(metadata)
        gated = GatedSink(self._node, sink)
        attempt = LateAttempt(upstream, gated, fields[b"call-id"], fields.get(b"idempotency-key"))
        sent = lambda: upstream.send(attempt)  # noqa: E731 (one line, one use)
        self._node.deliver(sent)
        return attempt


class GatedSink:
    def __init__(self, node: Node, sink: Any) -> None:
        self._node, self._sink = node, sink

    def on_response_headers(self, attempt: Attempt, headers: Headers) -> None:
        self._node.deliver(lambda: self._sink.on_response_headers(attempt, headers))

    def on_response_data(self, attempt: Attempt, data: bytes) -> None:
        self._node.deliver(lambda: self._sink.on_response_data(attempt, data))

    def on_end(self, attempt: Attempt, end: AttemptEnd) -> None:
        self._node.deliver(lambda: self._sink.on_end(attempt, end))


class GatedStore:
    """The store as one relay reaches it: both ways take time, and wait for a stopped relay."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.now = node.world.store.now
        self.durability = node.world.store.durability

    def __getattr__(self, operation: str) -> Any:
        async def asked(*args: Any, **kwargs: Any) -> Any:
            world, node = self._node.world, self._node
            await node.awake()
            await asyncio.sleep(world.rng.uniform(0, world.store_latency_s))
            fate = world.rng.random()
            if fate < world.store_loses / 2:
                raise StoreUnavailableError(f"{operation} did not arrive")
            result = await getattr(world.store, operation)(*args, **kwargs)
            await asyncio.sleep(world.rng.uniform(0, world.store_latency_s))
            await node.awake()
            if fate < world.store_loses:
                raise StoreUnavailableError(f"the answer to {operation} did not arrive")
            return result

        return asked


class NodeReply(Reply):
    """An answer from a dead relay never arrives."""

    def __init__(self, clock: LoopClock, node: Node) -> None:
        super().__init__(clock)  # type: ignore[arg-type]
        self.node = node

    def send_trailers(self, code: Code, message: str, trailers: Headers) -> None:
        if self.node.alive:
            super().send_trailers(code, message, trailers)


@dataclass
class Sent:
    """One call of one client."""

    key: bytes
    body: bytes
    at: float
    timeout_s: float
    reply: NodeReply


@dataclass
class KeyedWorld:
    """State: the relays alive, the store they share, all that was sent and answered."""

    seed: int
    policy: RelayPolicy
    behaviour: Behaviour
    safety: Safety
    store: MemoryStore
    kills: float = 0.0
    stops: float = 0.0
    nodes_count: int = 2
    store_latency_s: float = 0.01
    store_loses: float = 0.0
    """Share of the store's operations that fail, half of them after they were done."""
    steps: Counter[str] = field(default_factory=Counter)
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.clock = LoopClock(asyncio.get_running_loop())
        honours = self.safety is Safety.KEYED
        self.upstream = KeyedUpstream(self.clock, self.rng, self.behaviour, honours_keys=honours)
        self._names = 0
        self.nodes = [self._new_node() for _ in range(self.nodes_count)]

    def _new_node(self) -> Node:
        self._names += 1
        return Node(self, f"relay-{self._names}")

    def restart_later(self, dead: Node) -> None:
        def restart(_: None) -> None:
            self.nodes[self.nodes.index(dead)] = self._new_node()

        self.clock.call_at(self.clock.now + self.rng.uniform(0.1, 2.0), restart, None)

    def draw_fate(self, step: str) -> str:
        point = self.rng.random()
        if point < self.kills:
            return "kill"
        return "stop" if point < self.kills + self.stops else "go"

    def send(self, key: bytes, body: bytes, timeout_s: float, *, cancel_after_s: float | None = None) -> Sent:
        node = self.rng.choice(self.nodes)
        reply = NodeReply(self.clock, node)
        sent = Sent(key, body, self.clock.now, timeout_s, reply)
        self.sent.append(sent)
        metadata = [(b"call-id", b"%d" % len(self.sent)), (b"idempotency-key", key)]
        head = CallHead("t.S/Unary", metadata, timeout_s, self.clock.now, "caller:1")

        def arrive() -> None:
            call = node.relay.on_call(head, reply)
            if call is None:
                return
            call.on_request_data(framed(body), end=True)
            if cancel_after_s is not None:
                gone = lambda _: node.deliver(lambda: reply.code is None and call.on_cancelled())  # noqa: E731
                self.clock.call_at(self.clock.now + cancel_after_s, gone, None)

        node.deliver(arrive)
        return sent
