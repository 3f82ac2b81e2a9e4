"""Starts the real service as a process, and an event loop whose time needs no waiting."""

import asyncio
import contextlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 20.0
SERVE = (sys.executable, "-m", "downstream_service", "serve")


@dataclass
class Service:
    """A running ``python -m downstream_service serve``."""

    process: subprocess.Popen[bytes]
    address: str
    log_file: Path

    def terminate(self) -> int:
        """Ask it to drain; returns its exit status."""
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)

    def log(self) -> list[dict[str, Any]]:
        """Return what it has logged."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]


StartService = Callable[..., Service]


class Processes:
    """Starts services and sees that every one of them ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._services: list[Service] = []

    def start(self, *options: str, environment: dict[str, str] | None = None) -> Service:
        log_file = self._directory / f"stderr-{len(self._services)}.jsonl"
        # A file and not a pipe: nobody reads while the test runs, and a full pipe would stop the service.
        with log_file.open("wb") as stderr:
            process = subprocess.Popen(
                [*SERVE, "--listen", "127.0.0.1:0", "--ready-json", *options],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
            )
        service = Service(process, "", log_file)
        self._services.append(service)
        line = _first_line(process)
        assert line, f"the service did not start: {log_file.read_text()}"
        ready = json.loads(line)
        assert ready["pid"] == process.pid
        service.address = ready["listen"]
        return service

    def end_all(self) -> None:
        for service in self._services:
            if service.process.poll() is None:
                service.kill()
            if service.process.stdout is not None:
                service.process.stdout.close()


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
    return process.stdout.readline() if readable else b""


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Start services of one's own; they are ended after the test."""
    processes = Processes(tmp_path)
    yield processes.start
    processes.end_all()


@pytest.fixture(scope="module")
def start_module_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartService]:
    """Start services that live as long as the module's tests."""
    processes = Processes(tmp_path_factory.mktemp("downstream"))
    yield processes.start
    processes.end_all()


@pytest.fixture(scope="module")
def shared_service(start_module_service: StartService) -> Service:
    """One service for the tests of a module, which keep apart by keys and accounts of their own."""
    return start_module_service("--seed", "7")


@pytest.fixture
async def mended(shared_service: Service) -> Service:
    """Lend the module's service without faults, for tests that set some."""
    async with connected(shared_service) as stubs:
        await stubs.set_faults()
    return shared_service


@contextlib.asynccontextmanager
async def connected(service: Service) -> AsyncIterator["Stubs"]:
    """Call a service over a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    async with grpc.aio.insecure_channel(service.address, options=options) as channel:
        yield Stubs(channel)


class Stubs:
    """Both services behind one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.payments = payment_pb2_grpc.PaymentServiceStub(channel)
        self.faults = fault_pb2_grpc.FaultServiceStub(channel)

    async def charge(
        self, request: payment_pb2.ChargeRequest, key: str = "", fault: str = ""
    ) -> payment_pb2.ChargeResponse:
        """Charge once, under a key and with a fault if they are given."""
        metadata = [("idempotency-key", key)] if key else []
        metadata += [("fault", fault)] if fault else []
        return await self.payments.Charge(request, metadata=metadata, timeout=CALL_TIMEOUT_S)

    async def set_faults(self, *faults: dict[str, Any], **rest: Any) -> None:
        """Replace the faults, given as JSON."""
        request = json_format.ParseDict({"faults": list(faults), **rest}, fault_pb2.SetFaultsRequest())
        await self.faults.SetFaults(request, timeout=CALL_TIMEOUT_S)

    async def fault_state(self) -> fault_pb2.GetFaultsResponse:
        """Read the faults in force and their strikes."""
        return await self.faults.GetFaults(fault_pb2.GetFaultsRequest(), timeout=CALL_TIMEOUT_S)

    async def counters(self) -> fault_pb2.GetCountersResponse:
        """Read the counters."""
        return await self.faults.GetCounters(fault_pb2.GetCountersRequest(), timeout=CALL_TIMEOUT_S)

    async def counters_when(
        self, met: Callable[[fault_pb2.GetCountersResponse], bool]
    ) -> fault_pb2.GetCountersResponse:
        """Read the counters until they meet a condition."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            while not met(counters := await self.counters()):
                pass
        return counters

    async def all_charges(self, **restriction: Any) -> list[payment_pb2.Charge]:
        """Read the whole ledger, oldest first."""
        charges: list[payment_pb2.Charge] = []
        request = payment_pb2.ListChargesRequest(page_size=1_000, **restriction)
        while True:
            page = await self.payments.ListCharges(request, timeout=CALL_TIMEOUT_S)
            charges += page.charges
            if not page.next_page_token:
                return charges[::-1]
            request.page_token = page.next_page_token


@pytest.fixture
def connect() -> Callable[[Service], contextlib.AbstractAsyncContextManager[Stubs]]:
    """Return the way to call a service."""
    return connected


@pytest.fixture
def purchase() -> Callable[..., payment_pb2.ChargeRequest]:
    """Return a maker of valid charges."""

    def make(account: str = "alice", amount_minor: int = 1_250) -> payment_pb2.ChargeRequest:
        return payment_pb2.ChargeRequest(account=account, amount_minor=amount_minor, currency="EUR")

    return make


class _SkippingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timer, moves the time to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everything waits and no timer is set: this would hang")
        self.now_s += timeout
        return super().select(0)


@pytest.fixture
def in_virtual_time() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Return a runner of coroutines in which an hour of sleep takes no time and time passes only in sleep."""

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        selector = _SkippingSelector()
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = lambda: selector.now_s  # type: ignore[method-assign]
        try:
            return loop.run_until_complete(coroutine)
        finally:
            loop.close()

    return run
