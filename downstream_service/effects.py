"""One effect per key, and no worker spent on a duplicate: join, ask for capacity, write."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.message import Message

from downstream_service.book import KeyPolicy, Page, PageQuery, Posted, Scope
from downstream_service.capacity import Capacity
from downstream_service.ledger import Ledger
from protos.downstream.v1 import payment_pb2


@dataclass(frozen=True, slots=True)
class _Posting:
    """A request to write, under the key that makes it one and the same."""

    scope: Scope
    key: str
    request: Message
    begin: Callable[[], asyncio.Future[Posted]] = field(compare=False)


class Effects:
    """What the service does once faults have had their say.

    Mutable state: the effects under way, by key.
    """

    def __init__(self, ledger: Ledger, capacity: Capacity) -> None:
        self._ledger = ledger
        self._capacity = capacity
        self._under_way: dict[tuple[Scope, str], asyncio.Future[Posted]] = {}

    async def charge(self, request: payment_pb2.ChargeRequest, key: str) -> Posted:
        """Charge once per key. Raises ``QueueFullError``, ``KeyReusedError``, ``LedgerUnavailableError``."""
        return await self._post(
            _Posting(Scope.CHARGE, key, request, lambda: self._ledger.charge(request, key))
        )

    async def charge_batch(
        self, request: payment_pb2.ChargeBatchRequest, problems: dict[int, str], key: str
    ) -> Posted:
        """Charge a batch once per key. Raises as ``charge``."""
        return await self._post(
            _Posting(Scope.BATCH, key, request, lambda: self._ledger.charge_batch(request, problems, key))
        )

    async def page(self, query: PageQuery) -> Page:
        """Read one page of the ledger. Raises ``QueueFullError``, ``LedgerUnavailableError``."""
        return await self._capacity.run(lambda: self._ledger.page(query))

    async def think(self) -> None:
        """Do a piece of work that has no effect. Raises ``QueueFullError``."""
        await self._capacity.run(_nothing)

    async def _post(self, posting: _Posting) -> Posted:
        if not posting.key or self._ledger.key_policy is KeyPolicy.RECORD_ONLY:
            return await self._capacity.run(posting.begin)
        while True:
            replay = await self._replay(posting)
            if replay is not None:
                return replay
            # Nothing is awaited between this look and the entry in _own, so only one call can pass.
            if (posting.scope, posting.key) not in self._under_way:
                return await self._own(posting)

    async def _replay(self, posting: _Posting) -> Posted | None:
        """Wait for the first under this key, if it is under way, and return its reply if it has one.

        The wait has no bound of its own: the caller's deadline cancels it.
        """
        first = self._under_way.get((posting.scope, posting.key))
        if first is not None:
            await asyncio.wait([first])
        elif not self._capacity.limited:
            # Nothing to save: the write itself finds a duplicate.
            return None
        return await self._ledger.find(posting.scope, posting.key, posting.request)

    async def _own(self, posting: _Posting) -> Posted:
        outcome = self._capacity.submit(posting.begin)
        name = (posting.scope, posting.key)
        self._under_way[name] = outcome
        outcome.add_done_callback(lambda _: self._under_way.pop(name))
        return await self._capacity.result(outcome)


def _nothing() -> asyncio.Future[None]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
