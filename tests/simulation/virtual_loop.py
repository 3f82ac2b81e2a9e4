"""An asyncio loop whose time passes only when nothing is left to do: deterministic, and never waiting."""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class _Selector(selectors.SelectSelector):
    """Waiting moves the clock; nothing outside ever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits for something that will never happen")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time. ``run`` drives one coroutine and leaves nothing behind."""

    def __init__(self, *, forgiven: type[BaseException] | tuple[()] = ()) -> None:
        self._virtual = _Selector()
        self._forgiven = forgiven
        super().__init__(self._virtual)
        self._broken: list[BaseException] = []
        self.set_exception_handler(self._note)

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, self._forgiven):
            self._broken.append(error)

    def time(self) -> float:
        return self._virtual.now

    def run(self, world: Callable[[], Any]) -> Any:
        asyncio.set_event_loop(self)
        try:
            result = self.run_until_complete(world())
            if self._broken:
                raise self._broken[0]
            return result
        finally:
            left = asyncio.all_tasks(self)
            for task in left:
                task.cancel()
            self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            asyncio.set_event_loop(None)
            self.close()


class LoopClock:
    """The simulator's clock and timers, on a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def now(self) -> float:
        return self._loop.time()

    def call_at(self, when: float, callback: Callable[[Any], None], argument: Any) -> asyncio.TimerHandle:
        return self._loop.call_at(when, callback, argument)
