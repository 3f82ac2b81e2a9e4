"""Whatever is broken is mended, also when the end comes while it is being broken."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from chaos.faults.inject import Rig, injected
from chaos.faults.kinds import Fault, Link, Partition, ToxicFault

TIMEOUT_S = 10.0


class SlowProxy:
    """Takes its time to be broken, as a Toxiproxy on a busy machine does."""

    def __init__(self) -> None:
        self.breaking = threading.Event()
        self.go_on = threading.Event()
        self.toxics: set[str] = set()
        self.enabled = True

    def disable(self) -> None:
        self._take_time()
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def add_toxic(self, type_: str, *, stream: str, name: str, **attributes: int) -> None:
        self._take_time()
        self.toxics.add(name)

    def remove_toxic(self, name: str) -> None:
        self.toxics.discard(name)

    def _take_time(self) -> None:
        self.breaking.set()
        assert self.go_on.wait(TIMEOUT_S)


BACK = Link.RELAY_DOWNSTREAM


@pytest.mark.parametrize(
    "fault", [Partition(BACK), ToxicFault(BACK, "latency", (("latency", 10),))], ids=["partition", "toxic"]
)
async def test_a_fault_that_is_called_off_while_it_is_set_is_mended(fault: Fault) -> None:
    """It happened to a flapping network: the scenario ended while its last outage began, and stayed."""
    proxy = SlowProxy()
    history = SimpleNamespace(now=lambda: 0.0, add=lambda _: None)
    rig = Rig(stack=None, links={BACK: proxy}, board=None, history=history)

    async def break_it() -> None:
        async with injected(fault, "fault-0", rig):
            await asyncio.Event().wait()

    task = asyncio.create_task(break_it())
    assert await asyncio.to_thread(proxy.breaking.wait, TIMEOUT_S)
    task.cancel()
    await asyncio.sleep(0)
    proxy.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert proxy.enabled
    assert not proxy.toxics
