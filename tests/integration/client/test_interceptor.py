"""The policies on a channel, against a real service."""

import asyncio
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest

from protos.downstream.v1 import payment_pb2, payment_pb2_grpc
from relay_service.client import CallFailedError, Resilience
from relay_service.core.breaker import BreakerState
from relay_service.core.evidence import Evidence
from relay_service.core.policy import BreakerPolicy, RetryBudgetPolicy, ThrottlePolicy
from relay_service.core.reason import Reason

KEYED = [("idempotency-key", "k1")]


@asynccontextmanager
async def channel_of(target: str, resilience: Resilience, on_retry: Any = lambda _: None) -> Any:
    async with grpc.aio.insecure_channel(target, interceptors=[resilience.interceptor(on_retry)]) as channel:
        yield payment_pb2_grpc.PaymentServiceStub(channel)


async def test_what_fails_is_retried_and_the_hook_hears_of_it(downstream, policy, a_charge) -> None:
    await downstream.set_faults({"failure": {"code": 14}, "maxStrikes": 2})
    retries = []
    async with channel_of(downstream.target, Resilience(policy()), retries.append) as payments:
        call = payments.Charge(a_charge, metadata=KEYED, timeout=10)
        assert (await call).charge.account == "alice"
        assert await call.code() is grpc.StatusCode.OK
    assert [(retry.method, retry.attempt) for retry in retries] == [
        ("downstream.v1.PaymentService/Charge", 1),
        ("downstream.v1.PaymentService/Charge", 2),
    ]
    assert retries[0].evidence is Evidence.AMBIGUOUS, "a bare UNAVAILABLE may be a broken connection"
    assert retries[0].error.code() is grpc.StatusCode.UNAVAILABLE
    assert await downstream.charges() == 1


async def test_an_effect_that_was_lost_is_not_made_twice(downstream, policy, a_charge) -> None:
    await downstream.set_faults({"failure": {"code": 13, "when": "WHEN_AFTER_EFFECT"}, "maxStrikes": 1})
    async with channel_of(downstream.target, Resilience(policy())) as payments:
        with pytest.raises(CallFailedError) as failed:
            await payments.Charge(a_charge, timeout=10)
        assert (failed.value.reason, failed.value.verdict.attempts) == (Reason.OUTCOME_UNKNOWN, 1)
        assert failed.value.code() is grpc.StatusCode.UNKNOWN
    assert await downstream.charges() == 1


async def test_an_answer_that_a_retry_would_not_change_is_raised_as_it_came(downstream, policy) -> None:
    async with channel_of(downstream.target, Resilience(policy())) as payments:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await payments.Charge(payment_pb2.ChargeRequest(), timeout=10)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not isinstance(failed.value, CallFailedError)
    assert failed.value.__notes__ == ["after 1 attempts: FORWARDED"]


async def test_retries_stay_within_the_budget_and_the_breaker_stops_what_keeps_failing(
    downstream, policy
) -> None:
    await downstream.set_faults({"failure": {"code": 14}})
    resilience = Resilience(
        policy(
            budget=RetryBudgetPolicy(ratio=0.0, burst=3),
            breakers={"": BreakerPolicy(consecutive_failures=8, open_s=60)},
        ),
        rng=Random(1),
    )
    decisions = []
    async with channel_of(downstream.target, resilience) as payments:
        for _ in range(8):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=10)
            decisions.append(failed.value)
    state = resilience.gate.state()
    assert (state.granted, state.tokens) == (3, 0.0)
    last = decisions[-1]
    assert isinstance(last, CallFailedError)
    assert (last.reason, last.code(), last.verdict.attempts) == (
        Reason.BREAKER_OPEN,
        grpc.StatusCode.UNAVAILABLE,
        0,
    )
    assert last.verdict.pushback_s > 0
    (view,) = resilience.breakers.views(asyncio.get_running_loop().time())
    assert view.status.state is BreakerState.OPEN


async def test_pushback_is_obeyed(downstream, policy) -> None:
    await downstream.set_faults(
        {"failure": {"code": 8, "retryPushbackMs": 150}, "maxStrikes": 1},
        {"failure": {"code": 8, "retryPushbackMs": -1}, "maxStrikes": 1},
    )
    retries = []
    async with channel_of(downstream.target, Resilience(policy()), retries.append) as payments:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=10)
    assert [retry.wait_s for retry in retries] == [pytest.approx(0.15, abs=0.01)]
    assert retries[0].evidence is Evidence.REFUSED, "trailers come only over the wire"
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_deadline_bounds_all_attempts_together(downstream, policy) -> None:
    await downstream.set_faults({"hang": {}})
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with channel_of(downstream.target, Resilience(policy(method_attempt_timeout_s=0.2))) as payments:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=0.5)
    assert 0.45 < loop.time() - started < 5
    assert isinstance(failed.value, CallFailedError)
    assert (failed.value.code(), failed.value.verdict.attempts) == (grpc.StatusCode.DEADLINE_EXCEEDED, 3)


async def test_a_cancelled_call_cancels_its_attempt_and_says_nothing_to_the_breaker(
    downstream, policy
) -> None:
    await downstream.set_faults({"hang": {}})
    resilience = Resilience(policy(breakers={"": BreakerPolicy(consecutive_failures=1)}))
    async with channel_of(downstream.target, resilience) as payments:
        call = payments.Charge(payment_pb2.ChargeRequest(), metadata=KEYED, timeout=30)
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    (view,) = resilience.breakers.views(asyncio.get_running_loop().time())
    assert view.status.state is BreakerState.CLOSED


async def test_a_service_that_is_not_there_was_never_asked(policy, a_charge) -> None:
    retries = []
    async with channel_of("127.0.0.1:1", Resilience(policy()), retries.append) as payments:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await payments.Charge(a_charge, timeout=10)
    assert [retry.evidence for retry in retries] == [Evidence.NOT_SENT] * 3
    assert "after 4 attempts: RETRIES_EXHAUSTED" in failed.value.__notes__


async def test_an_overloaded_service_is_asked_less(downstream, policy) -> None:
    await downstream.set_faults({"failure": {"code": 8, "retryPushbackMs": -1}})
    resilience = Resilience(policy(adaptive_throttle=ThrottlePolicy(min_calls=5)), rng=Random(1))
    reasons = []
    async with channel_of(downstream.target, resilience) as payments:
        for _ in range(30):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=10)
            reasons.append(getattr(failed.value, "reason", None))
    assert reasons[:5] == [None] * 5
    assert reasons.count(Reason.ADAPTIVE_THROTTLE) > 10


async def test_streaming_calls_go_through_untouched(downstream, policy, a_charge) -> None:
    async with channel_of(downstream.target, Resilience(policy())) as payments:
        await payments.Charge(a_charge, metadata=KEYED)
        watch = payments.WatchCharges(payment_pb2.WatchChargesRequest(max_charges=1))
        assert [reply.charge.account async for reply in watch] == ["alice"]
        upload = await payments.UploadCharges(iter([payment_pb2.UploadChargesRequest(charge=a_charge)]))
        assert upload.received == 1
        conversation = payments.Authorize()
        await conversation.write(payment_pb2.AuthorizeRequest(charge=a_charge))
        assert (await conversation.read()).approved
        await conversation.done_writing()
