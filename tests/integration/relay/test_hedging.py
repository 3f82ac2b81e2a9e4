"""Hedging with real processes: a connection that swallows everything, and a downstream with a heavy tail."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict

from chaos.stack import Stack, StackConfig
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

Charge = Callable[..., payment_pb2.ChargeRequest]

SERVICE = "downstream.v1.PaymentService"
POLICY = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE, "method": "Charge"}],
            "hedgingPolicy": {
                "maxAttempts": 2,
                "hedgingDelay": "0.3s",
                "nonFatalStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "relay": {
        "preset": "payments-demo",
        "retryBudget": {"burst": 40},
        "methods": [{"name": [{"service": SERVICE, "method": "ListCharges"}], "hedging": {"quantile": 0.9}}],
    },
}


class Pipes:
    """Carries TCP connections on to ``target``; those that are open at a moment can be made to swallow all.

    A Toxiproxy treats all connections of a proxy alike, also those to come.
    """

    def __init__(self, target: Callable[[], str]) -> None:
        self._target = target
        self._swallowing: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.opened = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def swallow_all_that_are_open(self) -> None:
        self._swallowing = set(range(1, self.opened + 1))

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        self.opened += 1
        number = self.opened
        there_reader, there_writer = await asyncio.open_connection(*self._target().rsplit(":", 1))
        try:
            await asyncio.gather(
                self._pump(number, reader, there_writer), self._pump(number, there_reader, writer)
            )
        finally:
            writer.close()
            there_writer.close()

    async def _pump(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if number not in self._swallowing:
                    sink.write(data)
                    await sink.drain()
        except ConnectionError:
            pass
        sink.close()


@dataclass
class Hedged:
    stack: Stack
    pipes: Pipes
    payments: Any
    directly: Any
    faults: Any
    admin: Any

    async def hedging(self) -> Any:
        reply = await self.admin.GetStats(admin_pb2.GetStatsRequest(), timeout=5)
        return reply.stats.upstreams[0].hedging


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hedged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hedged]:
    directory = tmp_path_factory.mktemp("hedged")
    policy = directory / "policy.json"
    policy.write_text(json.dumps(POLICY))
    pipes = Pipes(lambda: stack.addresses.downstream)
    address = await pipes.start()
    stack = Stack(StackConfig(directory, policy=str(policy), relay_args=("--upstream", address)))
    try:
        async with stack:
            relay = grpc.aio.insecure_channel(stack.addresses.relay)
            direct = grpc.aio.insecure_channel(stack.addresses.downstream)
            admin = grpc.aio.insecure_channel(stack.addresses.relay_admin)
            async with relay, direct, admin:
                yield Hedged(
                    stack,
                    pipes,
                    payments=payment_pb2_grpc.PaymentServiceStub(relay),
                    directly=payment_pb2_grpc.PaymentServiceStub(direct),
                    faults=fault_pb2_grpc.FaultServiceStub(direct),
                    admin=admin_pb2_grpc.AdminServiceStub(admin),
                )
    finally:
        await pipes.stop()


async def test_an_attempt_whose_connection_swallows_it_is_answered_over_another(
    hedged: Hedged, a_charge: Charge
) -> None:
    await latencies_s(hedged.payments, 1)  # too few to hedge by
    assert (await hedged.hedging()).connections == 0, "it is opened for the first hedge"
    hedged.pipes.swallow_all_that_are_open()
    before = hedged.pipes.opened
    loop = asyncio.get_running_loop()
    started = loop.time()
    call = hedged.payments.Charge(a_charge("swallowed"), metadata=[("idempotency-key", "one")], timeout=10)
    await call
    took_s = loop.time() - started
    trailers = dict(await call.trailing_metadata())
    assert (trailers["relay-decision"], trailers["relay-attempts"]) == ("HEDGED", "2")
    assert took_s < 1.25, "before the relay can know that the first connection is dead"
    assert hedged.pipes.opened == before + 1
    hedging = await hedged.hedging()
    assert (hedging.started, hedging.won, hedging.connections) == (1, 1, 1)
    listed = await hedged.directly.ListCharges(payment_pb2.ListChargesRequest(account="swallowed"), timeout=5)
    assert len(listed.charges) == 1


async def test_the_tail_of_a_heavy_tailed_downstream_is_halved_for_few_more_attempts(hedged: Hedged) -> None:
    calls = 600
    body = {"latency": {"logNormal": {"median": "0.004s", "sigma": 1}}}
    tail = {"latency": {"fixed": "2s"}, "probability": 0.05}
    await hedged.faults.SetFaults(ParseDict({"faults": [body, tail]}, fault_pb2.SetFaultsRequest()))
    try:
        await latencies_s(hedged.payments, 1)  # finds the connection that was swallowed, and leaves it
        await latencies_s(hedged.payments, 150)  # what the relay learns from
        before = await hedged.hedging()
        plain_s, hedged_s = await asyncio.gather(
            latencies_s(hedged.directly, calls), latencies_s(hedged.payments, calls)
        )
        made = (await hedged.hedging()).started - before.started
    finally:
        await hedged.faults.ClearFaults(fault_pb2.ClearFaultsRequest())
    # Counted and not read off a quantile: on a busy machine other calls are slow too and spend hedges.
    plain, hedged_count = (sum(took_s >= 1.0 for took_s in each) for each in (plain_s, hedged_s))
    print(f"of {calls} calls {plain} were slow, with {made} hedges {hedged_count}")
    assert plain >= 10, "too thin a tail to say anything"
    assert hedged_count <= plain / 2
    # How few hedges are needed is shown in simulation, where nothing but the tail is slow.
    assert 0 < made <= 0.2 * calls + 40, "the budget"


async def latencies_s(payments: Any, calls: int) -> list[float]:
    """How long so many calls took, sixteen at a time, sorted."""
    loop = asyncio.get_running_loop()
    left = iter(range(calls))
    took_s: list[float] = []

    async def caller() -> None:
        for _ in left:
            started = loop.time()
            await payments.ListCharges(payment_pb2.ListChargesRequest(account="tail"), timeout=15)
            took_s.append(loop.time() - started)

    await asyncio.gather(*(caller() for _ in range(16)))
    return sorted(took_s)
