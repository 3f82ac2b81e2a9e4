"""An upstream that answers nothing but failures, and the breaker in front of it, as real processes."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

Charge = Callable[..., payment_pb2.ChargeRequest]


async def breaker_of(lab: Any) -> admin_pb2.Breaker:
    async with grpc.aio.insecure_channel(lab.stack.addresses.relay_admin) as channel:
        reply = await admin_pb2_grpc.AdminServiceStub(channel).GetStats(
            admin_pb2.GetStatsRequest(), timeout=5
        )
    (breaker,) = reply.stats.upstreams[0].breakers
    return breaker


async def whole(lab: Any, within_s: float) -> None:
    """Wait, with a call now and then to probe with, until the breaker lets everything through."""

    async def call_and_look() -> None:
        await lab.payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=1)
        if (await breaker_of(lab)).share < 1.0:
            raise TimeoutError

    async with asyncio.timeout(within_s):
        while True:
            try:
                return await call_and_look()
            except (grpc.aio.AioRpcError, TimeoutError):
                await asyncio.sleep(0.02)


async def test_a_dead_upstream_is_left_alone_and_service_returns_by_itself(
    lab: Any, a_charge: Charge
) -> None:
    await lab.set_faults({"failure": {"code": 14}})
    before = await breaker_of(lab)
    calls = [lab.payments.Charge(a_charge("dead"), timeout=10) for _ in range(60)]
    await asyncio.gather(*calls, return_exceptions=True)
    # Every caller was turned away or failed; whoever comes now is turned away or is the one that probes.
    errors = []
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await lab.payments.Charge(a_charge("dead"), timeout=10)
        errors.append(caught.value)
    opened = await breaker_of(lab)
    assert opened.opened > before.opened
    assert opened.cause in ("FAILURE_RATIO", "PROBE_FAILED")
    refused = [error for error in errors if dict(error.trailing_metadata())["relay-attempts"] == "0"]
    assert len(refused) >= 15, "at most one a second is let through as a probe"
    for error in refused:
        trailers = dict(error.trailing_metadata())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert (trailers["relay-decision"], trailers["relay-origin"]) == ("BREAKER_OPEN", "relay")
        assert trailers["relay-outcome"] == "not-executed"
        assert int(trailers["grpc-retry-pushback-ms"]) <= 1600
    await lab.set_faults()
    # 1 s open, three probes, 2 s of ramp; the rest is for this machine.
    await whole(lab, within_s=3.0 + 3.0)
    await lab.payments.Charge(a_charge("alive"), timeout=2)
    assert await lab.charges("dead") == 0
