"""What the relay does when the network between it and the downstream breaks."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from chaos.stack import Member
from protos.downstream.v1 import payment_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

Charge = Callable[..., payment_pb2.ChargeRequest]


async def test_a_blackholed_connection_is_left_and_service_returns(lab: Any, a_charge: Charge) -> None:
    loop = asyncio.get_running_loop()
    proxy = await lab.stack.proxy()
    await asyncio.to_thread(lambda: proxy.add_toxic("timeout", timeout=0))
    started = loop.time()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.payments.Charge(a_charge("blackhole"), timeout=5)
    # Without a key the lost attempt may not be repeated, so the answer comes as soon as the connection
    # is known to be dead: that is how long it took to leave it.
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert loop.time() - started < 1.5 + 0.5, "1.5 s are promised; half a second is for this machine"
    await asyncio.to_thread(proxy.remove_toxic, "timeout_downstream")
    back_s = await lab.eventually(lambda: lab.payments.Charge(a_charge("back"), timeout=1))
    assert back_s < 1.0 + 0.5, "1 s is promised"


async def test_resets_under_load_charge_each_key_once(lab: Any, a_charge: Charge) -> None:
    proxy = await lab.stack.proxy()

    async def one(number: int) -> None:
        key = [("idempotency-key", f"reset-{number}")]
        call = lab.payments.Charge(a_charge("resets"), metadata=key, timeout=10)
        await call

    async def flap() -> None:
        for _ in range(3):
            await asyncio.sleep(0.15)
            await asyncio.to_thread(proxy.disable)
            await asyncio.to_thread(proxy.enable)

    async def load() -> list[Any]:
        calls = []
        for number in range(300):
            calls.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0.008)
        return await asyncio.gather(*calls, return_exceptions=True)

    results, _ = await asyncio.gather(load(), flap())
    reply = await lab.ledger.ListCharges(payment_pb2.ListChargesRequest(account="resets", page_size=1000))
    keys = [entry.idempotency_key for entry in reply.charges]
    ok = sum(result is None for result in results)
    assert len(keys) == len(set(keys)), "a key was charged twice"
    failed = Counter(f"{error.code().name}: {error.details()}" for error in results if error is not None)
    assert ok >= 270, failed
    assert len(keys) >= ok


async def test_a_refused_connection_is_an_honest_unavailable(lab: Any, a_charge: Charge) -> None:
    proxy = await lab.stack.proxy()
    await asyncio.to_thread(proxy.disable)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.payments.Charge(a_charge("down"), timeout=3)
    trailers = dict(caught.value.trailing_metadata())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (trailers["relay-outcome"], trailers["relay-origin"]) == ("not-executed", "relay")
    await asyncio.to_thread(proxy.enable)
    await lab.eventually(lambda: lab.payments.Charge(a_charge("up"), timeout=1), within_s=2)
    assert await lab.charges("down") == 0


async def test_service_returns_after_toxiproxy_dies(lab: Any, a_charge: Charge) -> None:
    if lab.stack.toxiproxy.joined:
        pytest.skip("this Toxiproxy is somebody else's (TOXIPROXY_URL); it cannot be killed")
    await lab.stack.kill(Member.TOXIPROXY)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.payments.Charge(a_charge("dead"), timeout=2)
    # The last when the retries wait for a connection until the caller gives up.
    assert caught.value.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
    await lab.stack.restart(Member.TOXIPROXY)
    await lab.eventually(lambda: lab.payments.Charge(a_charge("again"), timeout=1), within_s=3)


async def test_service_returns_after_the_downstream_is_killed(lab: Any, a_charge: Charge) -> None:
    reply = await lab.payments.Charge(a_charge("before"), metadata=[("idempotency-key", "kill")], timeout=5)
    await lab.stack.kill(Member.DOWNSTREAM)
    await lab.stack.restart(Member.DOWNSTREAM)
    again = None

    async def once_more() -> None:
        nonlocal again
        again = await lab.payments.Charge(
            a_charge("before"), metadata=[("idempotency-key", "kill")], timeout=1
        )

    await lab.eventually(once_more, within_s=5)
    assert again is not None
    assert again.charge.charge_id == reply.charge.charge_id
