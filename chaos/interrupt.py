"""Running a coroutine so that Ctrl-C and SIGTERM end it through its own clean-up."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 (not an error: somebody asked for it)
    """The run was ended by a signal, and its clean-up is done."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What shells expect: 128 + the signal's number."""
        return 128 + self.signum


T = TypeVar("T")


def run_interruptible(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """``asyncio.run`` that a signal cancels. A second signal cancels the clean-up's waits, not its kills.

    Raises `Interrupted` when a signal was what ended it.
    """
    received: list[int] = []

    async def supervised() -> T:
        task = asyncio.ensure_future(main())
        loop = asyncio.get_running_loop()

        def interrupt(signum: int) -> None:
            received.append(signum)
            task.cancel()

        for signum in SIGNALS:
            loop.add_signal_handler(signum, interrupt, signum)
        try:
            return await task
        finally:
            for signum in SIGNALS:
                loop.remove_signal_handler(signum)

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
