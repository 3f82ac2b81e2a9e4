"""Running the lab's command as a user does, and looking at what it leaves."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RUN_TIMEOUT_S = 200
Lab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def lab() -> Lab:
    """``relay-chaos`` with these words, to its end."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "chaos", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)

    return run


def processes_naming(text: str) -> list[int]:
    """The processes that have this text in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in command:
                found.append(int(folder.name))
    return found


@pytest.fixture
def left_of() -> Callable[[str], list[int]]:
    return processes_naming
