"""A call whose work is cancelled under it, or meets a bug: the caller gets a status at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import pytest
import structlog
from structlog.testing import LogCapture

from downstream_service.book import IN_MEMORY, KeyPolicy, Posted
from downstream_service.calls import Calls
from downstream_service.capacity import Capacity
from downstream_service.effects import Effects
from downstream_service.fault_board import FaultBoard
from downstream_service.handler import PaymentService
from downstream_service.ledger import Ledger
from downstream_service.telemetry import Telemetry
from protos.downstream.v1 import fault_pb2, payment_pb2, payment_pb2_grpc

TIMEOUT_S = 20.0


class CancelledEffects(Effects):
    """Something the call waits for is cancelled, and not by the caller."""

    async def charge(self, request: payment_pb2.ChargeRequest, key: str) -> Posted:
        lost: asyncio.Future[Posted] = asyncio.get_running_loop().create_future()
        lost.cancel()
        return await lost


class BrokenEffects(Effects):
    """A bug."""

    async def charge(self, request: payment_pb2.ChargeRequest, key: str) -> Posted:
        raise ZeroDivisionError("secret detail")


def never_die(status: int) -> NoReturn:
    raise AssertionError(f"no fault asks for a crash, and yet: {status}")


@asynccontextmanager
async def served(effects_type: type[Effects], log: LogCapture) -> AsyncIterator[Any]:
    """Serve in this process, over a real connection, with these effects."""
    ledger, capacity = Ledger(IN_MEMORY, KeyPolicy.ENFORCE), Capacity()
    board = FaultBoard(fault_pb2.SetFaultsRequest(), 1, capacity)
    calls = Calls(board, Telemetry([]), structlog.wrap_logger(None, processors=[log]), never_die)
    server = grpc.aio.server()
    service = PaymentService(calls, effects_type(ledger, capacity), ledger)
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield payment_pb2_grpc.PaymentServiceStub(channel)
        await asyncio.wait_for(calls.wait_idle(), TIMEOUT_S)
    finally:
        await server.stop(None)
        await ledger.close()


async def test_an_interrupted_call_is_answered_unavailable_and_not_left_to_its_deadline(
    purchase: Any,
) -> None:
    async with served(CancelledEffects, LogCapture()) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as interrupted:
            await stub.Charge(purchase(), timeout=TIMEOUT_S)
    assert interrupted.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_bug_is_internal_to_the_caller_and_explained_in_the_log(purchase: Any) -> None:
    log = LogCapture()
    async with served(BrokenEffects, log) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await stub.Charge(purchase(), timeout=TIMEOUT_S)
    assert broken.value.code() is grpc.StatusCode.INTERNAL
    assert "secret detail" not in (broken.value.details() or "")
    (entry,) = log.entries
    assert entry["event"] == "unexpected"
    assert repr(entry["exc_info"]) == "ZeroDivisionError('secret detail')"
