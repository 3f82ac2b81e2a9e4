"""How much memory a proxy holds while a thousand calls wait in it, and for connections that do nothing."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench import proc
from tests.bench.cores import Cores
from tests.bench.processes import run_once
from tests.bench.subjects import Running, Start, start_echo
from tests.bench.toolchain import Tools
from tests.bench.workload import CONNECTIONS

CALLS_IN_FLIGHT = 1_000
IDLE_CONNECTIONS = 1_000
RELAY_LIMIT_MIB = 150.0
_SERVICE_S = 1.0
_SAMPLE_INTERVAL_S = 0.02
_WARM_CONNECTIONS = 50
_SETTLE_S = 0.3
_CONNECT_TIMEOUT_S = 10.0
_PREFACE_AND_SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_SETTINGS_ACK = b"\0\0\0\x04\x01\0\0\0\0"
_SETTINGS_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of one subject, MiB, and how many of its calls were answered without being held."""

    subject: str
    idle_mib: float
    peak_mib: float
    calls: int
    failed: int
    kib_per_connection: float
    """What a caller's connection costs that had its handshake and does nothing."""

    @property
    def kib_per_call(self) -> float:
        """What a call in flight adds."""
        return (self.peak_mib - self.idle_mib) * 1024 / self.calls


class PeakRss:
    """The largest resident size of a process while the ``with`` block runs, sampled."""

    def __init__(self, pid: int, read_mib: Callable[[int], float] = proc.rss_mib) -> None:
        self._pid = pid
        self._read_mib = read_mib
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_mib = read_mib(pid)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_INTERVAL_S):
            try:
                self.peak_mib = max(self.peak_mib, self._read_mib(self._pid))
            except ProcessLookupError:
                return


def measure_memory(start: Start, tools: Tools, cores: Cores, directory: Path) -> Memory:
    """A fresh subject in front of an echo that takes its time, with `CALLS_IN_FLIGHT` calls of 100 B at once;
    then another with connections that do nothing, for what one has freed would be used again.

    Every caller waits about as long as the echo takes, so all calls are in flight together.
    Raises `CouldNotStartError`.
    """
    slow = ("--service-us", str(int(_SERVICE_S * 1e6)))
    with ExitStack() as stack:
        address, echo = start_echo(tools, directory, cores.load, *slow, name="slow-echo")
        stack.callback(echo.stop)
        loaded = start(address, directory, cores.subject)
        stack.callback(loaded.stop)
        pid = _pid_of(loaded)
        idle_mib = proc.rss_mib(pid)
        with PeakRss(pid) as rss:
            result = run_once("generator", _command(tools, loaded.port), cores.load, timeout_s=60)
        connected = start(address, directory, cores.subject)
        stack.callback(connected.stop)
        kib_per_connection = _kib_per_connection(_pid_of(connected), connected.port)
    failed = (
        sum(n for code, n in result["status"].items() if code != "0") + result["expired"] + result["lost"]
    )
    calls = int(result["in_flight_peak"])
    return Memory(loaded.name, idle_mib, rss.peak_mib, calls, int(failed), kib_per_connection)


def _pid_of(subject: Running) -> int:
    assert subject.process is not None, "only proxies have memory to measure"
    return subject.process.pid


def _kib_per_connection(pid: int, port: int) -> float:
    """Resident memory that `IDLE_CONNECTIONS` connections add, each."""
    with ExitStack() as stack:
        # The first ones pay for what all share.
        for _ in range(_WARM_CONNECTIONS):
            stack.enter_context(_idle_connection(port))
        time.sleep(_SETTLE_S)
        before_mib = proc.rss_mib(pid)
        for _ in range(IDLE_CONNECTIONS):
            stack.enter_context(_idle_connection(port))
        time.sleep(_SETTLE_S)
        return (proc.rss_mib(pid) - before_mib) * 1024 / IDLE_CONNECTIONS


def _idle_connection(port: int) -> socket.socket:
    """A connection that had its HTTP/2 handshake."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_TIMEOUT_S)
    connection.sendall(_PREFACE_AND_SETTINGS)
    connection.recv(_SETTINGS_BYTES_MAX)
    connection.sendall(_SETTINGS_ACK)
    return connection


def _command(tools: Tools, port: int) -> list[str]:
    return [
        *tools.loadgen,
        *("--port", str(port), "--concurrency", str(CALLS_IN_FLIGHT), "--connections", str(CONNECTIONS)),
        *("--warmup-s", "0.5", "--duration-s", str(_SERVICE_S), "--deadline-ms", "15000"),
    ]
