"""Two real services behind one relay, each in its compartment: one hangs, and the other does not notice."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from protos.downstream.v1 import payment_pb2

PAYMENTS = "downstream.v1.PaymentService"
CHARGE = f"{PAYMENTS}/Charge"
WORKERS, QUEUE = 3, 2


def policy(known: dict[str, Any]) -> dict[str, Any]:
    """Charge goes to the one that will hang, all else to the other."""
    upstreams = {name: {"target": one.target} for name, one in known.items()}
    upstreams["hangs"]["bulkhead"] = {"workers": WORKERS, "queueCapacity": QUEUE}
    return {
        "relay": {
            "preset": "payments-demo",
            "upstreams": upstreams,
            "routes": [
                {"service": PAYMENTS, "method": "Charge", "upstream": "hangs"},
                {"upstream": "well"},
            ],
            "admission": {"workers": WORKERS, "queueCapacity": QUEUE},
            "bulkhead": {},
            "methods": [{"name": [{}], "attemptTimeout": "60s"}],
            "off": ["breaker"],
        }
    }


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    raise AssertionError(status)


async def test_an_upstream_that_hangs_fills_its_compartment_and_no_other(sites, a_charge) -> None:
    site = await sites.start("hangs", "well", policy=policy)
    await site.downstreams["hangs"].set_faults({"hang": {}, "methods": [CHARGE]})
    hanging = [
        asyncio.ensure_future(site.payments.Charge(a_charge(), timeout=60)) for _ in range(WORKERS + QUEUE)
    ]

    def is_full(stats: Any) -> bool:
        queue = stats.upstreams[0].bulkheads[0].queue
        return (queue.workers_busy, queue.length) == (WORKERS, QUEUE)

    stats = await site.until(is_full)
    assert (stats.upstreams[0].name, stats.upstreams[0].bulkheads[0].methods) == ("hangs", "")
    assert stats.queue.workers_busy == 0
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await site.payments.Charge(a_charge(), timeout=8)
    info = error_info(refused.value)
    assert (refused.value.code(), info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert dict(info.metadata) == {"method": CHARGE, "bulkhead": "hangs"}
    served = [
        await site.payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=10) for _ in range(20)
    ]
    assert len(served) == 20
    stats = await site.stats()
    well = stats.upstreams[1]
    assert sum(one.taken for one in well.bulkheads[0].queue.classes) == 20
    for call in hanging:
        call.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    await site.until(lambda stats: stats.upstreams[0].bulkheads[0].queue.workers_busy == 0)
