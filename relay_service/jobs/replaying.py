"""Replaying many dead letters without hurting a downstream that may still be broken.

First the canary: a few letters, one after another and with one attempt each, and the first that fails
ends it all. Then the rest at a bounded rate, until too many have failed.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from relay_service.core.job import DeadLetter, Job
from relay_service.jobs.forecast import Forecast, Happened, what_happened
from relay_service.jobs.letters import REPLAY_AS_IT_WAS, REPLAY_ONCE, LetterNotOpenError, Letters
from relay_service.stores.interface import JobStore, LetterFilter

LETTERS_MAX = 100_000
"""Of one replay; run another for more."""
UNDER_WAY_MAX = 64


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """Which letters, and how carefully."""

    which: LetterFilter
    by: str
    rate_per_s: float = 10.0
    canary: int = 1
    """Letters replayed one by one first; 0 begins with the rest."""
    failures_max: int = 10
    """After so many failures nothing more is begun."""
    wait_s: float = 60.0
    """How long one replay's end is waited for."""


@dataclass(frozen=True, slots=True)
class ReplayEnd:
    """One letter's replay is over."""

    forecast: Forecast
    happened: Happened
    job_id: str = ""
    detail: str = ""


@dataclass(slots=True)
class ReplayReport:
    """What was expected and what happened."""

    total: int = 0
    stopped: str = ""
    """Why not all were begun; empty when all were."""
    happened: Counter[Happened] = field(default_factory=Counter)
    contradicted: list[ReplayEnd] = field(default_factory=list)
    """Ends that the forecast had ruled out."""

    def count(self, end: ReplayEnd) -> None:
        """One more."""
        self.happened[end.happened] += 1
        if end.forecast.is_contradicted(end.happened):
            self.contradicted.append(end)

    @property
    def not_begun(self) -> int:
        """Letters whose turn did not come."""
        return self.total - self.happened.total()

    @property
    def failures(self) -> int:
        """Replays that did not succeed in time."""
        return self.happened[Happened.FAILED] + self.happened[Happened.UNFINISHED]


class Replayer:
    """Carries a plan out."""

    def __init__(self, store: JobStore, letters: Letters, wake: Callable[[], None]) -> None:
        """``wake`` tells this relay's workers that there is work."""
        self._store = store
        self._letters = letters
        self._wake = wake

    async def chosen(self, which: LetterFilter) -> Sequence[DeadLetter]:
        """The letters of a filter, oldest first, so that those of one order key keep their order."""
        found = []
        async for letter in self._letters.each(which):
            found.append(letter)
            if len(found) == LETTERS_MAX:
                break
        return found[::-1]

    async def run(self, plan: ReplayPlan, report: ReplayReport) -> AsyncIterator[ReplayEnd]:
        """Each letter's end as it comes; ``report`` is filled along and complete at the end.

        Cancelling it begins nothing more; what was begun goes on by itself.
        """
        letters = await self.chosen(plan.which)
        report.total = len(letters)
        for letter in letters[: plan.canary]:
            end = await self._one(letter, plan, REPLAY_ONCE)
            report.count(end)
            yield end
            if report.failures:
                report.stopped = f"the canary failed: {end.detail or end.happened.value}"
                return
        async for end in self._rest(letters[plan.canary :], plan, report):
            yield end

    async def _rest(
        self, letters: Sequence[DeadLetter], plan: ReplayPlan, report: ReplayReport
    ) -> AsyncIterator[ReplayEnd]:
        left = iter(letters)
        under_way: set[asyncio.Task[ReplayEnd]] = set()
        pace = asyncio.create_task(asyncio.sleep(0))
        try:
            while True:
                may_begin = not report.stopped and len(under_way) < UNDER_WAY_MAX
                if may_begin and pace.done():
                    if (letter := next(left, None)) is None:
                        break
                    under_way.add(asyncio.create_task(self._one(letter, plan, REPLAY_AS_IT_WAS)))
                    pace = asyncio.create_task(asyncio.sleep(1 / plan.rate_per_s))
                    continue
                if report.stopped:
                    break
                waits = {*under_way, pace} if may_begin else under_way
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for end in _ended(under_way):
                    yield _counted(end, plan, report)
            while under_way:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for end in _ended(under_way):
                    yield _counted(end, plan, report)
        finally:
            for task in (*under_way, pace):
                task.cancel()
            await asyncio.gather(*under_way, pace, return_exceptions=True)

    async def _one(
        self, letter: DeadLetter, plan: ReplayPlan, hints: tuple[tuple[str, bytes], ...]
    ) -> ReplayEnd:
        forecast = await self._letters.forecast(letter)
        try:
            job_id = await self._letters.replay(letter, plan.by, hints)
        except LetterNotOpenError as error:
            return ReplayEnd(forecast, Happened.NOT_STARTED, detail=str(error))
        self._wake()
        job = await self._end_of(job_id, plan.wait_s)
        if job is None:
            return ReplayEnd(forecast, Happened.UNFINISHED, job_id)
        last = job.tries[-1] if job.tries else None
        happened = what_happened(job.state, last.message if last else "")
        return ReplayEnd(forecast, happened, job_id, f"{last.code.name}: {last.message}" if last else "")

    async def _end_of(self, job_id: str, wait_s: float) -> Job | None:
        """The job as it ended; None when it has not within ``wait_s``."""
        job = None
        try:
            async with asyncio.timeout(wait_s):
                async for job in self._store.job_changes(job_id):  # noqa: B007 (the last one is wanted)
                    pass
        except TimeoutError:
            return None
        return job


def _ended(under_way: set[asyncio.Task[ReplayEnd]]) -> list[ReplayEnd]:
    done = {task for task in under_way if task.done()}
    under_way -= done
    return [task.result() for task in done]


def _counted(end: ReplayEnd, plan: ReplayPlan, report: ReplayReport) -> ReplayEnd:
    report.count(end)
    if report.failures >= plan.failures_max and not report.stopped:
        report.stopped = f"{report.failures} replays failed"
    return end
