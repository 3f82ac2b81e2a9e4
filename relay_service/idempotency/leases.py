"""The leases of this relay's claims: one renewer for all of them, and only while there are any."""

from __future__ import annotations

import asyncio
import logging

from relay_service.core.idempotency import Record, RecordState, Scope
from relay_service.stores.interface import IdempotencyStore, StoreError

RENEWALS_PER_LEASE = 3
"""Two may fail before a lease runs out."""

STRAY_CLAIMS_MAX = 10_000

log = logging.getLogger(__name__)


class Leases:
    """Renews what is held, and lets go of claims whose commit was never confirmed.

    State: the fence of every claim, the claims that may have been made although the store failed, and
    the task that works while there are any of either.
    """

    def __init__(self, store: IdempotencyStore, owner: str, lease_s: float) -> None:
        self._store = store
        self.owner = owner
        self.lease_s = lease_s
        self._held: dict[Scope, int] = {}
        self._stray: dict[Scope, None] = {}
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, scope: Scope, fence: int) -> None:
        """Renew this claim from now on."""
        self._stray.pop(scope, None)
        self._held[scope] = fence
        self._work()

    def let_go(self, scope: Scope) -> None:
        """Renew it no longer."""
        self._held.pop(scope, None)

    def maybe_claimed(self, scope: Scope) -> None:
        """The store failed in the middle of a claim: if it was made, nothing was dispatched under it."""
        if len(self._stray) < STRAY_CLAIMS_MAX:
            self._stray[scope] = None
            self._work()

    async def let_go_of_stray(self, record: Record) -> bool:
        """Release a claim of ours under which nothing was dispatched; whether this record was one."""
        scope = record.scope
        if scope not in self._stray:
            return False
        ours = record.state is RecordState.IN_PROGRESS and record.owner == self.owner
        if ours:
            await self._store.release(scope, record.fence)
        self._stray.pop(scope, None)
        return ours

    def close(self) -> None:
        """Stop renewing."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _work(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew_all(), name="leases are renewed")

    async def _renew_all(self) -> None:
        while self._held or self._stray:
            await asyncio.sleep(self.lease_s / RENEWALS_PER_LEASE)
            try:
                async with asyncio.timeout(self.lease_s):
                    if self._held:
                        await self._store.renew(self.owner, list(self._held.items()), self.lease_s)
                    for scope in list(self._stray):
                        await self._release_stray(scope)
            except (StoreError, TimeoutError) as error:
                log.warning("%d leases could not be renewed: %s", len(self._held), error)
        self._task = None

    async def _release_stray(self, scope: Scope) -> None:
        record = await self._store.look_up(scope)
        if record is None:
            self._stray.pop(scope, None)
        else:
            await self.let_go_of_stray(record)
