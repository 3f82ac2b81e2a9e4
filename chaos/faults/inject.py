"""The hands: a fault value in, the world broken for as long as a block lasts, mended for certain after it.

Every fault undoes itself also when its block fails or is cancelled. What cannot be undone because the
world is gone (the run is being ended) is left to the stack, whose end takes every process with it.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chaos.collector import Collector
from chaos.faults.board import Board
from chaos.faults.clock import ShiftedClock
from chaos.faults.disk import FaultyDisk
from chaos.faults.kinds import (
    Capacity,
    ClockStep,
    CollectorDown,
    DownstreamKind,
    Failing,
    Fault,
    FaultError,
    Flapping,
    Flood,
    Hanging,
    Kill,
    Link,
    Partition,
    Pause,
    Resets,
    Restart,
    Slow,
    ToxicFault,
)
from chaos.faults.lock import locked
from chaos.faults.store_kinds import DiskBroken, DiskFull, DiskKind, DiskSlow, StoreLocked
from chaos.history import FaultWindow, HistoryWriter
from chaos.memory import PEAK, memory_mb
from chaos.processes import ProcessError
from chaos.schedule import Schedule, TimedFault
from chaos.stack import Member, Stack
from chaos.toxiproxy.client import Proxy, Stream
from chaos.toxiproxy.errors import NotFoundError

START_AGAIN_MAX_S = 20.0
START_AGAIN_PAUSE_S = 0.2


@dataclass(slots=True)
class Rig:
    """All that can be broken. State: who is being broken, so that two faults of one process take turns."""

    stack: Stack
    links: Mapping[Link, Proxy]
    board: Board
    history: HistoryWriter
    collector: Collector | None = None
    clock: ShiftedClock | None = None
    disk: FaultyDisk | None = None
    relay_memory_peak_mb: float | None = None
    """The most that any of the relay's processes took, as far as it was looked at; see `weigh_relay`."""
    _busy: defaultdict[object, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def link(self, link: Link) -> Proxy:
        """The proxy that stands on a link. Raises `FaultError` when nothing does."""
        try:
            return self.links[link]
        except KeyError:
            raise FaultError(f"the scenario's stack has no network {link.words}") from None

    def weigh_relay(self) -> None:
        """Note the relay's peak memory; its process must be looked at before it goes."""
        peak_mb = memory_mb(self.stack.pids()[Member.RELAY.value], PEAK)
        if peak_mb is not None:
            self.relay_memory_peak_mb = max(peak_mb, self.relay_memory_peak_mb or 0.0)

    def turn(self, what: object) -> asyncio.Lock:
        """Held while something is broken that only one fault at a time can break."""
        return self._busy[what]


async def play(schedule: Schedule, rig: Rig, began_s: float) -> None:
    """Break and mend everything at its time, counted from ``began_s`` on the history's clock.

    Returns when the last fault is mended. When one cannot be set the others are mended at once, and its
    error is raised (in an `ExceptionGroup`).
    """
    async with asyncio.TaskGroup() as group:
        for number, timed in enumerate(schedule.faults):
            group.create_task(_play_one(f"fault-{number}", timed, rig, began_s))


async def _play_one(name: str, timed: TimedFault, rig: Rig, began_s: float) -> None:
    await _until(began_s + timed.at_s, rig.history)
    async with injected(timed.fault, name, rig):
        await _until(began_s + timed.end_s, rig.history)


async def _until(at_s: float, history: HistoryWriter) -> None:
    await asyncio.sleep(max(0.0, at_s - history.now()))


@contextlib.asynccontextmanager
async def injected(fault: Fault, name: str, rig: Rig) -> AsyncIterator[None]:
    """The fault for the length of the block, and its window in the history."""
    async with contextlib.AsyncExitStack() as undoing:
        begin_s = rig.history.now()
        undoing.callback(lambda: rig.history.add(FaultWindow(name, fault.title, begin_s, rig.history.now())))
        await undoing.enter_async_context(_broken(fault, name, rig))
        yield


def _broken(  # noqa: C901, PLR0912 (one line for each kind of fault: the table of them all)
    fault: Fault, name: str, rig: Rig
) -> contextlib.AbstractAsyncContextManager[None]:
    match fault:
        case ToxicFault(link, type_, attributes, stream):
            return _toxic(rig.link(link), name, type_, stream, dict(attributes))
        case Partition(link):
            return _partition(rig, link)
        case Flapping(link, every_ms, down_ms):
            return _again_and_again(lambda: _partition(rig, link), every_ms, down_ms)
        case Resets(link, every_ms, on_ms):
            proxy = rig.link(link)
            return _again_and_again(
                lambda: _toxic(proxy, name, "reset_peer", "downstream", {}), every_ms, on_ms
            )
        case Kill(member):
            return _killed(rig, member)
        case Pause(member):
            return _paused(rig, member)
        case Restart(member):
            return _restarted(rig, member)
        case Failing() | Slow() | Hanging() | Capacity():
            return _troubled(rig, name, fault)
        case CollectorDown():
            return _collector_down(rig)
        case ClockStep(step_s):
            return _clock_stepped(rig, step_s)
        case DiskFull() | DiskBroken() | DiskSlow():
            return _disk_failing(rig, fault)
        case StoreLocked():
            return _store_locked(rig)
        case Flood():
            return contextlib.nullcontext()


@contextlib.asynccontextmanager
async def _toxic(
    proxy: Proxy, name: str, type_: str, stream: Stream, attributes: dict[str, int]
) -> AsyncIterator[None]:
    try:  # from here on: whoever is cancelled amid the breaking must mend too
        await _finished(asyncio.to_thread(_add_toxic, proxy, name, type_, stream, attributes))
        yield
    finally:
        with contextlib.suppress(NotFoundError):
            await _finished(asyncio.to_thread(proxy.remove_toxic, name))


def _add_toxic(proxy: Proxy, name: str, type_: str, stream: Stream, attributes: dict[str, int]) -> None:
    proxy.add_toxic(type_, stream=stream, name=name, **attributes)


@contextlib.asynccontextmanager
async def _partition(rig: Rig, link: Link) -> AsyncIterator[None]:
    proxy = rig.link(link)
    async with rig.turn(link):
        try:
            await _finished(asyncio.to_thread(proxy.disable))
            yield
        finally:
            await _finished(asyncio.to_thread(proxy.enable))


@contextlib.asynccontextmanager
async def _again_and_again(make: Any, every_ms: int, on_ms: int) -> AsyncIterator[None]:
    """A fault for ``on_ms`` at the end of every ``every_ms``, while the block lasts."""

    async def pulse() -> None:
        while True:
            await asyncio.sleep((every_ms - on_ms) / 1000)
            async with make():
                await asyncio.sleep(on_ms / 1000)

    task = asyncio.create_task(pulse())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def _killed(rig: Rig, member: Member) -> AsyncIterator[None]:
    async with rig.turn(member):
        try:
            rig.weigh_relay()
            await rig.stack.kill(member)
            yield
        finally:
            await _finished(_start_again(rig, member))


@contextlib.asynccontextmanager
async def _restarted(rig: Rig, member: Member) -> AsyncIterator[None]:
    async with rig.turn(member):
        rig.weigh_relay()
        await _finished(_start_again(rig, member))
        yield


async def _start_again(rig: Rig, member: Member) -> None:
    if member is Member.RELAY and rig.stack.config.store is not None:
        await _supervised(rig)
    else:
        await rig.stack.restart(member)
    if member is Member.DOWNSTREAM:
        await rig.board.tell()


async def _supervised(rig: Rig) -> None:
    """A relay whose store is away may refuse to start: who supervises it starts it again, until it stays."""
    give_up_s = rig.history.now() + START_AGAIN_MAX_S
    while True:
        try:
            return await rig.stack.restart(Member.RELAY)
        except ProcessError:
            if rig.history.now() > give_up_s:
                raise
        await asyncio.sleep(START_AGAIN_PAUSE_S)


@contextlib.asynccontextmanager
async def _paused(rig: Rig, member: Member) -> AsyncIterator[None]:
    if member is Member.STORE:
        raise FaultError("a PostgreSQL is many processes: cut its network instead of stopping one of them")
    async with rig.turn(member):
        rig.stack.pause(member)
        try:
            yield
        finally:
            rig.stack.resume(member)


@contextlib.asynccontextmanager
async def _troubled(rig: Rig, name: str, fault: DownstreamKind) -> AsyncIterator[None]:
    rig.board.put(name, fault)
    try:
        await _told(rig)
        yield
    finally:
        rig.board.take(name)
        await _finished(_told(rig))


async def _told(rig: Rig) -> None:
    """Tell the downstream, once it is neither dead nor stopped."""
    async with rig.turn(Member.DOWNSTREAM):
        await rig.board.tell()


@contextlib.asynccontextmanager
async def _collector_down(rig: Rig) -> AsyncIterator[None]:
    collector = rig.collector
    if collector is None:
        raise FaultError("there is no collector to take down: the scenario's stack has none")
    try:
        await collector.down()
        yield
    finally:
        await _finished(collector.up())


@contextlib.asynccontextmanager
async def _clock_stepped(rig: Rig, step_s: int) -> AsyncIterator[None]:
    if rig.clock is None:
        raise FaultError("the relay has no clock of its own to step: the scenario's stack gives it none")
    rig.clock.step(step_s)
    try:
        yield
    finally:
        rig.clock.step(0)


@contextlib.asynccontextmanager
async def _disk_failing(rig: Rig, fault: DiskKind) -> AsyncIterator[None]:
    disk = rig.disk
    if disk is None:
        raise FaultError("the store has no disk of its own to fail: the scenario's stack gives it none")
    async with rig.turn(disk):
        disk.fail(fault)
        try:
            yield
        finally:
            disk.heal()


@contextlib.asynccontextmanager
async def _store_locked(rig: Rig) -> AsyncIterator[None]:
    async with rig.turn(StoreLocked), locked(rig.stack.config.store_file):
        yield


async def _finished(step: Awaitable[Any]) -> None:
    """The step to its end, also when we are cancelled meanwhile: half a step could not be undone."""
    task = asyncio.ensure_future(step)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
