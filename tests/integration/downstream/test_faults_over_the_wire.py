"""Faults as callers meet them: set by RPC, by file and by metadata."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from protos.downstream.v1 import fault_pb2, payment_pb2

TIMEOUT_S = 20.0
SEED = 4_711
CHARGE = "downstream.v1.PaymentService/Charge"


async def effects(stubs: Any) -> int:
    return (await stubs.counters()).effects


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(("when", "written"), [("WHEN_BEFORE_EFFECT", 0), ("WHEN_AFTER_EFFECT", 1)])
async def test_a_failure_strikes_before_or_after_the_effect(
    mended: Any, connect: Any, purchase: Any, when: str, written: int
) -> None:
    failure = {"code": 13, "message": "on purpose", "when": when, "retryPushbackMs": "70"}
    async with connect(mended) as stubs:
        await stubs.set_faults({"failure": failure})
        before = await effects(stubs)
        with pytest.raises(grpc.aio.AioRpcError) as struck:
            await stubs.charge(purchase(), when)
        assert struck.value.code() is grpc.StatusCode.INTERNAL
        assert struck.value.details() == "on purpose"
        # No headers: clients heed a pushback only in a Trailers-Only answer. And no word of the effect.
        assert not dict(struck.value.initial_metadata() or ())
        assert dict(struck.value.trailing_metadata() or ()) == {"grpc-retry-pushback-ms": "70"}
        assert await effects(stubs) == before + written
        await stubs.set_faults({"failure": {"code": 13, "when": when}})
        with pytest.raises(grpc.aio.AioRpcError) as silent:
            await stubs.charge(purchase(), when)
        assert not dict(silent.value.trailing_metadata() or ())
        await stubs.faults.ClearFaults(fault_pb2.ClearFaultsRequest(), timeout=TIMEOUT_S)
        await stubs.charge(purchase(), when)
        assert await effects(stubs) == before + 1


@pytest.mark.parametrize("code", range(1, 17))
async def test_every_status_can_be_the_answer(
    shared_service: Any, connect: Any, purchase: Any, code: int
) -> None:
    async with connect(shared_service) as stubs:
        with pytest.raises(grpc.aio.AioRpcError) as struck:
            await stubs.charge(purchase(), fault=json.dumps({"failure": {"code": code}}))
    assert struck.value.code().value[0] == code


async def test_the_same_seed_fails_the_same_calls(mended: Any, connect: Any, purchase: Any) -> None:
    print("seed", SEED)
    async with connect(mended) as stubs:
        runs = []
        for _ in range(2):
            await stubs.set_faults({"failure": {"code": 14}, "probability": 0.3}, seed=str(SEED))
            runs.append([await code_of(stubs.charge(purchase())) for _ in range(200)])
        state = await stubs.fault_state()
    struck = runs[0].count(grpc.StatusCode.UNAVAILABLE)
    assert runs[0] == runs[1]
    assert abs(struck - 60) < 5 * math.sqrt(200 * 0.3 * 0.7)
    assert state.seed == SEED
    assert [(each.fault.name, each.strikes) for each in state.faults] == [("failure", struck)]


async def test_latency_is_waited_before_the_effect(mended: Any, connect: Any, purchase: Any) -> None:
    async with connect(mended) as stubs:
        before = await effects(stubs)
        await stubs.set_faults({"latency": {"fixed": "3600s"}})
        assert (
            await code_of(stubs.payments.Charge(purchase(), timeout=0.3)) is grpc.StatusCode.DEADLINE_EXCEEDED
        )
        assert await effects(stubs) == before
        start_s = asyncio.get_running_loop().time()
        await stubs.set_faults({"latency": {"fixed": "0.2s"}})
        await stubs.charge(purchase())
        assert asyncio.get_running_loop().time() - start_s >= 0.2


@pytest.mark.parametrize(("when", "written"), [("WHEN_BEFORE_EFFECT", 0), ("WHEN_AFTER_EFFECT", 1)])
async def test_a_hang_lasts_until_the_deadline_or_until_the_faults_are_cleared(
    mended: Any, connect: Any, purchase: Any, when: str, written: int
) -> None:
    async with connect(mended) as stubs:
        before = await effects(stubs)
        await stubs.set_faults({"hang": {"when": when}})
        assert (
            await code_of(stubs.payments.Charge(purchase(), timeout=0.3)) is grpc.StatusCode.DEADLINE_EXCEEDED
        )
        hung = asyncio.create_task(code_of(stubs.charge(purchase())))
        async with asyncio.timeout(TIMEOUT_S):
            while (await stubs.fault_state()).faults[0].strikes < 2:
                pass
        await stubs.faults.ClearFaults(fault_pb2.ClearFaultsRequest(), timeout=TIMEOUT_S)
        assert await hung is grpc.StatusCode.UNAVAILABLE
        assert await effects(stubs) == before + 2 * written


async def test_a_crash_ends_the_process_before_or_after_the_effect_and_keeps_what_was_written(
    start_service: Any, connect: Any, purchase: Any, tmp_path: Path
) -> None:
    ledger = str(tmp_path / "ledger.db")
    for when in ("WHEN_BEFORE_EFFECT", "WHEN_AFTER_EFFECT"):
        service = start_service("--ledger", ledger)
        async with connect(service) as stubs:
            assert await stubs.all_charges() == []
            crash = json.dumps({"crash": {"when": when}})
            assert await code_of(stubs.charge(purchase(), "k", crash)) is grpc.StatusCode.UNAVAILABLE
        assert service.process.wait(TIMEOUT_S) == 70
    async with connect(start_service("--ledger", ledger)) as stubs:
        assert len(await stubs.all_charges()) == 1


async def test_overload_is_refused_at_once_and_told_from_other_errors(
    mended: Any, connect: Any, purchase: Any
) -> None:
    capacity = {"workers": 2, "serviceTime": "0.4s", "queueSize": 3}
    async with connect(mended) as stubs:
        await stubs.set_faults(capacity=capacity)
        before = await stubs.counters()
        results = await asyncio.gather(*(stubs.charge(purchase()) for _ in range(20)), return_exceptions=True)
        counters = await stubs.counters()
    refusals = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refusals) == counters.refused - before.refused == 15
    assert counters.effects - before.effects == 5
    details = dict(refusals[0].trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert info.reason == "QUEUE_FULL"


async def test_work_for_a_caller_that_left_is_done_and_counted_as_wasted(
    mended: Any, connect: Any, purchase: Any
) -> None:
    async with connect(mended) as stubs:
        await stubs.set_faults(capacity={"workers": 1, "serviceTime": "0.6s", "queueSize": 5})
        before = await stubs.counters()
        begun = asyncio.create_task(code_of(stubs.payments.Charge(purchase(), timeout=0.3)))
        waiting = asyncio.create_task(code_of(stubs.payments.Charge(purchase(), timeout=0.3)))
        assert await asyncio.gather(begun, waiting) == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
        await stubs.charge(purchase())
        counters = await stubs.counters()
    assert counters.effects - before.effects == 2
    assert counters.wasted - before.wasted == 1
    assert counters.cancelled - before.cancelled == 2
    assert counters.in_flight == 0


async def test_bad_faults_are_refused_by_field_and_change_nothing(mended: Any, connect: Any) -> None:
    async with connect(mended) as stubs:
        await stubs.set_faults({"name": "good", "hang": {}})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stubs.set_faults({"hang": {}}, {"failure": {"code": 99}})
        state = await stubs.fault_state()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith("faults[1].failure.code: ")
    assert [each.fault.name for each in state.faults] == ["good"]


async def test_a_bad_fault_in_metadata_is_refused_by_field(
    shared_service: Any, connect: Any, purchase: Any
) -> None:
    async with connect(shared_service) as stubs:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stubs.charge(purchase(), fault='{"latency": {"fixed": "-1s"}}')
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith("fault.latency.fixed: ")


async def test_faults_in_metadata_can_be_switched_off(
    start_service: Any, connect: Any, purchase: Any
) -> None:
    async with connect(start_service("--no-metadata-faults")) as stubs:
        await stubs.charge(purchase(), fault='{"failure": {"code": 14}}')
        await stubs.charge(purchase(), fault="not even JSON")


async def test_faults_come_from_a_file_at_the_start(
    start_service: Any, connect: Any, purchase: Any, tmp_path: Path
) -> None:
    source = tmp_path / "faults.json"
    source.write_text(
        json.dumps({"faults": [{"failure": {"code": 10}, "methods": [CHARGE], "maxStrikes": "2"}]})
    )
    async with connect(start_service("--faults", str(source), "--seed", "5")) as stubs:
        listed = await code_of(
            stubs.payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=TIMEOUT_S)
        )
        codes = [await code_of(stubs.charge(purchase())) for _ in range(3)]
        state = await stubs.fault_state()
    assert listed is grpc.StatusCode.OK
    assert codes == [grpc.StatusCode.ABORTED, grpc.StatusCode.ABORTED, grpc.StatusCode.OK]
    assert state.seed == 5
