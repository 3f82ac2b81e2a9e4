"""The user's own service as a process: started, broken on purpose, and certainly ended.

Blocking, for tests that are plain functions. Each service runs in a process group of its own and dies with
the test run, also when that is killed with -9 (see `chaos.guard`).
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from chaos.ports import free_port
from chaos.processes import describe_exit, guarded, log_tail

READY_TIMEOUT_S = 20.0
READY_POLL_S = 0.02
STOP_GRACE_S = 5.0
HOST = "127.0.0.1"
PORT_WORD = "{port}"


class ServiceError(RuntimeError):
    """A service did not start, or not in time; the message carries the end of its log."""


class AdoptedProcess:
    """A process that the test started itself and hands over to be broken. It stays the test's to end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Alive, connected and silent (SIGSTOP) for the length of the block."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)


class Service:
    """A command that listens at ``address``; ``{port}`` in it becomes the port, the same after a restart.

    State: the process, if it runs.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log_path: Path,
        name: str = "service",
        port: int = 0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self.address = f"{HOST}:{port or free_port()}"
        self._command = [word.replace(PORT_WORD, self.address.rpartition(":")[2]) for word in command]
        self._cwd = cwd
        self._env = {**os.environ, **(env or {}), "PYTHONUNBUFFERED": "1"}
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name} at {self.address}, {'running' if self.running else 'ended'}>"
        )

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        if self._process is None:
            raise ServiceError(f"{self.name} was never started")
        return self._process.pid

    def start(self, ready_timeout_s: float = READY_TIMEOUT_S) -> None:
        """Run it and wait until it takes connections. Raises `ServiceError`; nothing of it is left then."""
        if self.running:
            raise ServiceError(f"{self.name} is running already (pid {self.pid})")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                guarded(self._command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env=self._env,
                start_new_session=True,
            )
        try:
            self._await_ready(time.monotonic() + ready_timeout_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM, and SIGKILL to its whole group after ``grace_s``. Harmless when it has ended."""
        if self.running:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._reap(grace_s)
        self.kill()

    def kill(self) -> None:
        """kill -9 to its whole group. Harmless when it has ended."""
        if self.running:
            self._signal(signal.SIGKILL)
            self._reap(STOP_GRACE_S)

    def restart(self) -> None:
        """Stop it and start it at the same address."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def killed(self) -> Iterator[None]:
        """Killed with -9 as the block begins, started again at the same address as it ends."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Ended by SIGTERM as the block begins, started again as it ends."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Alive, connected and silent (SIGSTOP) for the length of the block."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _ready(self) -> bool:
        """Whether it takes connections."""
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
            return True
        return False

    def _await_ready(self, give_up_at_s: float) -> None:
        while not self._ready():
            if self._process is not None and (status := self._process.poll()) is not None:
                raise ServiceError(self._told(f"{describe_exit(status)} before it was ready"))
            if time.monotonic() > give_up_at_s:
                raise ServiceError(self._told(f"does not take connections at {self.address}"))
            time.sleep(READY_POLL_S)

    def _told(self, what: str) -> str:
        tail = log_tail(self.log_path)
        return f"{self.name} {what}\n--- end of {self.log_path}\n{tail}" if tail else f"{self.name} {what}"

    def _signal(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)

    def _reap(self, timeout_s: float) -> None:
        if self._process is not None:
            self._process.wait(timeout_s)
