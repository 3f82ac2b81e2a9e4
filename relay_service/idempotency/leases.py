"""The leases of this relay's claims: one renewer for all of them, and only while there are any."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from relay_service.core.idempotency import Record, RecordState, Scope
from relay_service.stores.interface import IdempotencyStore, StoreError

RENEWALS_PER_LEASE = 3
"""Two may fail before a lease runs out."""

STRAYS_MAX = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stray:
    """A claim that may have been made although the store failed: nothing was dispatched under it."""

    after_fence: int
    """What the key's fence was before. Under that one something may have been dispatched."""
    sought_until: float
    """On the loop's clock: so long it may still be on its way."""


class Leases:
    """Renews what is held, and lets go of claims whose commit was never confirmed.

    State: the fence of every claim, the strays, and the task that works while there are any of either.
    """

    def __init__(self, store: IdempotencyStore, owner: str, lease_s: float) -> None:
        self._store = store
        self.owner = owner
        self.lease_s = lease_s
        self._held: dict[Scope, int] = {}
        self._strays: dict[Scope, Stray] = {}
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, scope: Scope, fence: int) -> None:
        """Renew this claim from now on."""
        self._held[scope] = fence
        self._work()

    def let_go(self, scope: Scope) -> None:
        """Renew it no longer."""
        self._held.pop(scope, None)

    def lose(self, scope: Scope, after_fence: int) -> None:
        """The store failed in the middle of a claim."""
        sought_until = asyncio.get_running_loop().time() + self.lease_s
        self.seek(scope, Stray(after_fence, sought_until))

    def seek(self, scope: Scope, stray: Stray) -> None:
        """Let go of this claim if it turns up."""
        if len(self._strays) < STRAYS_MAX:
            self._strays[scope] = stray
            self._work()

    def stop_seeking(self, scope: Scope) -> Stray | None:
        """The key is about to be claimed: from now on what turns up may be that claim."""
        return self._strays.pop(scope, None)

    async def let_go_of_stray(self, record: Record) -> bool:
        """Release a record that is a stray claim of ours; whether it was one. Raises `StoreError`."""
        stray = self._strays.get(record.scope)
        if stray is None or not self.is_ours_since(record, stray.after_fence):
            return False
        await self._store.release(record.scope, record.fence)
        self._strays.pop(record.scope, None)
        return True

    def is_ours_since(self, record: Record, after_fence: int) -> bool:
        """Whether this relay claimed the key after that fence."""
        ours = record.state is RecordState.IN_PROGRESS and record.owner == self.owner
        return ours and record.fence > after_fence

    def close(self) -> None:
        """Stop renewing."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _work(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew_all(), name="leases are renewed")

    async def _renew_all(self) -> None:
        try:
            while self._held or self._strays:
                await asyncio.sleep(self.lease_s / RENEWALS_PER_LEASE)
                await self._look_after_all()
        finally:
            self._task = None

    async def _look_after_all(self) -> None:
        try:
            async with asyncio.timeout(self.lease_s):
                if self._held:
                    await self._store.renew(self.owner, list(self._held.items()), self.lease_s)
                for scope in list(self._strays):
                    await self._look_for_stray(scope)
        except (StoreError, TimeoutError) as error:
            log.warning("%d leases could not be renewed: %r", len(self._held), error)

    async def _look_for_stray(self, scope: Scope) -> None:
        """A claim that was given up may still be on its way for a while; then there is none."""
        record = await self._store.look_up(scope)
        if record is not None and await self.let_go_of_stray(record):
            return
        stray = self._strays.get(scope)
        if stray is not None and stray.sought_until < asyncio.get_running_loop().time():
            del self._strays[scope]
