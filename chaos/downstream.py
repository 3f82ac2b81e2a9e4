"""The lab's back door to the payment service: its faults, its counters, its ledger. Never through the relay.

Only the service's public protos are used; its insides are none of our business.
"""

from types import TracebackType
from typing import Self

import grpc

from chaos.client import CHANNEL_OPTIONS
from chaos.history import LedgerEntry
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc

CALL_TIMEOUT_S = 10.0
PAGE_SIZE = 1000
PAGES_MAX = 2000


class Downstream:
    """A connection for steering and looking. Use it in ``async with``."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._faults: fault_pb2_grpc.FaultServiceAsyncStub = fault_pb2_grpc.FaultServiceStub(self._channel)
        self._payments: payment_pb2_grpc.PaymentServiceAsyncStub = payment_pb2_grpc.PaymentServiceStub(
            self._channel
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def set_faults(self, request: fault_pb2.SetFaultsRequest) -> None:
        """Replace every fault and the capacity model, and restart the draws from the seed."""
        await self._faults.SetFaults(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True)

    async def clear_faults(self) -> None:
        """Healthy again."""
        await self._faults.ClearFaults(
            fault_pb2.ClearFaultsRequest(), timeout=CALL_TIMEOUT_S, wait_for_ready=True
        )

    async def counters(self, timeout_s: float = CALL_TIMEOUT_S) -> fault_pb2.GetCountersResponse:
        """What it has seen and done since its start."""
        return await self._faults.GetCounters(
            fault_pb2.GetCountersRequest(), timeout=timeout_s, wait_for_ready=True
        )

    async def last_sequence(self) -> int:
        """The ledger's length, which is also its newest entry's sequence."""
        page = await self._page(1, "")
        return page.total_charges

    async def ledger(self, after_sequence: int = 0) -> tuple[LedgerEntry, ...]:
        """The entries after a sequence, oldest first. Holds at most `PAGES_MAX` x `PAGE_SIZE` of them."""
        found: list[LedgerEntry] = []
        token = ""
        for _ in range(PAGES_MAX):
            page = await self._page(PAGE_SIZE, token)
            found += [_entry(charge) for charge in page.charges if charge.sequence > after_sequence]
            token = page.next_page_token
            if not token or not page.charges or page.charges[-1].sequence <= after_sequence:
                break
        return tuple(sorted(found, key=lambda entry: entry.sequence))

    async def _page(self, size: int, token: str) -> payment_pb2.ListChargesResponse:
        request = payment_pb2.ListChargesRequest(page_size=size, page_token=token)
        return await self._payments.ListCharges(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True)


def _entry(charge: payment_pb2.Charge) -> LedgerEntry:
    key, at_unix_ns = charge.idempotency_key or None, charge.create_time.ToNanoseconds()
    return LedgerEntry(charge.sequence, charge.charge_id, charge.note, key, at_unix_ns)
