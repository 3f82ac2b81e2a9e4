"""Relays on one store before one downstream: processes that can be killed, stopped and started again."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.json_format import ParseDict

from chaos.downstream import Downstream
from chaos.processes import ManagedProcess
from protos.downstream.v1 import fault_pb2, payment_pb2, payment_pb2_grpc
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

METHOD = "downstream.v1.PaymentService/Charge"
CHANNEL_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
FREE = "127.0.0.1:0"
BOUND_S = 30.0


def policy_of(safety: str = "KEYED", lease: str = "10s", **idempotency: Any) -> dict[str, Any]:
    charge = [{"service": "downstream.v1.PaymentService", "method": "Charge"}]
    method = {"name": charge, "safety": safety, "unary": True, "idempotency": idempotency}
    return {"relay": {"preset": "default", "methods": [method], "keys": {"lease": lease}}}


@dataclass
class Member:
    """A process with a stable address."""

    process: ManagedProcess
    command: list[str]
    address: str = FREE
    admin: str = FREE
    pid: int = 0
    channel: grpc.aio.Channel | None = None

    async def start(self, *more: str) -> None:
        ready = await self.process.start([*self.command, *self._where(), *more])
        self.address = ready.get("relay") or ready["listen"]
        self.admin = ready.get("admin", "")
        self.pid = ready.get("pid", 0)
        self.channel = grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)

    async def start_again(self, *more: str) -> None:
        """kill -9, if it still runs, and start at the same address; callers keep their channel."""
        await self.process.kill()
        await self.process.start([*self.command, *self._where(), *more])

    async def is_stopped(self) -> bool:
        """Whether the process is stopped (SIGSTOP), as the system sees it."""
        ps = await asyncio.create_subprocess_exec(
            "ps", "-o", "stat=", "-p", str(self.pid), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await ps.communicate()
        return out.startswith(b"T")

    def _where(self) -> list[str]:
        is_relay = "relay_service" in self.command
        return ["--listen", self.address, *(["--admin-listen", self.admin] if is_relay else [])]

    async def stop(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        await self.process.stop()

    @property
    def payments(self) -> Any:
        assert self.channel is not None
        return payment_pb2_grpc.PaymentServiceStub(self.channel)


@dataclass
class Site:
    """The downstream, its ledger, and the relays before it."""

    run_dir: Path
    store: str
    relays: list[Member] = field(default_factory=list)
    downstream: Member | None = None

    async def start(
        self, policy: dict[str, Any], relays: int = 1, *downstream_args: str, first: Sequence[str] = ()
    ) -> "Site":
        """Everything, the first relay with these arguments besides; the result is the site itself."""
        serve = [sys.executable, "-m", "downstream_service", "serve", "--ready-json"]
        ledger = ["--ledger", str(self.run_dir / "ledger.sqlite")]
        process = ManagedProcess("downstream", self.run_dir / "downstream.log")
        self.downstream = Member(process, [*serve, *ledger, *downstream_args])
        await self.downstream.start()
        (self.run_dir / "policy.json").write_text(json.dumps(policy))
        added = [
            self._add("--store", self.store, *(first if number == 0 else ())) for number in range(relays)
        ]
        await asyncio.gather(*(relay.start() for relay in added))
        return self

    async def add_relay(self, *more: str) -> Member:
        """One more relay, with these arguments besides the usual ones."""
        relay = self._add(*more)
        await relay.start()
        return relay

    def _add(self, *more: str) -> Member:
        assert self.downstream is not None
        name = f"relay-{len(self.relays)}"
        command = [
            *(sys.executable, "-m", "relay_service", "serve", "--ready-json", "--http-listen", FREE),
            *("--policy", str(self.run_dir / "policy.json"), "--upstream", self.downstream.address),
            *more,
        ]
        relay = Member(ManagedProcess(name, self.run_dir / f"{name}.log"), command)
        self.relays.append(relay)
        return relay

    async def stop(self) -> None:
        await asyncio.gather(*(relay.stop() for relay in self.relays))
        if self.downstream is not None:
            await self.downstream.stop()

    async def set_faults(self, *faults: dict[str, Any]) -> None:
        assert self.downstream is not None
        request = ParseDict({"faults": list(faults)}, fault_pb2.SetFaultsRequest())
        async with Downstream(self.downstream.address) as downstream:
            await downstream.set_faults(request)

    async def effects(self) -> Counter[str]:
        """Ledger entries by account: tests use one account for each key."""
        assert self.downstream is not None
        channel = grpc.aio.insecure_channel(self.downstream.address, CHANNEL_OPTIONS)
        accounts: Counter[str] = Counter()
        token = ""
        async with channel:
            stub = payment_pb2_grpc.PaymentServiceStub(channel)
            while True:
                request = payment_pb2.ListChargesRequest(page_size=1000, page_token=token)
                page = await stub.ListCharges(request, timeout=BOUND_S, wait_for_ready=True)
                accounts.update(charge.account for charge in page.charges)
                token = page.next_page_token
                if not token:
                    return accounts

    async def ambiguous(self, relay: int = 0) -> dict[str, Any]:
        """The keys whose outcome is unknown, as a relay lists them."""
        found: dict[str, Any] = {}
        token = ""
        async with grpc.aio.insecure_channel(self.relays[relay].admin) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            while True:
                request = admin_pb2.ListAmbiguousRequest(page_size=500, page_token=token)
                page = await stub.ListAmbiguous(request, timeout=BOUND_S)
                found |= {record.key: record for record in page.records}
                token = page.next_page_token
                if not token:
                    return found

    async def keys(self, relay: int) -> Any:
        """What a relay counts of its keys."""
        async with grpc.aio.insecure_channel(self.relays[relay].admin) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            return (await stub.GetStats(admin_pb2.GetStatsRequest(), timeout=BOUND_S)).stats.keys

    async def record(self, key: str, relay: int = 0) -> Any:
        """One key as a relay knows it; None when it knows nothing."""
        async with grpc.aio.insecure_channel(self.relays[relay].admin) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            request = admin_pb2.GetIdempotencyRecordRequest(method=METHOD, key=key)
            try:
                return (await stub.GetIdempotencyRecord(request, timeout=BOUND_S)).record
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                raise


@dataclass
class Told:
    """What one call came to."""

    code: grpc.StatusCode
    reply: bytes
    trailers: dict[str, Any]
    message: str = ""

    @property
    def status(self) -> str:
        return self.trailers.get("idempotency-status", "")

    @property
    def decision(self) -> str:
        return self.trailers.get("relay-decision", "")


async def charge(
    member: Member, key: str | None, *, account: str = "", amount: int = 100, timeout_s: float = 10.0
) -> Told:
    """One charge through a relay; by default the key names the account."""
    request = payment_pb2.ChargeRequest(
        account=account or key or "nobody", amount_minor=amount, currency="EUR"
    )
    metadata = [("idempotency-key", key)] if key is not None else []
    call = member.payments.Charge(request, timeout=timeout_s, metadata=metadata, wait_for_ready=True)
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return Told(error.code(), b"", dict(error.trailing_metadata() or ()), error.details() or "")
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return Told(grpc.StatusCode.CANCELLED, b"", {}, "the channel was closed")
    return Told(grpc.StatusCode.OK, reply.SerializeToString(), dict(await call.trailing_metadata()))


async def until(true: Callable[[], Awaitable[bool]], within_s: float = BOUND_S) -> None:
    """Wait until something has come true; it is asked for 20 times a second."""
    async with asyncio.timeout(within_s):
        while not await true():  # noqa: ASYNC110 (another process's state has no event here)
            await asyncio.sleep(0.05)
