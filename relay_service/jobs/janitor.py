"""What has to be done now and then: expiry, sweeping, counting, automatic recovery."""

import asyncio
import logging
from collections.abc import Callable

from relay_service.core.job import Cause
from relay_service.core.job_policy import JobPolicy
from relay_service.core.job_step import Bury
from relay_service.jobs.recovery import AutomaticRecovery
from relay_service.jobs.settling import Settler
from relay_service.stores.interface import Counts, Store, StoreError

ROUND_S = 1.0
SWEEP_MAX = 1_000
"""Of each kind in a round, so that none holds the store up."""

log = logging.getLogger(__name__)


class Janitor:
    """Makes its rounds until cancelled; a store that is away only makes it come again."""

    def __init__(
        self,
        store: Store,
        settler: Settler,
        recovery: AutomaticRecovery,
        *,
        policy: JobPolicy,
        wake: Callable[[], None],
        counted: Callable[[Counts], None],
    ) -> None:
        """``counted`` is told at the end of each round what there is."""
        self._store = store
        self._settler = settler
        self._recovery = recovery
        self._policy = policy
        self._wake = wake
        self._counted = counted

    async def work(self) -> None:
        """A round, a pause, and again."""
        while True:
            try:
                await self.round()
            except StoreError as error:
                log.warning("the store cannot be tidied: %s", error)
            except Exception:  # one letter that breaks a round must not end all rounds
                log.exception("the store could not be tidied")
            await asyncio.sleep(ROUND_S)

    async def round(self) -> None:
        """Bury what expired, forget what is over, recover what the policy says, count what is there."""
        for job in await self._store.expired(limit=SWEEP_MAX):
            await self._settler.write(job, Bury(Cause.EXPIRED), None)
        for letter in await self._store.sweep_letters(limit=SWEEP_MAX):
            log.warning(
                "dead letter %s (%s, %s) is past its time and was removed",
                letter.id,
                letter.work.method,
                letter.cause.name,
            )
        await self._store.sweep_jobs(keep_s=self._policy.keep_s, limit=SWEEP_MAX)
        if await self._recovery.round():
            self._wake()
        self._counted(await self._store.counts())
