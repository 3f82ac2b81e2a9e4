"""Helpers for the stack's tests: a process to manage, proof that a process is gone, bounded waits."""

import asyncio
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

Script = Callable[[str], list[str]]
Until = Callable[[Callable[[], bool], str], None]


def alive(pid: int) -> bool:
    """Whether a process runs (one that only waits to be reaped does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    return alive


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """The command that runs a small Python program."""

    def make(source: str) -> list[str]:
        path = tmp_path / f"script-{len(list(tmp_path.glob('script-*')))}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return [sys.executable, str(path)]

    return make


@pytest.fixture
def until() -> Until:
    """Wait for a condition of the world outside (another process), which sends no event."""

    def wait(condition: Callable[[], bool], what: str) -> None:
        give_up_at_s = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < give_up_at_s, f"not within 10 s: {what}"
            time.sleep(0.02)

    return wait


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    """Fail when a test leaves an asyncio task behind."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left
