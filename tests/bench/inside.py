"""``python -m tests.bench.inside``: the relay's own CPU per call, without sockets, from inside one process.

A caller and an echo, each an HTTP/2 engine, stand on both sides of a relay under its default policy; bytes
are handed over in memory, and only the time in the relay's code counts. So this leaves out the kernel and
the event loop, and tells what a change of the relay's code is worth where `tests.bench` would only show
how busy the machine is. It prints the best of several repetitions; see docs/how-to/benchmark.md.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import ngh2
import structlog

from relay_service.config.loading import load_policy
from relay_service.core.policy import LimitKind, LimitPolicy, RelayPolicy
from relay_service.methods import MethodFacts
from relay_service.relay import Relay
from relay_service.telemetry.observer import Telemetry
from relay_service.telemetry.settings import TelemetrySettings
from relay_service.timers import TimerWheel
from relay_service.upstream import Upstream
from relay_service.wire.client import ClientConnection
from relay_service.wire.connection import ConnectionSettings
from relay_service.wire.departures import DepartureSettings
from relay_service.wire.server import ServerConnection, ServerCounters

METHOD = "bench.Echo/Call"
FACTS = MethodFacts(unary=True, safety=None, input_type="bench.In", output_type="bench.Out")
REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/" + METHOD.encode()),
    (b":authority", b"127.0.0.1"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"bench"),
    (b"grpc-timeout", b"5S"),
]
RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc")]
BODY = b"\0" + (100).to_bytes(4) + b"x" * 100
CALLS_PER_REPETITION = 1_000


class Loop:
    """As much of an event loop as a connection asks for; `turn` runs what was put off."""

    def __init__(self) -> None:
        self._soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._real = asyncio.get_running_loop()
        self.create_future = self._real.create_future
        self.call_later = self._real.call_later

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        self._soon.append((callback, arguments))

    def turn(self) -> None:
        while self._soon:
            soon, self._soon = self._soon, []
            for callback, arguments in soon:
                callback(*arguments)


@dataclass
class Transport:
    """Keeps what is written until it is taken."""

    written: list[bytes] = field(default_factory=list)

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def set_write_buffer_limits(self, high: int) -> None:
        """What is written is always taken at once."""

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 1) if name == "peername" else None

    def take(self) -> bytes:
        taken = b"".join(self.written)
        self.written.clear()
        return taken


class Catalog:
    def facts(self, upstream: str, method: str) -> MethodFacts:
        return FACTS


class Owner:
    counters = ServerCounters()

    def on_connection_made(self, connection: ServerConnection) -> bool:
        return True

    def on_connection_lost(self, connection: ServerConnection) -> None:
        """The process ends with its connections."""


class World:
    """Caller, relay, echo. ``spent_s`` is the CPU time of the relay's code."""

    def __init__(self, policy: RelayPolicy) -> None:
        self.loop = Loop()
        loop: Any = self.loop
        timers = TimerWheel(loop)
        name = next(iter(policy.upstreams))
        telemetry = Telemetry(TelemetrySettings(), rng=Random(1))
        upstream = Upstream(name, "127.0.0.1:1", timers, rng=Random(2))
        self.relay = Relay(
            policy,
            {name: upstream},
            Catalog(),
            telemetry,
            timers,
            now=time.monotonic,
            rng=Random(3),
            own_services={},
        )
        self.front = ServerConnection(
            Owner(),
            self.relay.on_call,
            settings=ConnectionSettings(),
            departures=DepartureSettings(),
            loop=loop,
            timers=timers,
            clock=time.monotonic,
        )
        self.back: ClientConnection = upstream._make_connection("127.0.0.1:1")
        self.back.loop = loop
        self.to_caller, self.to_echo = Transport(), Transport()
        self.caller = ngh2.Connection(ngh2.Role.CLIENT)
        self.echo = ngh2.Connection(ngh2.Role.SERVER)
        self.spent_s = 0.0
        self._open(upstream)

    def _open(self, upstream: Upstream) -> None:
        front, back = self.to_caller, self.to_echo
        self.front.connection_made(front)  # type: ignore[arg-type]
        self.back.connection_made(back)  # type: ignore[arg-type]
        self.caller.initiate_connection({})
        self.echo.initiate_connection({ngh2.Setting.MAX_CONCURRENT_STREAMS: 1_000})
        for engine in (self.caller, self.echo):
            engine.set_local_window_size(2**30)
        for _ in range(3):
            self._pass(self.caller, self.front, front)
            self._pass(self.echo, self.back, back)
        upstream._live[self.back] = time.monotonic()
        upstream._settle()

    def _pass(self, engine: ngh2.Connection, connection: Any, transport: Transport) -> None:
        self.loop.turn()
        if written := transport.take():
            engine.receive_data(written)
            engine.events()
        self._give(connection, engine.data_to_send())

    def _give(self, connection: Any, data: bytes) -> None:
        if data:
            began = time.thread_time()
            connection.data_received(data)
            self.loop.turn()
            self.spent_s += time.thread_time() - began

    def call(self, together: int) -> None:
        """Make so many calls at once, and wait for their ends."""
        for _ in range(together):
            stream_id = self.caller.send_request(REQUEST)
            self.caller.send_data(stream_id, BODY, end_stream=True)
        self._give(self.front, self.caller.data_to_send())
        ended = 0
        while ended < together:  # some may have waited for a worker, and go only now
            self._echo()
            written = self.to_caller.take()
            assert written, "a call is not answered"
            self.caller.receive_data(written)
            ended += sum(isinstance(event, ngh2.StreamClosed) for event in self.caller.events())
            self._give(self.front, self.caller.data_to_send())

    def _echo(self) -> None:
        written = self.to_echo.take()
        if not written:
            return
        self.echo.receive_data(written)
        for event in self.echo.events():
            if isinstance(event, ngh2.RequestReceived):
                self.echo.send_response(event.stream_id, RESPONSE)
            elif isinstance(event, ngh2.DataReceived) and event.end_stream:
                self.echo.send_data(event.stream_id, event.data)
                self.echo.send_trailers(event.stream_id, [(b"grpc-status", b"0")])
        self._give(self.back, self.echo.data_to_send())
        self.echo.events()


