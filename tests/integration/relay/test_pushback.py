"""A stock gRPC client before an overloaded relay: what it is told about coming back is true.

The client is grpcio as it is, with a ``retryPolicy`` in its service config: it waits for as long as
``grpc-retry-pushback-ms`` says and tries again by itself, which no application sees. So a plain gRPC proxy stands
between the two and notes every try with the ``grpc-previous-rpc-attempts`` that grpcio writes on it.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from chaos.stack import Stack, StackConfig
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 1
WORKERS, SERVICE_MS = 3, 60
CAPACITY_PER_S = 1000 * WORKERS / SERVICE_MS
PREVIOUS = "grpc-previous-rpc-attempts"
PUSHBACK = "grpc-retry-pushback-ms"
CHARGE = "/downstream.v1.PaymentService/Charge"
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "downstream.v1.PaymentService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"],
            },
        }
    ]
}
POLICY = {
    "relay": {
        "preset": "payments-demo",
        "admission": {"workers": WORKERS, "queueCapacity": 12},
        "off": ["breaker"],
    }
}


@dataclass
class Witness(grpc.GenericRpcHandler):
    """Passes every call on as it is, and notes the tries: how many came before it, and how it ended."""

    channel: grpc.aio.Channel
    tries: Counter[tuple[int, str]] = field(default_factory=Counter)
    told_ms: list[int] = field(default_factory=list)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        send = self.channel.unary_unary(handler_call_details.method)

        async def handle(request: bytes, context: Any) -> bytes:
            previous = int(dict(context.invocation_metadata()).get(PREVIOUS, 0))
            try:
                reply = await send(request, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                trailers = error.trailing_metadata()
                self.told_ms += [int(value) for key, value in trailers if key == PUSHBACK]
                self.tries[previous, error.code().name] += 1
                await context.abort(error.code(), error.details(), tuple(trailers))
            self.tries[previous, "OK"] += 1
            return reply

        return grpc.unary_unary_rpc_method_handler(handle)

    @property
    def told(self) -> Counter[str]:
        """How the tries ended that were made because the one before was told to come back."""
        ended: Counter[str] = Counter()
        for (previous, code), count in self.tries.items():
            ended[code] += count if previous else 0
        return ended


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    directory = tmp_path_factory.mktemp("pushback")
    policy = directory / "policy.json"
    policy.write_text(json.dumps(POLICY))
    config = StackConfig(directory, policy=str(policy), sample_ratio=0.0)
    async with Stack(config) as running, grpc.aio.insecure_channel(running.addresses.downstream) as direct:
        capacity = fault_pb2.Capacity(workers=WORKERS, queue_size=1000)
        capacity.service_time.FromMilliseconds(SERVICE_MS)
        await fault_pb2_grpc.FaultServiceStub(direct).SetFaults(fault_pb2.SetFaultsRequest(capacity=capacity))
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def witness(stack: Stack) -> AsyncIterator[tuple[Witness, str]]:
    options = [("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(stack.addresses.relay, options=options) as channel:
        witness = Witness(channel)
        server = grpc.aio.server(handlers=(witness,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield witness, f"127.0.0.1:{port}"
        finally:
            await server.stop(0)


async def offer(target: str, times_s: Iterator[float], timeout_s: float) -> Counter[str]:
    """Make a call at each of these moments, with grpcio's own retries; how the calls ended."""
    ended: Counter[str] = Counter()
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]

    async def one(payments: Any) -> None:
        request = payment_pb2.ChargeRequest(account="acme", amount_minor=1, currency="EUR")
        try:
            await payments.Charge(request, timeout=timeout_s)
            ended["OK"] += 1
        except grpc.aio.AioRpcError as error:
            ended[error.code().name] += 1

    async with grpc.aio.insecure_channel(target, options=options) as channel:
        payments = payment_pb2_grpc.PaymentServiceStub(channel)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.TaskGroup() as group:
            for at_s in times_s:
                await asyncio.sleep(max(0.0, began_s + at_s - loop.time()))
                group.create_task(one(payments))
    return ended


def poisson(rng: random.Random, *steps: tuple[float, float]) -> Iterator[float]:
    """Moments of independent callers: steps of a rate and its seconds, one after another."""
    at_s = end_s = 0.0
    for per_s, for_s in steps:
        at_s, end_s = end_s, end_s + for_s
        while (at_s := at_s + rng.expovariate(per_s)) < end_s:
            yield at_s


@pytest.mark.parametrize("steps", [((20,1.0),(200,1.5),(20,6.0)), ((100,8.0),), ((150,8.0),), ((65,8.0),)])
async def test_who_comes_back_when_told_is_served(witness, steps) -> None:
    print(f"seed {SEED}")
    seen, address = witness
    ended = await offer(address, poisson(random.Random(SEED), *steps), timeout_s=15.0)
    print(steps, ended, seen.tries, seen.told, sorted(seen.told_ms)[:: max(1,len(seen.told_ms)//10)])
    t=seen.told
    print("share", t["OK"]/max(1,t.total()))
