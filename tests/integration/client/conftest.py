"""A practice service of the test's own, and a policy that waits next to nothing."""

import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict

from chaos.processes import ManagedProcess
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc
from relay_service.core.evidence import Safety
from relay_service.core.policy import MethodPolicy, RelayPolicy, RetryPolicy, UpstreamPolicy

SERVICE = "downstream.v1.PaymentService"


@dataclass
class Downstream:
    target: str
    channel: grpc.aio.Channel

    @property
    def payments(self) -> Any:
        return payment_pb2_grpc.PaymentServiceStub(self.channel)

    async def set_faults(self, *faults: dict[str, Any]) -> None:
        request = ParseDict({"faults": list(faults)}, fault_pb2.SetFaultsRequest())
        await fault_pb2_grpc.FaultServiceStub(self.channel).SetFaults(request)

    async def charges(self) -> int:
        return (await self.payments.ListCharges(payment_pb2.ListChargesRequest(page_size=1))).total_charges


@pytest_asyncio.fixture
async def downstream(tmp_path: Path) -> AsyncIterator[Downstream]:
    process = ManagedProcess("downstream", tmp_path / "downstream.log")
    ready = await process.start(
        [sys.executable, "-m", "downstream_service", "serve", "--ready-json", "--listen=127.0.0.1:0"]
    )
    try:
        async with grpc.aio.insecure_channel(ready["listen"]) as channel:
            yield Downstream(ready["listen"], channel)
    finally:
        await process.stop()


QUICK = RetryPolicy(max_attempts=4, initial_backoff_s=0.001, max_backoff_s=0.002)


@pytest.fixture
def policy() -> Callable[..., RelayPolicy]:
    """A policy of the two methods that the tests call; keywords change it, ``method_`` ones the methods."""

    def make(**changes: Any) -> RelayPolicy:
        method = {key.removeprefix("method_"): changes.pop(key) for key in list(changes) if "method_" in key}
        base = {"retry": QUICK} | method
        methods = {
            f"{SERVICE}/Charge": MethodPolicy(safety=Safety.KEYED, **base),
            f"{SERVICE}/ListCharges": MethodPolicy(safety=Safety.NO_SIDE_EFFECTS, **base),
            "": MethodPolicy(**base),
        }
        return RelayPolicy("client", {"upstream": UpstreamPolicy("unused:1")}, methods, **changes)

    return make


@pytest.fixture
def a_charge() -> payment_pb2.ChargeRequest:
    return payment_pb2.ChargeRequest(account="alice", amount_minor=100, currency="EUR")
