"""Many short runs of something hostile, and what must hold while and after they go on."""

import asyncio
import gc
import itertools
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

SEED = 9_113
"""Every run draws from a seed of its own: this and its number."""
NORMAL_S = 5.0
SOAK_S = 300.0
BOUND_S = 15.0
"""For what happens at once when all is well."""
WORKERS = 16
RUNS_BETWEEN_CHECKS = 400
GROWTH_BYTES_MAX = 32 * 1024 * 1024


class Watch:
    """Collects what nobody caught: errors in the log, exceptions that reached the loop."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._escaped: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._escaped.append(context))

    def nothing_went_wrong(self, where: str) -> None:
        """Raise with ``where`` when something did."""
        # grpcio logs what the relay's own services cannot decode as its error; it answers all the same.
        records = [record for record in self._caplog.records if not record.name.startswith("grpc.")]
        errors = [record for record in records if record.levelno >= logging.ERROR]
        assert not errors, f"{where}: {self._caplog.text[-4000:]}"
        assert not self._escaped, f"{where}: {self._escaped}"
        self._caplog.clear()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def resident_bytes() -> int:
    """Of this process; 0 where the kernel does not say."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return 0


async def campaign(run: Callable[[int], Any], check: Callable[[int], Any], duration_s: float) -> int:
    """Run numbers from 0 up on some workers for so long, with a check now and then; how many ran."""
    numbers = itertools.count()
    ends_at = time.monotonic() + duration_s

    async def work() -> None:
        while time.monotonic() < ends_at:
            number = next(numbers)
            try:
                async with asyncio.timeout(BOUND_S):
                    await run(number)
            except Exception as error:
                error.add_note(f"seed {SEED}, run {number}")
                raise
            if number % RUNS_BETWEEN_CHECKS == RUNS_BETWEEN_CHECKS - 1:
                await check(number)

    await work_together(work)
    return next(numbers)


async def work_together(work: Callable[[], Any]) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(work())


class Memory:
    """Grows to its size in the first check, and not much after that."""

    def __init__(self) -> None:
        self._settled_bytes = 0

    def check(self, where: str) -> None:
        gc.collect()
        now_bytes = resident_bytes()
        if not self._settled_bytes:
            self._settled_bytes = now_bytes
        grown = now_bytes - self._settled_bytes
        assert grown < GROWTH_BYTES_MAX, f"{where}: {grown} bytes more than after the first check"
