"""The adaptive throttle between real processes."""

import asyncio
from typing import Any

import grpc
import grpc.aio

from protos.relay.v1 import admin_pb2

WINDOW_S = 1.0


async def test_an_upstream_that_refuses_most_is_asked_less_and_all_is_let_through_once_it_is_well(
    sites, a_charge
) -> None:
    def policy(known: dict[str, Any]) -> dict[str, Any]:
        return {
            "relay": {
                "preset": "payments-demo",
                "upstreams": {"one": {"target": known["one"].target}},
                "adaptiveThrottle": {"window": f"{WINDOW_S}s"},
                "off": ["retry", "breaker"],
            }
        }

    site = await sites.start("one", policy=policy)
    await site.downstreams["one"].set_faults({"failure": {"code": 8}, "probability": 0.95})

    async def one_call() -> grpc.aio.AioRpcError | None:
        try:
            await site.payments.Charge(a_charge(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error
        return None

    held_back = []
    while len(held_back) < 20:
        errors = await asyncio.gather(*(one_call() for _ in range(10)))
        trailers = [(error, dict(error.trailing_metadata())) for error in errors if error]
        held_back += [one for one in trailers if one[1]["relay-decision"] == "ADAPTIVE_THROTTLE"]
    error, told = held_back[0]
    assert (error.code(), told["relay-origin"], told["relay-outcome"]) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "relay",
        "not-executed",
    )
    assert int(told["grpc-retry-pushback-ms"]) > 0
    stats = (await site.admin(lambda admin: admin.GetStats(admin_pb2.GetStatsRequest()))).stats
    (throttle,) = stats.upstreams[0].throttles
    assert throttle.criticality == "CRITICAL"
    assert throttle.refused >= 20
    assert stats.calls.by_reason["ADAPTIVE_THROTTLE"] == throttle.refused

    await site.downstreams["one"].set_faults()
    loop = asyncio.get_running_loop()
    healed_at, in_a_row = loop.time(), 0
    while in_a_row < 100:
        in_a_row = 0 if await one_call() else in_a_row + 1
        assert loop.time() - healed_at < 20 * WINDOW_S
