"""Calls of all kinds through relay and Toxiproxy to the downstream, with unchanged stubs."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import relay_pb2, relay_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

Charge = Callable[..., payment_pb2.ChargeRequest]


def trailers_of(call: Any) -> dict[str, Any]:
    return dict(call)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = Status.FromString(details)
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            return ErrorInfo.FromString(detail.value).reason
    raise AssertionError(status)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_unary_call_is_answered_and_says_how(lab: Any, a_charge: Charge) -> None:
    call = lab.payments.Charge(a_charge("unary"), timeout=5)
    reply = await call
    trailers = trailers_of(await call.trailing_metadata())
    assert reply.charge.account == "unary"
    assert await call.code() is grpc.StatusCode.OK
    assert {name: value for name, value in trailers.items() if name.startswith("relay-")} == {
        "relay-attempts": "1",
        "relay-decision": "FORWARDED",
        "relay-origin": "upstream",
        "relay-outcome": "executed",
    }


async def test_an_upstreams_error_passes_unchanged(lab: Any, a_charge: Charge) -> None:
    through = await failure(lab.payments.Charge(a_charge(amount=-1), timeout=5))
    direct = await failure(lab.ledger.Charge(a_charge(amount=-1), timeout=5))
    assert (through.code(), through.details()) == (direct.code(), direct.details())
    assert through.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(through.trailing_metadata())["relay-origin"] == "upstream"


async def test_a_key_makes_one_charge_of_many_calls(lab: Any, a_charge: Charge) -> None:
    metadata = [("idempotency-key", "the-key")]
    calls = [lab.payments.Charge(a_charge("keyed"), metadata=metadata, timeout=5) for _ in range(10)]
    replies = await asyncio.gather(*calls)
    assert len({reply.charge.charge_id for reply in replies}) == 1
    assert await lab.charges("keyed") == 1


async def test_a_server_stream_arrives_whole_and_in_order(lab: Any) -> None:
    request = payment_pb2.WatchChargesRequest(synthetic=True, max_charges=500, padding_bytes=1000)
    sequences = [reply.charge.sequence async for reply in lab.payments.WatchCharges(request, timeout=20)]
    assert sequences == sorted(sequences)
    assert len(set(sequences)) == 500


async def test_a_client_stream_is_summed_up(lab: Any, a_charge: Charge) -> None:
    async def uploads() -> Any:
        for number in range(200):
            yield payment_pb2.UploadChargesRequest(
                charge=a_charge("upload"), idempotency_key=f"u{number % 150}", padding=b"x" * 2000
            )

    reply = await lab.payments.UploadCharges(uploads(), timeout=20)
    assert (reply.received, reply.charged, reply.replayed) == (200, 150, 50)


async def test_a_conversation_takes_turns(lab: Any, a_charge: Charge) -> None:
    call = lab.payments.Authorize(timeout=20)
    for number in range(50):
        await call.write(payment_pb2.AuthorizeRequest(request_id=f"r{number}", charge=a_charge()))
        assert (await call.read()).request_id == f"r{number}"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_an_envelope_carries_a_call_chosen_at_run_time(lab: Any, a_charge: Charge) -> None:
    request = relay_pb2.RelayRequest(method="downstream.v1.PaymentService/Charge")
    request.request.Pack(a_charge("enveloped"))
    stub = relay_pb2_grpc.RelayServiceStub(lab.relay)
    response = (await stub.Relay(request, timeout=5)).response
    reply = payment_pb2.ChargeResponse()
    assert response.Unpack(reply)
    assert reply.charge.account == "enveloped"


async def test_failures_before_the_effect_are_repaired_by_retries(lab: Any, a_charge: Charge) -> None:
    await lab.set_faults({"failure": {"code": 14}, "maxStrikes": 2})
    call = lab.payments.Charge(a_charge("repaired"), timeout=10)
    await call
    trailers = trailers_of(await call.trailing_metadata())
    assert (trailers["relay-attempts"], trailers["relay-decision"]) == ("3", "RETRIED")
    assert await lab.charges("repaired") == 1


async def test_a_lost_answer_is_asked_for_again_with_a_key_and_called_unknown_without(
    lab: Any, a_charge: Charge
) -> None:
    await lab.set_faults({"failure": {"code": 13, "when": "WHEN_AFTER_EFFECT"}, "maxStrikes": 1})
    reply = await lab.payments.Charge(
        a_charge("lost-keyed"), metadata=[("idempotency-key", "lost")], timeout=10
    )
    assert reply.charge.account == "lost-keyed"
    assert await lab.charges("lost-keyed") == 1
    await lab.set_faults({"failure": {"code": 13, "when": "WHEN_AFTER_EFFECT"}, "maxStrikes": 1})
    error = await failure(lab.payments.Charge(a_charge("lost-bare"), timeout=10))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert dict(error.trailing_metadata())["relay-outcome"] == "unknown"
    assert await lab.charges("lost-bare") == 1


async def test_the_deadline_is_kept_and_reaches_the_downstream(lab: Any, a_charge: Charge) -> None:
    await lab.set_faults({"hang": {}})
    loop = asyncio.get_running_loop()
    started = loop.time()
    error = await failure(lab.payments.Charge(a_charge(), timeout=0.5))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert loop.time() - started < 1.5

    async def nothing_in_flight() -> None:
        if (await lab.counters()).in_flight:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

    await lab.eventually(nothing_in_flight)


async def test_a_callers_cancel_reaches_the_downstream(lab: Any, a_charge: Charge) -> None:
    await lab.set_faults({"hang": {}})
    call = lab.payments.Charge(a_charge("cancelled"), timeout=30)

    async def in_flight(count: int) -> None:
        if (await lab.counters()).in_flight != count:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

    await lab.eventually(lambda: in_flight(1))
    call.cancel()
    await lab.eventually(lambda: in_flight(0))


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_malformed_key_is_refused(lab: Any, a_charge: Charge, key: str) -> None:
    error = await failure(lab.payments.Charge(a_charge(), metadata=[("idempotency-key", key)], timeout=5))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_INVALID")


async def test_an_oversized_message_is_refused_with_its_reason(lab: Any) -> None:
    request = payment_pb2.ChargeRequest(account="a", amount_minor=1, currency="EUR", note="x" * 5_000_000)
    error = await failure(lab.payments.Charge(request, timeout=10))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


async def test_an_unknown_method_is_unimplemented(lab: Any) -> None:
    call = lab.relay.unary_unary("/downstream.v1.PaymentService/Nothing")
    error = await failure(call(b"", timeout=5))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metadata_travels_both_ways_and_binary_survives(lab: Any, a_charge: Charge) -> None:
    fault = json.dumps({"failure": {"code": 9, "message": "präzise: 100 %"}})
    metadata = [("fault", fault), ("trace-bin", bytes(range(256)))]
    error = await failure(lab.payments.Charge(a_charge(), metadata=metadata, timeout=5))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "präzise: 100 %")
