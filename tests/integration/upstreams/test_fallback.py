"""Two real services behind one relay: what the first cannot take goes to the second, and only that."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

CHARGE = "downstream.v1.PaymentService/Charge"


def policy(known: dict[str, Any]) -> dict[str, Any]:
    return {
        "relay": {
            "preset": "payments-demo",
            "upstreams": {
                name: {"target": one.target, "patience": "0s", "reconnectBackoffMax": "0.2s"}
                for name, one in known.items()
            },
            "routes": [{"upstream": "own"}],
            "methods": [{"name": [{}], "fallback": ["spare"]}],
            "breaker": {"consecutiveFailures": 5, "openTime": "0.3s", "rampTime": None, "probeSuccesses": 1},
        }
    }


async def test_calls_go_to_the_spare_while_their_own_is_gone_and_then_return(sites, a_charge) -> None:
    site = await sites.start("own", "spare", policy=policy)
    own, spare = site.downstreams["own"], site.downstreams["spare"]

    async def charge(number: int) -> str:
        call = site.payments.Charge(
            a_charge(), metadata=[("idempotency-key", f"k{number}")], timeout=10, wait_for_ready=False
        )
        await call
        return dict(await call.trailing_metadata())["relay-decision"]

    assert [await charge(number) for number in range(3)] == ["FORWARDED"] * 3
    own_charges = await own.charges()
    await own.process.kill()
    await site.until(lambda stats: stats.upstreams[0].connections == 0)
    gone = await asyncio.gather(*(charge(number) for number in range(100, 130)))
    assert set(gone) == {"FALLBACK"}
    assert (own_charges, await spare.charges()) == (3, 30)
    stats = await site.stats()
    assert {upstream.name: upstream.fallbacks for upstream in stats.upstreams} == {"own": 0, "spare": 30}

    # At the same address, as a restart would be.
    again = await sites.downstream("own-again", f"--listen={own.target}")
    await site.until(lambda stats: stats.upstreams[0].state == "READY")
    async with asyncio.timeout(20):
        number = 1000
        while await charge(number) == "FALLBACK":
            number += 1
    assert await again.charges() == 1


async def test_a_charge_whose_answer_was_lost_is_not_made_again_elsewhere(sites, a_charge) -> None:
    site = await sites.start("own", "spare", policy=policy)
    own, spare = site.downstreams["own"], site.downstreams["spare"]
    await own.set_faults({"crash": {"when": "WHEN_AFTER_EFFECT"}, "methods": [CHARGE]})
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await site.payments.Charge(a_charge(), timeout=10)
    assert dict(failed.value.trailing_metadata())["relay-outcome"] == "unknown"
    assert await spare.charges() == 0
