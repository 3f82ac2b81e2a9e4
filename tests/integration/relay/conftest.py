"""The whole stack as real processes, shared by the tests of a module; each test starts from a healthy one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict

from chaos.stack import Stack, StackConfig
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc
from tests.programs import find_or_skip

CHANNEL_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]


@dataclass
class Lab:
    """A running stack and ways to reach its parts."""

    stack: Stack
    relay: grpc.aio.Channel
    direct: grpc.aio.Channel

    @property
    def payments(self) -> Any:
        """The payment service, through the relay."""
        return payment_pb2_grpc.PaymentServiceStub(self.relay)

    @property
    def ledger(self) -> Any:
        """The payment service, asked directly."""
        return payment_pb2_grpc.PaymentServiceStub(self.direct)

    @property
    def faults(self) -> Any:
        return fault_pb2_grpc.FaultServiceStub(self.direct)

    async def set_faults(self, *faults: dict[str, Any], **rest: Any) -> None:
        """Replace the downstream's faults; each as in the protobuf JSON of ``Fault``."""
        request = ParseDict({"faults": list(faults), **rest}, fault_pb2.SetFaultsRequest())
        await self.faults.SetFaults(request)

    async def heal(self) -> None:
        """No faults, no toxics, and the relay connected."""
        await self.faults.ClearFaults(fault_pb2.ClearFaultsRequest())
        await asyncio.to_thread(self.stack.toxiproxy.client.reset)
        await self.eventually(lambda: self.payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=1))

    @staticmethod
    async def eventually(call: Callable[[], Any], within_s: float = 5.0) -> float:
        """Call until it succeeds; how long that took."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            try:
                await call()
                return loop.time() - started
            except grpc.aio.AioRpcError:
                if loop.time() - started > within_s:
                    raise
                await asyncio.sleep(0.02)

    async def charges(self, account: str) -> int:
        """Ledger entries of an account."""
        reply = await self.ledger.ListCharges(payment_pb2.ListChargesRequest(account=account, page_size=1000))
        return len(reply.charges)

    async def counters(self) -> Any:
        return await self.faults.GetCounters(fault_pb2.GetCountersRequest())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    config = StackConfig(tmp_path_factory.mktemp("stack"), policy="payments-demo")
    async with Stack(config) as stack:
        relay = grpc.aio.insecure_channel(stack.addresses.relay, CHANNEL_OPTIONS)
        direct = grpc.aio.insecure_channel(stack.addresses.downstream, CHANNEL_OPTIONS)
        async with relay, direct:
            yield Lab(stack, relay, direct)


@pytest_asyncio.fixture(loop_scope="module")
async def lab(shared_lab: Lab) -> Lab:
    await shared_lab.heal()
    return shared_lab


@pytest.fixture
def grpcurl() -> str:
    return find_or_skip("grpcurl", "it comes with requirements.lock")


def charge(account: str = "alice", amount: int = 100) -> payment_pb2.ChargeRequest:
    return payment_pb2.ChargeRequest(account=account, amount_minor=amount, currency="EUR")


@pytest.fixture
def a_charge() -> Callable[..., payment_pb2.ChargeRequest]:
    return charge
