"""A relay with one worker and no queue: what it refuses, how it drains, and what its callers see of both."""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from chaos.stack import Member, Stack, StackConfig
from chaos.traces import depth_first, read_traces
from protos.downstream.v1 import payment_pb2, payment_pb2_grpc
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

Charge = Callable[..., payment_pb2.ChargeRequest]

POLICY = {"relay": {"preset": "payments-demo", "admission": {"queueCapacity": 0, "workers": 1}}}
CHARGE = "downstream.v1.PaymentService/Charge"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    directory = tmp_path_factory.mktemp("small")
    policy = directory / "policy.json"
    policy.write_text(json.dumps(POLICY))
    async with Stack(StackConfig(directory, policy=str(policy))) as stack:
        yield stack


def slow(seconds: float) -> tuple[tuple[str, str], ...]:
    """Metadata that makes this one call slow at the downstream."""
    return (("fault", json.dumps({"latency": {"fixed": f"{seconds}s"}})),)


async def in_flight(stack: Stack, count: int) -> None:
    """Wait until the relay's one worker is as busy as said."""
    async with grpc.aio.insecure_channel(stack.addresses.relay_admin) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        async with asyncio.timeout(5):
            while (await admin.GetStats(admin_pb2.GetStatsRequest())).stats.queue.workers_busy != count:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.01)


async def refused(stack: Stack) -> int:
    """Calls that found the queue full so far."""
    async with grpc.aio.insecure_channel(stack.addresses.relay_admin) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        reply = await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=5)
    return int(reply.stats.calls.by_reason["QUEUE_FULL"])


async def test_grpcurl_shows_when_to_return_to_a_full_relay(
    small: Stack, a_charge: Charge, grpcurl: str
) -> None:
    async with grpc.aio.insecure_channel(small.addresses.relay) as channel:
        payments = payment_pb2_grpc.PaymentServiceStub(channel)
        call = payments.Charge(a_charge("long"), metadata=slow(4.0), timeout=20)
        await in_flight(small, 1)
        done = await asyncio.to_thread(
            subprocess.run,
            [
                *(grpcurl, "-plaintext", "-v"),
                *("-d", '{"account": "shed", "amountMinor": "1", "currency": "EUR"}'),
                *(small.addresses.relay, CHARGE),
            ],
            capture_output=True,
            text=True,
            timeout=20,
        )
        await call
    assert done.returncode == 64 + grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert "QUEUE_FULL" in done.stderr
    for shown in ("google.rpc.ErrorInfo", "google.rpc.RetryInfo", "google.rpc.QuotaFailure", "retry_delay"):
        assert shown in done.stderr, done.stderr
    assert "grpc-retry-pushback-ms" in done.stdout


async def test_a_stock_client_that_obeys_the_pushback_gets_through(small: Stack, a_charge: Charge) -> None:
    service_config = {
        "methodConfig": [
            {
                "name": [{"service": "downstream.v1.PaymentService"}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.01s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
    options = [("grpc.service_config", json.dumps(service_config)), ("grpc.enable_retries", 1)]
    async with grpc.aio.insecure_channel(small.addresses.relay, options) as channel:
        payments = payment_pb2_grpc.PaymentServiceStub(channel)
        # Some departures first, so that the relay knows how fast it drains.
        for _ in range(20):
            await payments.Charge(a_charge("warm"), timeout=5)
        before = await refused(small)
        # One connection keeps their order: the first takes the worker, the second is told when to return.
        first = payments.Charge(a_charge("first"), metadata=slow(0.1), timeout=10)
        second = payments.Charge(a_charge("second"), timeout=10)
        await asyncio.gather(first, second)
        assert await refused(small) > before


async def test_a_trace_holds_the_queue_every_attempt_and_the_downstream(
    small: Stack, a_charge: Charge
) -> None:
    trace_id = "a" * 32
    metadata = (
        ("traceparent", f"00-{trace_id}-{'b' * 16}-01"),
        ("fault", json.dumps({"failure": {"code": 14}, "probability": 0.6})),
    )
    async with grpc.aio.insecure_channel(small.addresses.relay) as channel:
        payments = payment_pb2_grpc.PaymentServiceStub(channel)
        for _ in range(40):
            try:
                call = payments.Charge(a_charge("traced"), metadata=metadata, timeout=10)
                await call
            except grpc.aio.AioRpcError:
                continue
            if dict(await call.trailing_metadata())["relay-attempts"] > "1":
                break
    await small.restart(Member.RELAY)
    await small.restart(Member.DOWNSTREAM)
    spans = [span for span in read_traces(small.config.trace_files)[trace_id] if span.parent_id]
    by_id = {span.span_id: span for span in spans}
    repaired = [
        span
        for span in spans
        if span.service == "relay"
        and span.kind == "SERVER"
        and not span.error
        and span.attributes["relay.attempts"] > 1
    ]
    assert repaired, "no call was repaired by a retry"
    below = [span for _, span in depth_first(spans) if ancestor(span, by_id).span_id == repaired[-1].span_id]
    attempts = [span for span in below if span.service == "relay" and span.kind == "CLIENT"]
    assert len(attempts) == repaired[-1].attributes["relay.attempts"]
    assert [span.error for span in attempts] == [True] * (len(attempts) - 1) + [False]
    executed = [span for span in below if span.service == "downstream"]
    assert {span.parent_id for span in executed} == {span.span_id for span in attempts}
    forward = by_id[attempts[0].parent_id]
    assert (forward.name, forward.parent_id) == ("relay.forward", repaired[-1].span_id)


def ancestor(span: Any, by_id: dict[str, Any]) -> Any:
    """The topmost known span above this one."""
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
    return span


async def test_a_drain_finishes_what_is_in_flight(small: Stack, a_charge: Charge) -> None:
    async with grpc.aio.insecure_channel(small.addresses.relay) as channel:
        payments = payment_pb2_grpc.PaymentServiceStub(channel)
        call = payments.Charge(a_charge("drained"), metadata=slow(3.0), timeout=20)
        await in_flight(small, 1)
        relay = small._process(Member.RELAY)
        started = asyncio.get_running_loop().time()
        relay._signal(signal.SIGTERM)
        reply = await call
        assert reply.charge.account == "drained"
        assert await relay.wait() == 0
        assert asyncio.get_running_loop().time() - started < 15
    await small.restart(Member.RELAY)