def measure(world: World, together: int, repetitions: int) -> float:
    """CPU seconds of the relay's code per call: the best repetition, for the others were disturbed."""
    rounds = CALLS_PER_REPETITION // together
    best = float("inf")
    for _ in range(repetitions + 1):  # the first one warms up
        world.spent_s = 0.0
        for _ in range(rounds):
            world.call(together)
        best = min(best, world.spent_s / (rounds * together))
    return best


def refusing(policy: RelayPolicy) -> RelayPolicy:
    """The same with one worker and no room to wait."""
    limit = LimitPolicy(kind=LimitKind.FIXED)
    return replace(policy, admission=replace(policy.admission, workers=1, queue_capacity=0, limit=limit))


async def run(together: int, repetitions: int) -> None:
    """Measure and print."""
    policy = load_policy("default", "127.0.0.1:1")
    answered = measure(World(policy), together, repetitions)
    full = World(refusing(policy))
    assert full.relay.admission.take_spare(), "the one worker is taken"
    refused = measure(full, together, repetitions)
    print(f"{together} at once: {answered * 1e6:.1f} us per call, {refused * 1e6:.1f} us per refusal")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.inside")
    parser.add_argument("--together", type=int, default=4, metavar="N", help="calls in one read")
    parser.add_argument("--repetitions", type=int, default=30, metavar="N", help="of 1,000 calls each")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # refusals are logged else
    asyncio.run(run(arguments.together, arguments.repetitions))


if __name__ == "__main__":
    main()
