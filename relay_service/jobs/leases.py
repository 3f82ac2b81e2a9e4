"""The leases this relay holds, and the heartbeat that keeps them."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from relay_service.core.job import Job
from relay_service.core.job_policy import JobPolicy
from relay_service.stores.interface import JobStore, StoreError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Lease:
    fence: int
    until: float


class Leases:
    """Knows which jobs are this relay's, by the monotonic clock and from the cautious side.

    A lease counts from before it was asked for, so that this relay thinks it lost before anybody else
    may take it: after a stall nothing is dispatched on a lease that ran out meanwhile. ``on_lost`` is
    told the id of each job to be given up.
    """

    def __init__(
        self,
        store: JobStore,
        worker: str,
        policy: JobPolicy,
        *,
        now: Callable[[], float],
        on_lost: Callable[[str], None],
    ) -> None:
        self._store = store
        self._worker = worker
        self._policy = policy
        self._now = now
        self._on_lost = on_lost
        self._held: dict[str, _Lease] = {}

    def __len__(self) -> int:
        return len(self._held)

    def took(self, job: Job, asked_at: float) -> None:
        """The job was leased by a request made at ``asked_at``."""
        self._held[job.id] = _Lease(job.fence, asked_at + self._policy.lease_s)

    def let_go(self, job: Job) -> None:
        """Its end is written, or somebody else's."""
        lease = self._held.get(job.id)
        if lease is not None and lease.fence == job.fence:
            del self._held[job.id]

    def holds(self, job: Job) -> bool:
        """Whether nobody else can have been given the job."""
        lease = self._held.get(job.id)
        return lease is not None and lease.fence == job.fence and self._now() < lease.until

    async def keep(self) -> None:
        """Extend all leases again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._policy.heartbeat_s)
            if self._held:
                await self.beat()

    async def beat(self) -> None:
        """Extend all leases once; those that cannot be are lost."""
        asked_at = self._now()
        held = {job_id: lease.fence for job_id, lease in self._held.items()}
        try:
            lost = set(
                await self._store.heartbeat(
                    self._worker, list(held.items()), self._policy.lease_s, self._policy.progress_s
                )
            )
        except StoreError as error:
            log.warning("no heartbeat for %d jobs: %s", len(held), error)
            now = self._now()
            lost = {job_id for job_id, lease in self._held.items() if lease.until <= now}
        else:
            for job_id in held.keys() - lost:
                lease = self._held.get(job_id)
                if lease is not None and lease.fence == held[job_id]:
                    lease.until = asked_at + self._policy.lease_s
        # In the order they were taken, so that a seed decides a simulated run.
        for job_id in [job_id for job_id in self._held if job_id in lost]:
            if self._held[job_id].fence == held.get(job_id):
                del self._held[job_id]
                self._on_lost(job_id)
