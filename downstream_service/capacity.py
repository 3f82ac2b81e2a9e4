"""How much work the service can do: N workers, each busy for a service time, and a bounded queue before them.

Theory of operation. A piece of work is a function that begins an effect and returns its future. It waits
for a worker, first in first out; the worker is busy for the service time; then the effect begins. Workers
keep their own time: work taken from the queue starts when the worker's last one ended, not when the event
loop noticed, so timers that fire a millisecond late do not lower the capacity that was asked for.

A caller that leaves while its work waits takes the work with it. Work that a worker has begun runs on to
its end, as it does in services that know nothing of their callers; its result then comes for nobody, which
is counted.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class QueueFullError(Exception):
    """All workers are busy and as much work waits as may."""


@dataclass(frozen=True, slots=True)
class CapacityModel:
    """At best ``workers / service_time_s`` a second, and less at first if ``slow_start_s`` is set."""

    workers: int
    service_time_s: float
    queue_size: int
    slow_start_s: float = 0.0
    slow_start_factor: float = 10.0

    def service_time_at(self, age_s: float) -> float:
        """Return the service time ``age_s`` after the start; it falls from factor times as long in a line."""
        if age_s >= self.slow_start_s:
            return self.service_time_s
        progress = max(0.0, age_s) / self.slow_start_s
        return self.service_time_s * (self.slow_start_factor + (1.0 - self.slow_start_factor) * progress)


@dataclass(slots=True, eq=False)
class _Work(Generic[T]):
    begin: Callable[[], asyncio.Future[T]]
    outcome: asyncio.Future[T]
    arrived_s: float


class Capacity:
    """Runs work under the model in force; without a model everything begins at once.

    Mutable state: the model and its start, the busy workers, the queue, and the counts.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._model: CapacityModel | None = None
        self._model_since_s = now()
        self._busy = 0
        # A dict keeps the order of arrival and lets one that gives up leave from the middle.
        self._queue: dict[asyncio.Future[Any], _Work[Any]] = {}
        self.refused = 0
        self.wasted = 0

    @property
    def queued(self) -> int:
        """Work that waits for a worker."""
        return len(self._queue)

    @property
    def limited(self) -> bool:
        """Whether a model is in force, that is, whether work costs anything."""
        return self._model is not None

    def configure(self, model: CapacityModel | None) -> None:
        """Put another model in force; what waits goes on under it, and slow start begins anew."""
        self._model = model
        self._model_since_s = self._now()
        self._start_waiting(self._model_since_s)

    async def run(self, begin: Callable[[], asyncio.Future[T]]) -> T:
        """Submit work and wait for its result; ``QueueFullError`` if it may not even wait."""
        return await self.result(self.submit(begin))

    def submit(self, begin: Callable[[], asyncio.Future[T]]) -> asyncio.Future[T]:
        """Hand in work. The future is settled with the effect, or cancelled if the work left undone.

        Only ``result`` may await it directly: others must not cancel it by being cancelled themselves.
        """
        work = _Work(begin, asyncio.get_running_loop().create_future(), self._now())
        if self._model is None:
            _begin_effect(work)
        elif self._busy < self._model.workers:
            self._start(work, work.arrived_s, self._model)
        elif len(self._queue) < self._model.queue_size:
            self._queue[work.outcome] = work
        else:
            self.refused += 1
            raise QueueFullError
        return work.outcome

    async def result(self, outcome: asyncio.Future[T]) -> T:
        """Wait for submitted work as the caller that owns it: cancelled, it takes waiting work with it."""
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            self._caller_left(outcome)
            raise

    def _caller_left(self, outcome: asyncio.Future[T]) -> None:
        if self._queue.pop(outcome, None) is not None:
            outcome.cancel()
        elif not outcome.cancelled():
            self.wasted += 1

    def _start(self, work: _Work[Any], start_s: float, model: CapacityModel) -> None:
        self._busy += 1
        end_s = start_s + model.service_time_at(start_s - self._model_since_s)
        delay_s = max(0.0, end_s - self._now())
        asyncio.get_running_loop().call_later(delay_s, self._worker_done, work, end_s)

    def _worker_done(self, work: _Work[Any], end_s: float) -> None:
        self._busy -= 1
        _begin_effect(work)
        self._start_waiting(end_s)

    def _start_waiting(self, free_since_s: float) -> None:
        while self._queue and (self._model is None or self._busy < self._model.workers):
            work = self._queue.pop(next(iter(self._queue)))
            if self._model is None:
                _begin_effect(work)
            else:
                self._start(work, max(free_since_s, work.arrived_s), self._model)


def _begin_effect(work: _Work[T]) -> None:
    try:
        effect = work.begin()
    except Exception as error:  # noqa: BLE001 (whatever it is, it belongs to the one who waits for the outcome)
        work.outcome.set_exception(error)
        return
    effect.add_done_callback(lambda done: _settle(work.outcome, done))


def _settle(outcome: asyncio.Future[T], effect: asyncio.Future[T]) -> None:
    if effect.cancelled():
        outcome.cancel()
    elif (error := effect.exception()) is not None:
        outcome.set_exception(error)
        # Seen here, so that an outcome nobody waits for any more is not reported as forgotten.
        outcome.exception()
    else:
        outcome.set_result(effect.result())
