"""A thread that runs what waits for it, batch by batch, and tells the event loop once per batch."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from relay_service.core.value import value
from relay_service.stores.interface import StoreUnavailableError
from relay_service.stores.statements import Operation


@value
class Waiting:
    """An operation and who waits for it."""

    operation: Operation[Any]
    future: "asyncio.Future[Any]"


@value
class Outcome:
    """What became of it: a value, or the error its caller gets."""

    future: "asyncio.Future[Any]"
    value: Any = None
    error: BaseException | None = None


class Batches(Protocol):
    """What a lane does with the operations that waited together."""

    def run(self, batch: Sequence[Waiting]) -> tuple[Sequence[Outcome], set[str]]:
        """Their outcomes, none left out, and the topics to wake. Called on its thread; never raises."""


class Lane:
    """One thread, one connection, one bounded queue.

    State: the queue, and how many operations are under way (`_under_way`, only touched on the loop).
    """

    def __init__(
        self,
        name: str,
        batches: Batches,
        *,
        queue_limit: int,
        batch_limit: int,
        wake: Callable[[str], None],
    ) -> None:
        self._name = name
        self._batches = batches
        self._queue_limit = queue_limit
        self._batch_limit = batch_limit
        self._wake = wake
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._under_way = 0
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    async def do(self, operation: Operation[Any]) -> Any:
        """Queue it and wait. A caller that goes away does not undo what it asked for.

        Raises `StoreUnavailableError` when the queue is full or the lane has stopped.
        """
        if self._stopped:
            raise StoreUnavailableError("the store is closed")
        if self._under_way >= self._queue_limit:
            raise StoreUnavailableError(
                f"{self._under_way} operations wait for {self._name} already: the disk does not keep up"
            )
        self._under_way += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(Waiting(operation, future))
        return await future

    async def stop(self) -> None:
        """Do what waits, then end."""
        if not self._stopped:
            self._stopped = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _main(self) -> None:
        last = False
        while not last:
            batch, last = self._take()
            if batch:
                outcomes, topics = self._batches.run(batch)
                self._loop.call_soon_threadsafe(self._deliver, outcomes, topics)

    def _take(self) -> tuple[list[Waiting], bool]:
        """All that waits, at least one, and whether it is the end."""
        first = self._queue.get()
        if first is None:
            return [], True
        batch = [first]
        while len(batch) < self._batch_limit:
            try:
                another = self._queue.get_nowait()
            except queue.Empty:
                break
            if another is None:
                return batch, True
            batch.append(another)
        return batch, False

    def _deliver(self, outcomes: Sequence[Outcome], topics: set[str]) -> None:
        self._under_way -= len(outcomes)
        for outcome in outcomes:
            if outcome.future.done():
                continue
            if outcome.error is None:
                outcome.future.set_result(outcome.value)
            else:
                outcome.future.set_exception(outcome.error)
        for topic in topics:
            self._wake(topic)
