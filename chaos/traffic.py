"""How a plan becomes load: open loop, as independent callers are, or closed loop, as workers are.

In an open loop a slow system does not slow its callers down: calls leave at their planned times however
many are still out, and latency counts from the planned time (otherwise a stall would hide the very calls
that suffered from it). In a closed loop each worker makes its next call when the last one ended.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

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

    @property
    def says_tried(self) -> bool:
        """Whether a later try says that there was one before; application code has no way to."""
        return False

    def pause_after(self, record: CallRecord) -> float | None:
        """Seconds to wait before the next try; None ends it."""
        return None if record.ok or record.client_try >= self.tries_max else self.pause_s


@dataclass(frozen=True, slots=True)
class ObedientRetry(NaiveRetry):
    """A client that tries again only if and when it is told to: gRPC's rule for pushback (gRFC A6)."""

    tries_max: int = 3

    @property
    def says_tried(self) -> bool:
        """It does, in ``grpc-previous-rpc-attempts``."""
        return True

    def pause_after(self, record: CallRecord) -> float | None:
        """As told by ``grpc-retry-pushback-ms``."""
        told_ms = record.pushback_ms
        if record.ok or record.client_try >= self.tries_max or told_ms is None or told_ms < 0:
            return None
        return told_ms / 1000


NO_CLIENT_RETRY = NaiveRetry()


PhaseOf = Callable[[float], str]
"""The name of the phase that a moment of the plan belongs to."""


async def run_open_loop(
    client: Client,
    plan: Iterable[PlannedCall],
    phase: str | PhaseOf,
    *,
    timeout_s: float,
    limits: Limits = Limits(),
    retry: NaiveRetry = NO_CLIENT_RETRY,
) -> int:
    """Offer the plan and wait for its answers; returns how many calls it held, each of them recorded.

    ``phase`` is the name of the phase, or says which one a moment of the plan belongs to.
    """
    began_s = client.history.now()
    phase_of: PhaseOf = phase if callable(phase) else lambda _at_s: phase
    flying: set[asyncio.Task[None]] = set()
    planned_count = 0
    try:
        for planned in plan:
            planned_count += 1
            errand = Errand(planned, phase_of(planned.at_s), began_s + planned.at_s, timeout_s)
            # Also when late: the loop must turn, or a generator that lags would send one great burst.
            await asyncio.sleep(max(0.0, errand.intended_s - client.history.now()))
            if len(flying) >= limits.in_flight_max:
                client.unsent(errand)
                continue
            task = asyncio.create_task(_see_through(client, errand, retry))
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
            await _see_through(client, Errand(planned, phase, client.history.now(), timeout_s), retry)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    return queue.taken


async def _see_through(client: Client, errand: Errand, retry: NaiveRetry) -> None:
    """One operation to its last try."""
    errand = replace(errand, says_tried=retry.says_tried)
    record = await client.call(errand)
    while (pause_s := retry.pause_after(record)) is not None:
        await asyncio.sleep(pause_s)
        errand = replace(errand, intended_s=client.history.now(), client_try=errand.client_try + 1)
        record = await client.call(errand)


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


async def _give_up(flying: set[asyncio.Task[None]]) -> None:
    tasks = list(flying)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
