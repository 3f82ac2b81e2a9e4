"""A relay with a policy file of the test's own, and as many downstreams as it names; all real processes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict

from chaos.processes import ManagedProcess
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

CHANNEL_OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
WAIT_S = 20.0
"""The bound of every wait."""


@dataclass
class Downstream:
    """One practice service."""

    target: str
    channel: grpc.aio.Channel
    process: ManagedProcess

    @property
    def payments(self) -> Any:
        return payment_pb2_grpc.PaymentServiceStub(self.channel)

    async def set_faults(self, *faults: dict[str, Any], **rest: Any) -> None:
        request = ParseDict({"faults": list(faults), **rest}, fault_pb2.SetFaultsRequest())
        await fault_pb2_grpc.FaultServiceStub(self.channel).SetFaults(request)

    async def charges(self) -> int:
        """Entries in its ledger."""
        return (await self.payments.ListCharges(payment_pb2.ListChargesRequest(page_size=1))).total_charges


@dataclass
class Site:
    """The running relay, its policy file, and its upstreams by name."""

    policy_file: Path
    downstreams: dict[str, Downstream]
    relay: grpc.aio.Channel
    admin_address: str
    process: ManagedProcess
    channels: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def payments(self) -> Any:
        return payment_pb2_grpc.PaymentServiceStub(self.relay)

    @property
    def log(self) -> str:
        return self.process.log_path.read_text()

    def write_policy(self, policy: Any) -> None:
        """Put another file in the place of the policy at once, as a deployment would."""
        write_policy(self.policy_file, policy)

    def hang_up(self) -> None:
        """SIGHUP."""
        os.kill(self.process.pid, signal.SIGHUP)

    async def admin(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        async with grpc.aio.insecure_channel(self.admin_address) as channel:
            return await call(admin_pb2_grpc.AdminServiceStub(channel))

    async def stats(self) -> Any:
        return (await self.admin(lambda admin: admin.GetStats(admin_pb2.GetStatsRequest()))).stats

    async def until(self, condition: Callable[[Any], bool]) -> Any:
        """The first stats for which ``condition`` holds."""
        async with asyncio.timeout(WAIT_S), grpc.aio.insecure_channel(self.admin_address) as channel:
            request = ParseDict({"interval": "0.1s"}, admin_pb2.WatchStatsRequest())
            async for look in admin_pb2_grpc.AdminServiceStub(channel).WatchStats(request):
                if condition(look.stats):
                    return look.stats
        raise AssertionError("the relay ended")


def write_policy(path: Path, policy: Any) -> None:
    new = path.with_suffix(".new")
    new.write_text(policy if isinstance(policy, str) else json.dumps(policy))
    new.replace(path)


class Sites:
    """Starts them, and ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._undo = AsyncExitStack()

    async def downstream(self, name: str, *args: str) -> Downstream:
        process = ManagedProcess(name, self._folder / f"{name}.log")
        ready = await process.start(
            [
                sys.executable,
                "-m",
                "downstream_service",
                "serve",
                "--ready-json",
                "--listen=127.0.0.1:0",
                *args,
            ]
        )
        self._undo.push_async_callback(process.stop)
        return Downstream(ready["listen"], await self._channel(ready["listen"]), process)

    async def start(
        self,
        *names: str,
        policy: Callable[[dict[str, Downstream]], Any],
        relay_args: tuple[str, ...] = (),
    ) -> Site:
        """A relay in front of the downstreams ``names``; ``policy`` makes its policy of them."""
        downstreams = dict(zip(names, await asyncio.gather(*map(self.downstream, names)), strict=True))
        policy_file = self._folder / "policy.json"
        write_policy(policy_file, policy(downstreams))
        process = ManagedProcess("relay", self._folder / "relay.log")
        ready = await process.start(
            [
                *(sys.executable, "-m", "relay_service", "serve", "--ready-json", "--seed=1"),
                *("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0"),
                *("--policy", str(policy_file), *relay_args),
            ]
        )
        self._undo.push_async_callback(process.stop)
        relay = await self._channel(ready["relay"])
        return Site(policy_file, downstreams, relay, ready["admin"], process)

    async def _channel(self, address: str) -> grpc.aio.Channel:
        return await self._undo.enter_async_context(grpc.aio.insecure_channel(address, CHANNEL_OPTIONS))

    async def stop(self) -> None:
        await self._undo.aclose()


@pytest_asyncio.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    running = Sites(tmp_path)
    yield running
    await running.stop()


@pytest.fixture
def a_charge() -> Callable[..., payment_pb2.ChargeRequest]:
    def charge(account: str = "alice", amount: int = 100) -> payment_pb2.ChargeRequest:
        return payment_pb2.ChargeRequest(account=account, amount_minor=amount, currency="EUR")

    return charge
