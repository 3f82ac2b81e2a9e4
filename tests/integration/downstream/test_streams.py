"""Streams: following, flow control, faults in the middle, callers that go."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.downstream.v1 import payment_pb2

TIMEOUT_S = 30.0
PADDING_BYTES = 64 << 10


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


async def test_a_watch_gets_what_is_there_and_then_what_comes(
    shared_service: Any, connect: Any, purchase: Any
) -> None:
    async with connect(shared_service) as stubs:
        seen = (await stubs.charge(purchase("seen"))).charge.sequence
        await stubs.charge(purchase("between"))
        request = payment_pb2.WatchChargesRequest(after_sequence=seen)
        watch = stubs.payments.WatchCharges(request, timeout=TIMEOUT_S)
        assert (await watch.read()).charge.account == "between"
        news = asyncio.create_task(watch.read())
        await stubs.charge(purchase("news"))
        assert (await news).charge.account == "news"
        watch.cancel()


async def test_a_watch_follows_every_entry_of_many_writers(
    shared_service: Any, connect: Any, purchase: Any
) -> None:
    async with connect(shared_service) as stubs:
        last = (await stubs.charge(purchase())).charge.sequence
        request = payment_pb2.WatchChargesRequest(after_sequence=last, max_charges=300)
        watch = stubs.payments.WatchCharges(request, timeout=TIMEOUT_S)
        writers = asyncio.gather(*(stubs.charge(purchase()) for _ in range(300)))
        sequences = [response.charge.sequence async for response in watch]
        await writers
    assert sequences == list(range(last + 1, last + 301))


async def test_10000_made_up_entries_arrive_in_order_and_padded(shared_service: Any, connect: Any) -> None:
    request = payment_pb2.WatchChargesRequest(synthetic=True, max_charges=10_000, padding_bytes=100)
    async with connect(shared_service) as stubs:
        received = [
            (response.charge.sequence, len(response.padding))
            async for response in stubs.payments.WatchCharges(request, timeout=TIMEOUT_S)
        ]
    assert received == [(sequence, 100) for sequence in range(1, 10_001)]


async def test_a_reader_that_does_not_read_stops_the_writer_and_memory_stays_flat(
    shared_service: Any, connect: Any, purchase: Any
) -> None:
    pid = shared_service.process.pid
    async with connect(shared_service) as stubs:
        request = payment_pb2.WatchChargesRequest(synthetic=True, padding_bytes=PADDING_BYTES)
        watch = stubs.payments.WatchCharges(request, timeout=TIMEOUT_S)
        await watch.read()
        before = resident_bytes(pid)
        # Other calls go on meanwhile. Unthrottled, the stream would make gigabytes in the time these take.
        for _ in range(300):
            await stubs.charge(purchase())
        grown = resident_bytes(pid) - before
        for _ in range(200):
            await watch.read()
        watch.cancel()
    print(f"grown by {grown / 2**20:.1f} MiB")
    assert grown < 32 << 20


async def test_a_watch_whose_reader_goes_ends(start_service: Any, connect: Any) -> None:
    service = start_service()
    async with connect(service) as stubs:
        for synthetic in (True, False):
            watch = stubs.payments.WatchCharges(payment_pb2.WatchChargesRequest(synthetic=synthetic))
            if synthetic:
                await watch.read()
            watch.cancel()
        async with connect(service) as going:
            watch = going.payments.WatchCharges(payment_pb2.WatchChargesRequest(synthetic=True))
            await watch.read()
        await stubs.counters_when(lambda counters: counters.in_flight == 0)
        assert service.terminate() == 0
    assert not [line for line in service.log() if line["level"] in {"error", "critical"}]


@pytest.mark.parametrize(
    "request_fields",
    [{"padding_bytes": -1}, {"padding_bytes": (1 << 20) + 1}, {"after_sequence": -1}, {"max_charges": -1}],
)
async def test_a_watch_that_makes_no_sense_is_refused(
    shared_service: Any, connect: Any, request_fields: dict[str, int]
) -> None:
    async with connect(shared_service) as stubs:
        watch = stubs.payments.WatchCharges(
            payment_pb2.WatchChargesRequest(**request_fields), timeout=TIMEOUT_S
        )
        assert await watch.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert next(iter(request_fields)) in await watch.details()


async def test_a_fault_after_the_effect_ends_a_stream_after_its_first_message(
    shared_service: Any, connect: Any
) -> None:
    fault = '{"failure": {"code": 14, "when": "WHEN_AFTER_EFFECT"}}'
    request = payment_pb2.WatchChargesRequest(synthetic=True)
    async with connect(shared_service) as stubs:
        watch = stubs.payments.WatchCharges(request, metadata=[("fault", fault)], timeout=TIMEOUT_S)
        assert (await watch.read()).charge.sequence == 1
        with pytest.raises(grpc.aio.AioRpcError) as struck:
            await watch.read()
    assert struck.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_key_in_the_metadata_of_an_upload_is_refused(shared_service: Any, connect: Any) -> None:
    async with connect(shared_service) as stubs:
        call = stubs.payments.UploadCharges(metadata=[("idempotency-key", "k")], timeout=TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
