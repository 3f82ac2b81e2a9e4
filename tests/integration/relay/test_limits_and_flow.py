"""Load that is refused honestly, and streams that hold their writers back."""

import asyncio
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

Charge = Callable[..., payment_pb2.ChargeRequest]

PAYMENTS = "downstream.v1.PaymentService"


def rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


async def run_grpcurl(grpcurl: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        lambda: subprocess.run(
            [grpcurl, "-plaintext", *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    )


async def test_grpcurl_lists_the_services_of_relay_and_upstream(lab: Any, grpcurl: str) -> None:
    listed = await run_grpcurl(grpcurl, lab.stack.addresses.relay, "list")
    services = listed.stdout.split()
    assert {PAYMENTS, "downstream.v1.FaultService", "relay.v1.RelayService", "grpc.health.v1.Health"} <= set(
        services
    )
    assert "relay.v1.AdminService" not in services
    methods = await run_grpcurl(grpcurl, lab.stack.addresses.relay, "list", PAYMENTS)
    assert f"{PAYMENTS}.Charge" in methods.stdout


async def test_grpcurl_charges_through_the_relay(lab: Any, grpcurl: str) -> None:
    done = await run_grpcurl(
        grpcurl,
        *("-H", "idempotency-key: k1"),
        *("-d", '{"account": "grpcurl", "amountMinor": "1250", "currency": "EUR"}'),
        lab.stack.addresses.relay,
        f"{PAYMENTS}/Charge",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["charge"]["account"] == "grpcurl"


async def test_grpcurl_shows_why_a_call_was_refused(lab: Any, grpcurl: str) -> None:
    done = await run_grpcurl(
        grpcurl,
        *("-H", f"idempotency-key: {'k' * 300}"),
        *("-d", '{"account": "grpcurl", "amountMinor": "1250", "currency": "EUR"}'),
        lab.stack.addresses.relay,
        f"{PAYMENTS}/Charge",
    )
    assert done.returncode == 64 + grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "IDEMPOTENCY_KEY_INVALID" in done.stderr
    assert "type.googleapis.com/google.rpc.ErrorInfo" in done.stderr


async def test_health_can_be_asked_at_the_relays_address(lab: Any, grpcurl: str) -> None:
    done = await run_grpcurl(grpcurl, lab.stack.addresses.relay, "grpc.health.v1.Health/Check")
    assert json.loads(done.stdout) == {"status": "SERVING"}


async def test_ten_thousand_messages_pass_a_slow_reader_with_flat_memory(lab: Any) -> None:
    pid = lab.stack.pids()["relay"]
    request = payment_pb2.WatchChargesRequest(synthetic=True, max_charges=10_000, padding_bytes=4096)
    call = lab.payments.WatchCharges(request, timeout=60)
    await call.read()
    before = rss_bytes(pid)
    received = 1
    for _ in range(10):
        for _ in range(50):
            await call.read()
            received += 1
        await asyncio.sleep(0.05)  # the reader is slow: the writer could have sent everything many times over
    grown = rss_bytes(pid) - before
    while await call.read() is not grpc.aio.EOF:
        received += 1
    assert received == 10_000
    assert await call.code() is grpc.StatusCode.OK
    assert grown < 8 * 1024 * 1024, f"the relay grew by {grown} bytes while 40 MB waited behind a slow reader"


async def test_a_slow_upstream_holds_an_uploading_caller_back(lab: Any, a_charge: Charge) -> None:
    pid = lab.stack.pids()["relay"]
    proxy = await lab.stack.proxy()
    await asyncio.to_thread(lambda: proxy.add_toxic("bandwidth", stream="upstream", rate=2000))
    before = rss_bytes(pid)
    peak = before

    async def uploads() -> Any:
        nonlocal peak
        for number in range(2000):
            yield payment_pb2.UploadChargesRequest(charge=a_charge("slow-upload"), padding=b"x" * 4096)
            if number % 100 == 0:
                peak = max(peak, rss_bytes(pid))

    reply = await lab.payments.UploadCharges(uploads(), timeout=60)
    assert reply.received == 2000
    assert peak - before < 8 * 1024 * 1024


async def test_stats_add_up(lab: Any, a_charge: Charge) -> None:
    await lab.payments.Charge(a_charge("stats"), timeout=5)
    async with grpc.aio.insecure_channel(lab.stack.addresses.relay_admin) as admin:
        reply = await admin_pb2_grpc.AdminServiceStub(admin).GetStats(admin_pb2.GetStatsRequest(), timeout=5)
    calls = reply.stats.calls
    assert calls.received == calls.ok + calls.errors + calls.refused + calls.cancelled + calls.in_flight
    assert calls.ok > 0
    methods = {method.method for method in reply.stats.methods}
    assert f"{PAYMENTS}/Charge" in methods


async def test_a_thousand_calls_in_flight_are_carried(lab: Any, a_charge: Charge) -> None:
    pid = lab.stack.pids()["relay"]
    await lab.set_faults({"latency": {"fixed": "1s"}})
    calls = [lab.payments.Charge(a_charge("crowd"), timeout=20) for _ in range(1000)]
    replies = await asyncio.gather(*calls)
    assert len(replies) == 1000
    assert rss_bytes(pid) < 150 * 1024 * 1024
