"""One process of ours: started, known to be ready, broken on purpose, and certainly ended.

Each runs in a process group of its own, so that Ctrl-C reaches only us and we decide the order of
stopping, and under `chaos.guard`, so that it dies with us even when we are killed with -9.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

READY_TIMEOUT_S = 20.0
STOP_GRACE_S = 5.0
KILL_TIMEOUT_S = 5.0
LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 8192

_GUARD = Path(__file__).with_name("guard.py")


class ProcessError(RuntimeError):
    """A process did not do what it was started for; the message carries the end of its log."""

    def __init__(self, name: str, what: str, log_path: Path) -> None:
        self.name = name
        self.what = what
        self.log_path = log_path
        tail = log_tail(log_path)
        super().__init__(f"{name} {what}\n--- end of {log_path}\n{tail}" if tail else f"{name} {what}")


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log, at most `LOG_TAIL_BYTES`; empty when there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        text = log.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def describe_exit(returncode: int) -> str:
    """A return code in words: ``ended with exit status 1`` or ``was killed by SIGKILL``."""
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"was killed by signal {-returncode}"


def guarded(command: Sequence[str], *, user: str | None = None) -> list[str]:
    """The command line that runs ``command`` so that it dies with this process, as another ``user`` if one
    is named (which takes root). See `chaos.guard`."""
    return [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), user or "-", *command]


class ManagedProcess:
    """A child process that says with one JSON line on stdout that it is ready.

    Both its outputs are appended to ``log_path``. Start it from a thread that outlives it.
    """

    def __init__(self, name: str, log_path: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log_path = log_path
        self._env = {**os.environ, **(env or {}), "PYTHONUNBUFFERED": "1"}
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process id, which is also its group's."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended (a stopped one, SIGSTOP, is running)."""
        return self._process is not None and self._process.returncode is None

    async def start(self, command: Sequence[str], ready_timeout_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Run ``command`` and return the ready line's object.

        Raises `ProcessError` when it dies before, says something else, or says nothing in time; then
        nothing of it is left.
        """
        if self.running:
            raise RuntimeError(f"{self.name} is running already (pid {self.pid})")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab", buffering=0) as log:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._env,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(ready_timeout_s):
                return await self._ready_line(self._process)
        except TimeoutError:
            await self.kill()
            raise ProcessError(
                self.name, f"was not ready within {ready_timeout_s:g} s", self.log_path
            ) from None
        except BaseException:
            await self.kill()
            raise

    async def wait(self) -> int:
        """Wait for its end, however it comes; the return code is negative for a signal."""
        return await self._started().wait()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM, and SIGKILL to the whole group after ``grace_s`` or when we are interrupted again."""
        if not self.running:
            await self._finish()
            return
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            pass
        finally:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL the whole group and reap it. Harmless when it has ended."""
        if self.running:  # else its id may be another's by now
            self._signal(signal.SIGKILL)
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await self.wait()
        await self._finish()

    def pause(self) -> None:
        """SIGSTOP: alive, connected, and silent."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT. Harmless when it was not paused."""
        self._signal(signal.SIGCONT)

    def died(self) -> ProcessError:
        """The error that tells how it ended; call it only when it has."""
        return ProcessError(self.name, describe_exit(self._started().returncode or 0), self.log_path)

    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process

    def _signal(self, signum: signal.Signals) -> None:
        # The group may live on for a moment after its leader has ended, and then be gone.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)

    async def _ready_line(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        stdout = process.stdout
        assert stdout is not None  # noqa: S101 (asked for with PIPE above)
        line = await stdout.readline()
        with self.log_path.open("ab", buffering=0) as log:
            log.write(line)
        if not line:
            await process.wait()
            raise ProcessError(
                self.name, f"{describe_exit(process.returncode or 0)} before it was ready", self.log_path
            )
        try:
            ready = json.loads(line)
        except ValueError:
            ready = None
        if not isinstance(ready, dict):
            raise ProcessError(self.name, f"said {line[:200]!r} where a JSON object was due", self.log_path)
        self._pump = asyncio.create_task(_pump(stdout, self.log_path.open("ab", buffering=0)))
        return ready

    async def _finish(self) -> None:
        """Let the pump write what is left; it ends by itself once the group holds the pipe no more."""
        pump, self._pump = self._pump, None
        if pump is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pump, KILL_TIMEOUT_S)


async def _pump(source: asyncio.StreamReader, log: IO[bytes]) -> None:
    """Append what a process prints after its ready line, so that its pipe never fills."""
    with log:
        while chunk := await source.read(65536):
            log.write(chunk)
