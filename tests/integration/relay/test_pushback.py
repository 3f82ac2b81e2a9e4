"""A stock gRPC client before an overloaded relay: what it is told about coming back is true.

The client is grpcio as it is, with a ``retryPolicy`` in its service config: it waits for as long as
``grpc-retry-pushback-ms`` says and tries again by itself, which no application sees. The relay's spans do:
every try is a SERVER span of its own, and all tries of a call belong to the trace that its metadata names.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from chaos.stack import Stack, StackConfig
from chaos.traces import read_traces
from chaos.tracing import STATUS_CODE_KEY
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc

SEED = 1
WORKERS, SERVICE_MS = 3, 60
CAPACITY_PER_S = 1000 * WORKERS / SERVICE_MS
TIMEOUT_S = 15.0
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
SPIKE = ((20.0, 1.0), (200.0, 1.0), (20.0, 3.0))
"""Four times the capacity for a second, then two fifths of it: calls a second, and seconds."""
LASTING = ((2 * CAPACITY_PER_S, 5.0),)
"""Twice the capacity: half of the callers can only be served later, while new ones go on coming."""


def poisson(rng: random.Random, *steps: tuple[float, float]) -> Iterator[float]:
    """Moments of independent callers: steps of a rate and its seconds, one after another."""
    end_s = 0.0
    for per_s, for_s in steps:
        at_s, end_s = end_s, end_s + for_s
        while (at_s := at_s + rng.expovariate(per_s)) < end_s:
            yield at_s


async def offer(relay: str, times_s: Iterator[float], rng: random.Random) -> Counter[str]:
    """Make a call at each of these moments, with grpcio's own retries; how the calls ended."""
    ended: Counter[str] = Counter()
    request = payment_pb2.ChargeRequest(account="acme", amount_minor=1, currency="EUR")

    async def one(payments: Any) -> None:
        traceparent = f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01"
        try:
            await payments.Charge(request, timeout=TIMEOUT_S, metadata=(("traceparent", traceparent),))
            ended["OK"] += 1
        except grpc.aio.AioRpcError as error:
            ended[error.code().name] += 1

    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    async with grpc.aio.insecure_channel(relay, options=options) as channel:
        payments = payment_pb2_grpc.PaymentServiceStub(channel)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.TaskGroup() as group:
            for at_s in times_s:
                await asyncio.sleep(max(0.0, began_s + at_s - loop.time()))
                group.create_task(one(payments))
    return ended


def told_tries(spans_file: Path) -> Counter[bool]:
    """Of the tries after a call's first, which all were told when to come: how many were served, or not."""
    told: Counter[bool] = Counter()
    for spans in read_traces([spans_file]).values():
        tries = sorted((span for span in spans if span.kind == "SERVER"), key=lambda span: span.begin_unix_ns)
        told.update(str(span.attributes.get(STATUS_CODE_KEY)) == "OK" for span in tries[1:])
    return told


@pytest.mark.parametrize("steps", [SPIKE, LASTING], ids=["spike", "lasting"])
async def test_nine_in_ten_who_come_back_when_told_are_served(
    tmp_path: Path, steps: tuple[tuple[float, float], ...]
) -> None:
    # Without turns of their own 69 % are served in a lasting overload.
    await check_told(tmp_path, SEED, steps, least=0.9)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(11, 16))
@pytest.mark.parametrize("steps", [SPIKE, LASTING], ids=["spike", "lasting"])
async def test_nearly_all_who_come_back_when_told_are_served(
    tmp_path: Path, steps: tuple[tuple[float, float], ...], seed: int
) -> None:
    await check_told(tmp_path, seed, steps, least=0.97)


async def check_told(
    folder: Path, seed: int, steps: tuple[tuple[float, float], ...], *, least: float
) -> None:
    policy = folder / "policy.json"
    policy.write_text(json.dumps(POLICY))
    config = StackConfig(folder, policy=str(policy), seed=seed)
    rng = random.Random(seed)
    async with Stack(config) as stack, grpc.aio.insecure_channel(stack.addresses.downstream) as direct:
        capacity = fault_pb2.Capacity(workers=WORKERS, queue_size=1000)
        capacity.service_time.FromMilliseconds(SERVICE_MS)
        await fault_pb2_grpc.FaultServiceStub(direct).SetFaults(fault_pb2.SetFaultsRequest(capacity=capacity))
        ended = await offer(stack.addresses.relay, poisson(rng, *steps), rng)
    # The relay wrote its last spans as it ended.
    told = told_tries(config.trace_files[0])
    print(f"seed {seed}: {told[True]} of {told.total()} told retries were served; calls: {ended}")
    assert told.total() >= 50, "too few were told to come back to say anything"
    assert told[True] >= least * told.total()
