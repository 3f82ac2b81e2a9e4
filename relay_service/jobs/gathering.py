"""Runs under way, and jobs that wait for a moment to go together."""

import asyncio
import contextlib
from dataclasses import dataclass

from relay_service.core.job import Job
from relay_service.core.job_policy import BatchPolicy


@dataclass(slots=True, eq=False)
class RunUnderWay:
    """Which jobs, and the task that carries them."""

    jobs: list[Job]
    task: asyncio.Task[None] | None = None


class Gathering:
    """One batch in the making: full at ``size_max``, closed after the policy's delay at the latest."""

    __slots__ = ("_full", "policy", "run", "size_max")

    def __init__(self, policy: BatchPolicy, size_max: int) -> None:
        self.policy = policy
        self.size_max = size_max
        self.run = RunUnderWay([])
        self._full = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether another must be begun."""
        return len(self.run.jobs) >= self.size_max

    def add(self, job: Job) -> None:
        """One more."""
        self.run.jobs.append(job)
        if self.is_full:
            self._full.set()

    async def closed(self) -> None:
        """Wait until nobody else is waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.policy.max_delay_s):
                await self._full.wait()
