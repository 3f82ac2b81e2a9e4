"""Group commit: writes of one kind that wait together are one transaction, as they are with SQLite.

The first goes at once and alone; what comes while it is under way goes together. So a lone caller waits for
nobody, and under load a commit, its sync and its round trips are shared by many.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from relay_service.stores.engine import Touches
from relay_service.stores.statements import Operation

T = TypeVar("T")


class UndoneError(Exception):
    """The transaction was rolled back, for whatever is its cause: nothing of it happened."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An operation, what it may lock, and who waits for it."""

    operation: Operation[Any]
    touches: Touches
    future: "asyncio.Future[Any]"


RunTogether = Callable[[Sequence[Operation[Any]]], Awaitable[Sequence[Any]]]
"""All in one transaction, each one's result in their order. Raises `UndoneError`, or what nobody knows the
end of."""
RunAlone = Callable[[Operation[Any]], Awaitable[Any]]


class Joined:
    """Operations of one kind. State: what waits, and the lanes at work, with their tasks."""

    def __init__(self, together: RunTogether, alone: RunAlone, *, lanes: int, batch_limit: int) -> None:
        """At most ``lanes`` transactions at a time, of at most ``batch_limit`` operations."""
        self._together = together
        self._alone = alone
        self._lanes = lanes
        self._batch_limit = batch_limit
        self._waiting: deque[Waiting] = deque()
        self._working = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.commits = 0
        self.rows = 0

    def __len__(self) -> int:
        return len(self._waiting)

    async def do(self, operation: Operation[T], touches: Touches) -> T:
        """Queue it and wait. A caller that goes away does not undo what it asked for."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(operation, touches, future))
        if self._working < self._lanes:
            self._working += 1
            task = asyncio.create_task(self._work(), name="writes are joined")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def idle(self, timeout_s: float) -> None:
        """Wait until what waits is done, at most so long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._run(sorted(self._take(), key=lambda waiting: waiting.touches))
        finally:
            # In the same breath as the last look: a task that is over is still there until the loop has seen
            # it, and whoever came meanwhile would wait for it.
            self._working -= 1

    def _take(self) -> list[Waiting]:
        """What waits and touches nothing twice; the others stay, in their order."""
        batch: list[Waiting] = []
        touched: set[tuple[str | bytes, ...]] = set()
        kept: list[Waiting] = []
        for _ in range(min(len(self._waiting), self._batch_limit)):
            waiting = self._waiting.popleft()
            if touched.isdisjoint(waiting.touches):
                batch.append(waiting)
            else:
                kept.append(waiting)
            touched.update(waiting.touches)
        self._waiting.extendleft(reversed(kept))
        return batch

    async def _run(self, batch: Sequence[Waiting]) -> None:
        """One that fails undoes all; each is then run alone, so that it hurts only its own caller."""
        if len(batch) == 1:
            await self._run_alone(batch[0])
            return
        try:
            results = await self._together([waiting.operation for waiting in batch])
        except UndoneError:
            await asyncio.gather(*(self._run_alone(waiting) for waiting in batch))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the callers; the lane lives on
            for waiting in batch:
                _tell(waiting.future, error)
        else:
            self._count(len(batch))
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(result)

    async def _run_alone(self, waiting: Waiting) -> None:
        try:
            result = await self._alone(waiting.operation)
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            _tell(waiting.future, error)
            return
        self._count(1)
        if not waiting.future.done():
            waiting.future.set_result(result)

    def _count(self, rows: int) -> None:
        self.commits += 1
        self.rows += rows


def _tell(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
