"""Overload in real processes: the downstream works under its capacity model, and nobody tells the relay."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from chaos.stack import Stack, StackConfig
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKERS, SERVICE_MS = 2, 40
CAPACITY_PER_S = 1000 * WORKERS / SERVICE_MS
TIMEOUT_S = 1.0
QUOTA = {"ratePerSecond": 10, "burst": 10}
POLICY = {
    "relay": {
        "preset": "payments-demo",
        "admission": {"limit": {"kind": "gradient", "initial": 8}},
        "clients": {"named": {"noisy": QUOTA}},
    }
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    directory = tmp_path_factory.mktemp("overload")
    policy = directory / "policy.json"
    policy.write_text(json.dumps(POLICY))
    config = StackConfig(directory, policy=str(policy), sample_ratio=0.0)
    async with Stack(config) as running, grpc.aio.insecure_channel(running.addresses.downstream) as direct:
        capacity = fault_pb2.Capacity(workers=WORKERS, queue_size=1000)
        capacity.service_time.FromMilliseconds(SERVICE_MS)
        faults = fault_pb2_grpc.FaultServiceStub(direct)
        await faults.SetFaults(fault_pb2.SetFaultsRequest(capacity=capacity))
        yield running


@dataclass
class Callers:
    """Callers of one kind, who send at a rate whatever becomes of their calls."""

    rate_per_s: float
    metadata: tuple[tuple[str, str], ...]
    ended: Counter[str] = field(default_factory=Counter)
    pushbacks_ms: list[int] = field(default_factory=list)
    details: bytes = b""

    @property
    def ok_share(self) -> float:
        return self.ended["OK"] / self.ended.total()

    async def send(self, payments: Any, seconds: float, request: payment_pb2.ChargeRequest) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.TaskGroup() as group:
            for number in range(round(seconds * self.rate_per_s)):
                # Paced from the start, so that a late wake-up does not lower the rate.
                await asyncio.sleep(max(0.0, started + number / self.rate_per_s - loop.time()))
                group.create_task(self._one(payments, request))

    async def _one(self, payments: Any, request: payment_pb2.ChargeRequest) -> None:
        try:
            await payments.Charge(request, timeout=TIMEOUT_S, metadata=self.metadata)
            self.ended["OK"] += 1
        except grpc.aio.AioRpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            self.ended[str(trailers.get("relay-decision", error.code().name))] += 1
            self.details = trailers.get("grpc-status-details-bin", self.details)  # type: ignore[assignment]
            if "grpc-retry-pushback-ms" in trailers:
                self.pushbacks_ms.append(int(trailers["grpc-retry-pushback-ms"]))


async def flood(stack: Stack, seconds: float, *callers: Callers) -> None:
    async with grpc.aio.insecure_channel(stack.addresses.relay, [("grpc.enable_retries", 0)]) as channel:
        payments = payment_pb2_grpc.PaymentServiceStub(channel)
        request = payment_pb2.ChargeRequest(account="flood", amount_minor=1, currency="EUR")
        async with asyncio.TaskGroup() as group:
            for each in callers:
                group.create_task(each.send(payments, seconds, request))


async def counters(stack: Stack) -> Any:
    async with grpc.aio.insecure_channel(stack.addresses.downstream) as direct:
        faults = fault_pb2_grpc.FaultServiceStub(direct)
        return await faults.GetCounters(fault_pb2.GetCountersRequest(), timeout=5)


async def queue(stack: Stack) -> admin_pb2.Queue:
    async with grpc.aio.insecure_channel(stack.addresses.relay_admin) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        return (await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=5)).stats.queue


async def test_critical_calls_are_served_under_a_twelvefold_flood_of_sheddable_ones(stack: Stack) -> None:
    critical = Callers(0.5 * CAPACITY_PER_S, (("relay-criticality", "CRITICAL"),))
    rest = Callers(11.5 * CAPACITY_PER_S, (("relay-criticality", "SHEDDABLE"),))
    # The service is seen at rest first, as it is before a flood.
    await flood(stack, 1.0, Callers(0.5 * CAPACITY_PER_S, ()))
    before = await counters(stack)
    await flood(stack, 4.0, critical, rest)
    after = await counters(stack)
    worked = after.calls - before.calls
    in_vain = after.wasted - before.wasted
    print(f"critical {critical.ended}, sheddable {rest.ended}, in vain {in_vain} of {worked}")
    assert critical.ok_share >= 0.99
    assert rest.ok_share < 0.15, "what is left of the capacity"
    assert in_vain < 0.01 * worked


async def test_a_client_far_over_its_quota_costs_the_others_next_to_nothing(stack: Stack) -> None:
    """Twenty times as much as it may, beside callers who use half of what the service can do."""
    noisy = Callers(20.0 * QUOTA["ratePerSecond"], (("relay-client-id", "noisy"),))
    alone, others = (Callers(0.5 * CAPACITY_PER_S, (("relay-client-id", "modest"),)) for _ in range(2))
    # What an earlier flood left behind is served first, and the others are seen without the noise.
    await flood(stack, 1.0, Callers(0.5 * CAPACITY_PER_S, ()))
    await flood(stack, 4.0, alone)
    await flood(stack, 4.0, noisy, others)
    print(f"noisy {noisy.ended}, others {others.ended}, alone {alone.ended}")
    assert others.ok_share >= alone.ok_share - 0.05
    assert others.ok_share >= 0.8
    assert noisy.ended["OK"] <= 4.0 * QUOTA["ratePerSecond"] + QUOTA["burst"] + 5
    assert noisy.ended["CLIENT_QUOTA"] > 0.8 * noisy.ended.total()
    assert 0 < max(noisy.pushbacks_ms) <= 1.5 * 1000 / QUOTA["ratePerSecond"]
    assert b"client:noisy" in noisy.details
    (quota,) = (await queue(stack)).client_quotas
    assert (quota.client, quota.granted) == ("noisy", noisy.ended.total() - noisy.ended["CLIENT_QUOTA"])
    assert quota.refused == noisy.ended["CLIENT_QUOTA"]
