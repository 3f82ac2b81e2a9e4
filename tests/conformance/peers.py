"""The proxies under comparison, each as a process of its own."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import CouldNotStartError, Process

LOOPBACK = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that serves."""

    name: str
    address: str
    process: Process
    admin: str = ""
    """Where a relay answers AdminService; empty for all else."""

    def stop(self) -> None:
        """End the process."""
        self.process.stop()


def start_relay(upstream: str, directory: Path, policy: str, *options: str) -> Peer:
    """The relay as its users start it, all its ports free ones on loopback."""
    name = f"relay-{Path(policy).stem}"
    command = [
        *(sys.executable, "-m", "relay_service", "serve", "--ready-json"),
        *("--listen", LOOPBACK, "--admin-listen", LOOPBACK, "--http-listen", LOOPBACK),
        *("--upstream", upstream, "--policy", policy),
        *options,
    ]
    return _start(name, command, "relay", directory)


def start_reference(upstream: str, directory: Path, unary_methods: tuple[str, ...]) -> Peer:
    """The bare grpc.aio proxy."""
    command = [sys.executable, "-m", "tests.reference_proxy", "--upstream", upstream]
    for method in unary_methods:
        command += ["--unary", method]
    return _start("reference", command, "listen", directory)


def _start(name: str, command: list[str], key: str, directory: Path) -> Peer:
    process = Process(name, command, directory / f"{name}.log", frozenset())
    try:
        ready = process.ready_line()
    except CouldNotStartError:
        process.stop()
        raise
    return Peer(name, str(ready[key]), process, str(ready.get("admin", "")))
