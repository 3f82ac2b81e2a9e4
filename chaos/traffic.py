"""How a plan becomes load: open loop, as independent callers are, or closed loop, as workers are.

In an open loop a slow system does not slow its callers down: calls leave at their planned times however
many are still out, and latency counts from the planned time (otherwise a stall would hide the very calls
that suffered from it). In a closed loop each worker makes its next call when the last one ended.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from chaos.client import Client, Errand
from chaos.history import CallRecord
from chaos.plan import PlannedCall


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what the generator itself may do."""

    in_flight_max: int = 2000
    """Open loop: a call due beyond it is recorded as unsent."""
    drain_s: float = 15.0
    """How long to wait for the last answers; what is still out then is given up and recorded so."""


@dataclass(frozen=True, slots=True)
class NaiveRetry:
    """A client that tries again itself on any failure, as application code often does."""

    tries_max: int = 1
    pause_s: float = 0.05


NO_CLIENT_RETRY = NaiveRetry()


async def run_open_loop(
    client: Client, plan: Iterable[PlannedCall], phase: str, *, timeout_s: float, limits: Limits = Limits()
) -> int:
    """Offer the plan and wait for its answers; returns how many calls it held, each of them recorded."""
    began_s = client.history.now()
    flying: set[asyncio.Task[CallRecord]] = set()
    planned_count = 0
    try:
        for planned in plan:
            planned_count += 1
            errand = Errand(planned, phase, began_s + planned.at_s, timeout_s)
            # Also when late: the loop must turn, or a generator that lags would send one great burst.
            await asyncio.sleep(max(0.0, errand.intended_s - client.history.now()))
            if len(flying) >= limits.in_flight_max:
                client.unsent(errand)
                continue
            task = asyncio.create_task(client.call(errand))
            flying.add(task)
            task.add_done_callback(flying.discard)
        if flying:
            await asyncio.wait(flying, timeout=limits.drain_s)
    finally:
        await _give_up(flying)
    return planned_count


async def run_closed_loop(
    client: Client,
    plan: Iterable[PlannedCall],
    phase: str,
    *,
    workers: int,
    for_s: float,
    timeout_s: float,
    retry: NaiveRetry = NO_CLIENT_RETRY,
) -> int:
    """Let ``workers`` take calls from the plan, one at a time each, for ``for_s``; its times are ignored.

    Returns how many operations were begun; each is seen through to its last try. A call's intended time
    is when its worker was free for it.
    """
    queue = _Counted(plan)
    last_begin_s = client.history.now() + for_s

    async def work() -> None:
        while client.history.now() < last_begin_s and (planned := next(queue, None)) is not None:
            for client_try in range(1, retry.tries_max + 1):
                errand = Errand(planned, phase, client.history.now(), timeout_s, client_try)
                if (await client.call(errand)).ok:
                    break
                if client_try < retry.tries_max:
                    await asyncio.sleep(retry.pause_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    return queue.taken


class _Counted:
    """An iterator shared by the workers that knows how many items it gave out."""

    def __init__(self, plan: Iterable[PlannedCall]) -> None:
        self._plan = iter(plan)
        self.taken = 0

    def __iter__(self) -> Iterator[PlannedCall]:
        return self

    def __next__(self) -> PlannedCall:
        planned = next(self._plan)
        self.taken += 1
        return planned


async def _give_up(flying: set[asyncio.Task[CallRecord]]) -> None:
    tasks = list(flying)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
