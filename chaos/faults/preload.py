"""Small C libraries put before the C library of one process by ``LD_PRELOAD``, steered through a mapped file.

That is how a single process gets a wall clock or a disk of its own, which can then fail without touching
the machine's. Needs Linux and a C compiler.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from chaos.faults.kinds import FaultError

COMPILE_TIMEOUT_S = 30.0
_PRELOAD = "LD_PRELOAD"


class Preloaded(Protocol):
    """Something that a process must be started with."""

    @property
    def env(self) -> Mapping[str, str]:
        """What to start the process with; its ``LD_PRELOAD`` is one library."""


def joined_env(preloaded: Iterable[Preloaded]) -> dict[str, str]:
    """The environment for a process that is to have all of them."""
    env: dict[str, str] = {}
    for each in preloaded:
        libraries = [env[_PRELOAD]] if _PRELOAD in env else []
        env |= each.env
        env[_PRELOAD] = ":".join([*libraries, each.env[_PRELOAD]])
    return env


def compiled(source: Path, library: Path, purpose: str) -> Path:
    """Build ``source`` as a shared library; its absolute path. Raises `FaultError` where that cannot be."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        raise FaultError(f"{purpose} needs Linux and a C compiler (cc, gcc or clang)")
    library.parent.mkdir(parents=True, exist_ok=True)
    options = ["-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    built = subprocess.run(
        [compiler, *options], capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
    )
    if built.returncode != 0:
        raise FaultError(f"{source.name} does not compile: {built.stderr.strip()[:500]}")
    return library.resolve()
