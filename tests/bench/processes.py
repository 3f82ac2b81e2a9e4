"""A process of the bench: started on chosen cores, ready by its first line, ended for sure."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""Where ``python -m`` finds the project's modules: the directory every process runs in."""

READY_TIMEOUT_S = 20.0
STOP_GRACE_S = 5.0
_READY_LINE_BYTES_MAX = 64 * 1024
_TAIL_LINES = 3


class CouldNotStartError(Exception):
    """A subject or tool did not come up; the text says why, with the end of its log."""


class Process:
    """A child whose standard output begins with one JSON object when it is ready.

    It runs in a session of its own, so that Ctrl-C reaches only the bench, which then stops it.
    """

    def __init__(self, name: str, command: Sequence[str | Path], log: Path, cores: frozenset[int]) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("wb") as errors, _on_cores(cores):
                self._child = subprocess.Popen(
                    [str(part) for part in command],
                    cwd=ROOT,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
        except OSError as error:
            raise CouldNotStartError(f"{name}: {error}") from error

    @property
    def pid(self) -> int:
        """The id of the process itself: no wrapper stands between."""
        return self._child.pid

    def ready_line(self, timeout_s: float = READY_TIMEOUT_S) -> Mapping[str, Any]:
        """Wait for the first line of standard output and parse it.

        Raises `CouldNotStartError` when it does not come in time or is no JSON object.
        """
        assert self._child.stdout is not None
        line = b""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not selector.select(left_s):
                    raise self.failure(f"was not ready within {timeout_s:g} s")
                piece = os.read(self._child.stdout.fileno(), _READY_LINE_BYTES_MAX)
                line += piece
                if not piece or len(line) > _READY_LINE_BYTES_MAX:
                    raise self.failure("ended before it was ready")
        try:
            ready = json.loads(line)
        except ValueError:
            raise self.failure(f"said {line[:200]!r} instead of a line of JSON") from None
        if not isinstance(ready, dict):
            raise self.failure(f"said {line[:200]!r} instead of a JSON object")
        return ready

    def wait_until(self, found: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Ask ``found`` until it is true, for processes that print no ready line.

        Raises `CouldNotStartError` when the process ends or ``timeout_s`` passes first.
        """
        deadline = time.monotonic() + timeout_s
        while not found():
            if self._child.poll() is not None:
                raise self.failure(f"ended with {self._child.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self.failure(f"{what}: not within {timeout_s:g} s")
            time.sleep(0.05)

    def failure(self, what: str) -> CouldNotStartError:
        """The error that says ``what`` happened to this process, and how its log ends."""
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        return CouldNotStartError(f"{self.name} {what}" + (f"\n{tail}" if tail else ""))

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after `STOP_GRACE_S`. May be called twice."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait(STOP_GRACE_S)
        if self._child.stdout is not None:
            self._child.stdout.close()


def run_once(
    name: str, command: Sequence[str | Path], cores: frozenset[int], timeout_s: float
) -> Mapping[str, Any]:
    """Run a command to its end and parse its standard output as one JSON object.

    Raises `CouldNotStartError` when it fails, prints something else or takes longer than ``timeout_s``.
    """
    try:
        with _on_cores(cores):
            done = subprocess.run(
                [str(part) for part in command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CouldNotStartError(f"{name}: {error}") from error
    if done.returncode != 0:
        raise CouldNotStartError(
            f"{name} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}"
        )
    try:
        result = json.loads(done.stdout)
    except ValueError as error:
        raise CouldNotStartError(f"{name} printed no JSON: {error}") from None
    return dict(result)


def _environment() -> dict[str, str]:
    """Ours without what would configure a subject differently from what the tables say."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "OTEL_", "GRPC_"))
    }


@contextlib.contextmanager
def _on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Be on these cores while a child is started, so that it inherits them from its first instruction on."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
