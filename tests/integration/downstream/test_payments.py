"""The payment service as a process: what it promises its callers, over the wire."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from protos.downstream.v1 import payment_pb2

CHARGE = "/downstream.v1.PaymentService/Charge"
TIMEOUT_S = 20.0


@pytest.fixture
def key() -> str:
    """A key that no other test of the module uses."""
    return str(uuid.uuid4())


def error_detail(error: grpc.aio.AioRpcError, detail: Any) -> Any:
    trailers = dict(error.trailing_metadata() or ())
    packed = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details[0]
    assert packed.Unpack(detail)
    return detail


async def test_a_duplicate_gets_the_first_reply_byte_for_byte(
    shared_service: Any, connect: Any, purchase: Any, key: str
) -> None:
    async with connect(shared_service) as stubs:
        raw = stubs.channel.unary_unary(CHARGE)
        replies, statuses = [], []
        for _ in range(2):
            call = raw(purchase().SerializeToString(), metadata=[("idempotency-key", key)], timeout=TIMEOUT_S)
            replies.append(await call)
            statuses.append(dict(await call.trailing_metadata())["idempotency-status"])
        assert replies[0] == replies[1]
        assert statuses == ["executed", "replayed"]
        assert len(await stubs.all_charges(idempotency_key=key)) == 1


@pytest.mark.parametrize(
    "capacity", [{}, {"workers": 8, "serviceTime": "0.05s", "queueSize": 5}], ids=["unlimited", "limited"]
)
async def test_200_duplicates_at_once_make_one_charge(
    mended: Any, connect: Any, purchase: Any, key: str, capacity: dict[str, Any]
) -> None:
    async with connect(mended) as stubs:
        await stubs.set_faults(capacity=capacity)
        before = await stubs.counters()
        responses = await asyncio.gather(*(stubs.charge(purchase(), key) for _ in range(200)))
        listed = await stubs.payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=TIMEOUT_S)
        counters = await stubs.counters()
    assert {response.charge.charge_id for response in responses} == {listed.charges[0].charge_id}
    assert listed.duplicate_keys == 0
    assert counters.effects - before.effects == 1
    assert counters.replays - before.replays == 199
    assert counters.refused == before.refused


async def test_a_duplicate_waits_while_the_first_executes_and_leaves_at_its_deadline(
    mended: Any, connect: Any, purchase: Any, key: str
) -> None:
    async with connect(mended) as stubs:
        await stubs.set_faults(capacity={"workers": 5, "serviceTime": "1s", "queueSize": 5})
        first = asyncio.create_task(stubs.charge(purchase(), key))
        await stubs.counters_when(lambda counters: counters.in_flight == 1)
        patient = asyncio.create_task(stubs.charge(purchase(), key))
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stubs.payments.Charge(purchase(), metadata=[("idempotency-key", key)], timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not first.done()
        assert await patient == await first


async def test_when_the_first_gives_up_a_duplicate_takes_over(
    mended: Any, connect: Any, purchase: Any, key: str
) -> None:
    async with connect(mended) as stubs:
        await stubs.set_faults(capacity={"workers": 1, "serviceTime": "0.5s", "queueSize": 10})
        calls = []
        for count, name in enumerate(["", key, key], start=1):
            calls.append(asyncio.create_task(stubs.charge(purchase(), name)))
            await stubs.counters_when(lambda counters, count=count: counters.in_flight == count)
        _, first, second = calls
        first.cancel()
        await second
        await stubs.set_faults()
        charges = await stubs.all_charges(idempotency_key=key)
    assert [charge.charge_id for charge in charges] == [second.result().charge.charge_id]


async def test_a_naive_service_charges_every_duplicate_and_says_so(
    start_service: Any, connect: Any, purchase: Any
) -> None:
    async with connect(start_service("--ignore-keys")) as stubs:
        await asyncio.gather(*(stubs.charge(purchase(), "k") for _ in range(20)))
        listed = await stubs.payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=TIMEOUT_S)
    assert (listed.total_charges, listed.duplicate_keys) == (20, 1)
    assert {charge.idempotency_key for charge in listed.charges} == {"k"}


async def test_without_a_key_every_call_is_a_charge(
    shared_service: Any, connect: Any, purchase: Any, key: str
) -> None:
    async with connect(shared_service) as stubs:
        await asyncio.gather(*(stubs.charge(purchase(key)) for _ in range(5)))
        assert len(await stubs.all_charges(account=key)) == 5


async def test_the_same_key_with_another_request_is_failed_precondition(
    shared_service: Any, connect: Any, purchase: Any, key: str
) -> None:
    async with connect(shared_service) as stubs:
        await stubs.charge(purchase(), key)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stubs.charge(purchase(amount_minor=2), key)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error_detail(refused.value, error_details_pb2.ErrorInfo()).reason == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"account": ""}, "account"),
        ({"account": "x" * 201}, "account"),
        ({"amount_minor": 0}, "amount_minor"),
        ({"amount_minor": -5}, "amount_minor"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "EURO"}, "currency"),
        ({"note": "x" * 2_001}, "note"),
    ],
)
async def test_an_invalid_charge_is_refused_by_its_field(
    shared_service: Any, connect: Any, purchase: Any, change: dict[str, Any], field: str
) -> None:
    request = purchase()
    for name, value in change.items():
        setattr(request, name, value)
    async with connect(shared_service) as stubs:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stubs.charge(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_detail(refused.value, error_details_pb2.BadRequest()).field_violations[0].field == field


@pytest.mark.parametrize("metadata", [[""], ["x" * 256], ["k", "k"]], ids=["empty", "too long", "twice"])
async def test_a_malformed_key_is_refused(
    shared_service: Any, connect: Any, purchase: Any, metadata: list[str]
) -> None:
    async with connect(shared_service) as stubs:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stubs.payments.Charge(
                purchase(), metadata=[("idempotency-key", value) for value in metadata], timeout=TIMEOUT_S
            )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "idempotency-key" in (refused.value.details() or "")


async def test_each_item_of_a_batch_succeeds_or_fails_on_its_own(
    shared_service: Any, connect: Any, purchase: Any, key: str
) -> None:
    request = payment_pb2.ChargeBatchRequest(
        items=[
            payment_pb2.ChargeBatchItem(charge=purchase(), idempotency_key=key),
            payment_pb2.ChargeBatchItem(charge=purchase(amount_minor=-1)),
            payment_pb2.ChargeBatchItem(charge=purchase(), idempotency_key=key),
        ]
    )
    async with connect(shared_service) as stubs:
        response = await stubs.payments.ChargeBatch(request, timeout=TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError) as empty:
            await stubs.payments.ChargeBatch(payment_pb2.ChargeBatchRequest(), timeout=TIMEOUT_S)
    assert [(result.code, result.replayed) for result in response.results] == [
        (0, False),
        (3, False),
        (0, True),
    ]
    assert "items[1].charge.amount_minor" in response.results[1].message
    assert empty.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_batch_sent_twice_under_one_key_is_one_batch(
    shared_service: Any, connect: Any, purchase: Any, key: str
) -> None:
    items = [payment_pb2.ChargeBatchItem(charge=purchase(key)) for _ in range(3)]
    async with connect(shared_service) as stubs:
        send = stubs.payments.ChargeBatch
        metadata = [("idempotency-key", key)]
        first = await send(payment_pb2.ChargeBatchRequest(items=items), metadata=metadata, timeout=TIMEOUT_S)
        again = await send(payment_pb2.ChargeBatchRequest(items=items), metadata=metadata, timeout=TIMEOUT_S)
        assert again == first
        assert len(await stubs.all_charges(account=key)) == 3


@pytest.mark.parametrize(
    "request_fields",
    [{"page_size": -1}, {"page_size": 1_001}, {"page_token": "what"}, {"page_token": "9" * 30}],
)
async def test_a_page_that_makes_no_sense_is_refused(
    shared_service: Any, connect: Any, request_fields: dict[str, Any]
) -> None:
    async with connect(shared_service) as stubs:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stubs.payments.ListCharges(
                payment_pb2.ListChargesRequest(**request_fields), timeout=TIMEOUT_S
            )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert next(iter(request_fields)) in (refused.value.details() or "")


async def test_what_was_acknowledged_survives_kill_9_and_no_key_is_charged_twice(
    start_service: Any, connect: Any, purchase: Any, tmp_path: Any
) -> None:
    ledger = str(tmp_path / "ledger.db")
    acknowledged: dict[str, str] = {}
    keys = [f"k{index}" for index in range(2_000)]
    service = start_service("--ledger", ledger)

    async def charge_until_it_dies(stubs: Any, mine: list[str]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            for each in mine:
                acknowledged[each] = (await stubs.charge(purchase(), each)).charge.charge_id
                if len(acknowledged) == 300:
                    service.kill()

    async with connect(service) as stubs:
        await asyncio.gather(*(charge_until_it_dies(stubs, keys[start::32]) for start in range(32)))
    assert 300 <= len(acknowledged) < len(keys)

    async with connect(start_service("--ledger", ledger)) as stubs:
        survived = {charge.idempotency_key: charge.charge_id for charge in await stubs.all_charges()}
        assert acknowledged.items() <= survived.items()
        for start in range(0, 400, 50):
            await asyncio.gather(*(stubs.charge(purchase(), each) for each in keys[start : start + 50]))
        charges = await stubs.all_charges()
        listed = await stubs.payments.ListCharges(payment_pb2.ListChargesRequest(), timeout=TIMEOUT_S)
    assert listed.duplicate_keys == 0
    assert len({charge.idempotency_key for charge in charges}) == len(charges)
    assert [charge.sequence for charge in charges] == list(range(1, len(charges) + 1))


async def test_an_upload_charges_each_message_and_sums_up(
    shared_service: Any, connect: Any, purchase: Any, key: str
) -> None:
    keys = [f"{key}-1", f"{key}-2", f"{key}-1", ""]
    messages = [payment_pb2.UploadChargesRequest(charge=purchase(), idempotency_key=each) for each in keys]
    async with connect(shared_service) as stubs:
        summary = await stubs.payments.UploadCharges(each_of(messages), timeout=TIMEOUT_S)
    assert (summary.received, summary.charged, summary.replayed) == (4, 3, 1)
    assert summary.received_bytes == sum(message.ByteSize() for message in messages)


async def test_an_invalid_message_ends_an_upload_and_what_was_charged_stays(
    shared_service: Any, connect: Any, purchase: Any, key: str
) -> None:
    async with connect(shared_service) as stubs:
        upload = stubs.payments.UploadCharges(timeout=TIMEOUT_S)
        for charge in (purchase(key), purchase(key, amount_minor=-1)):
            await upload.write(payment_pb2.UploadChargesRequest(charge=charge))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await upload
        assert len(await stubs.all_charges(account=key)) == 1
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "messages[1].charge.amount_minor" in (refused.value.details() or "")


async def test_a_conversation_is_answered_request_by_request(
    shared_service: Any, connect: Any, purchase: Any
) -> None:
    requests = [
        payment_pb2.AuthorizeRequest(request_id="small", charge=purchase()),
        payment_pb2.AuthorizeRequest(request_id="large", charge=purchase(amount_minor=1_000_001)),
        payment_pb2.AuthorizeRequest(request_id="bad", charge=purchase(amount_minor=0)),
    ]
    decisions = []
    async with connect(shared_service) as stubs:
        call = stubs.payments.Authorize(timeout=TIMEOUT_S)
        for request in requests:
            await call.write(request)
            decisions.append(await call.read())
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert [(each.request_id, each.approved) for each in decisions] == [
        ("small", True),
        ("large", False),
        ("bad", False),
    ]
    assert "amount_minor" in decisions[2].reason


async def each_of(messages: list[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message
