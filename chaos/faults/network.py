"""Faults of the network: each is a toxic for as long as a block lasts, and a window in the history."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from chaos.history import FaultWindow, HistoryWriter
from chaos.toxiproxy.client import Proxy
from chaos.toxiproxy.errors import NotFoundError


@dataclass(frozen=True, slots=True)
class NetworkFault:
    """A toxic with a name for people."""

    name: str
    title: str
    toxic: str
    """Toxiproxy's type."""
    attributes: dict[str, int] = field(default_factory=dict)
    stream: Literal["upstream", "downstream"] = "downstream"


@dataclass(frozen=True, slots=True)
class Pulses:
    """A fault that comes and goes: ``on_s`` of it at the end of every ``every_s``."""

    fault: NetworkFault
    every_s: float
    on_s: float

    def __post_init__(self) -> None:
        if not 0 < self.on_s < self.every_s:
            raise ValueError(f"pulses need 0 < on_s < every_s, not {self.on_s} and {self.every_s}")


@contextlib.asynccontextmanager
async def network_fault(proxy: Proxy, fault: NetworkFault, history: HistoryWriter) -> AsyncIterator[None]:
    """The fault for the length of the block; it is taken away also when the block fails."""
    await asyncio.to_thread(
        proxy.add_toxic, fault.toxic, stream=fault.stream, name=fault.name, **fault.attributes
    )
    begin_s = history.now()
    try:
        yield
    finally:
        with contextlib.suppress(NotFoundError):
            await asyncio.to_thread(proxy.remove_toxic, fault.name)
        history.add(FaultWindow(fault.name, fault.title, begin_s, history.now()))


@contextlib.asynccontextmanager
async def pulsing(proxy: Proxy, pulses: Pulses, history: HistoryWriter) -> AsyncIterator[None]:
    """The fault again and again while the block lasts; gone when it ends."""

    async def pulse() -> None:
        while True:
            await asyncio.sleep(pulses.every_s - pulses.on_s)
            async with network_fault(proxy, pulses.fault, history):
                await asyncio.sleep(pulses.on_s)

    task = asyncio.create_task(pulse())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
