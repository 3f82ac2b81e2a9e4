"""What is measured: each subject as a process in front of the same echo."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import envoy
from tests.bench.processes import CouldNotStartError, Process
from tests.bench.toolchain import Tools
from tests.bench.workload import METHOD_PATH

LOOPBACK = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class Running:
    """A subject that serves. ``process`` is None for `direct`, which is no proxy at all."""

    name: str
    address: str
    process: Process | None

    @property
    def port(self) -> int:
        """Where the generator connects."""
        return int(self.address.rpartition(":")[2])

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.stop()


Start = Callable[[str, Path, frozenset[int]], Running]
"""Upstream address, a directory for logs and configuration, the cores to run on."""


def start_relay(upstream: str, directory: Path, cores: frozenset[int]) -> Running:
    """The relay with its default policy, all its ports free ones on loopback."""
    return _start_with_ready_line("relay", _relay(upstream, "default"), "relay", directory, cores)


def start_roomy_relay(upstream: str, directory: Path, cores: frozenset[int]) -> Running:
    """The relay with its default policy and so many workers that a thousand slow calls are all under way."""
    directory.mkdir(parents=True, exist_ok=True)
    policy = directory / "roomy.json"
    policy.write_text(json.dumps({"relay": {"preset": "default", "admission": {"workers": 2_000}}}))
    return _start_with_ready_line("relay", _relay(upstream, str(policy)), "relay", directory, cores)


def start_minimal_relay(upstream: str, directory: Path, cores: frozenset[int]) -> Running:
    """The relay with every pattern switched off."""
    return _start_with_ready_line("minimal", _relay(upstream, "passthrough"), "relay", directory, cores)


def _relay(upstream: str, policy: str) -> list[str]:
    return [
        *(sys.executable, "-m", "relay_service", "serve", "--ready-json"),
        *("--listen", LOOPBACK, "--admin-listen", LOOPBACK, "--http-listen", LOOPBACK),
        *("--upstream", upstream, "--policy", policy),
    ]


def start_bare(upstream: str, directory: Path, cores: frozenset[int]) -> Running:
    """The bare grpc.aio proxy, on its cheaper path: the method is known to be unary."""
    command = [sys.executable, "-m", "tests.reference_proxy", "--upstream", upstream, "--unary", METHOD_PATH]
    return _start_with_ready_line("bare", command, "listen", directory, cores)


def start_envoy(upstream: str, directory: Path, cores: frozenset[int]) -> Running:
    """Envoy with the same retry policy and one worker."""
    return start_protected_envoy(envoy.Protection.NONE, upstream, directory, cores)


def start_protected_envoy(
    protection: envoy.Protection, upstream: str, directory: Path, cores: frozenset[int]
) -> Running:
    """The same with something that keeps its upstream from being flooded."""
    name = protection.value
    directory = directory / name.replace(" ", "-")
    binary = envoy.find_envoy()
    if binary is None:
        raise CouldNotStartError(
            f"envoy: not found; `make bench` installs it, or set {envoy.ENVOY_ENV} to its path"
        )
    command = envoy.command(binary, upstream, directory, protection)
    process = Process(name, command, directory / "envoy.log", cores)
    try:
        process.wait_until(lambda: envoy.listening_address(directory) is not None, "it was serving")
    except CouldNotStartError:
        process.stop()
        raise
    return Running(name, str(envoy.listening_address(directory)), process)


def start_direct(upstream: str, directory: Path, cores: frozenset[int]) -> Running:
    """No proxy: what generator and echo can do by themselves, and the zero of added latency."""
    return Running("direct", upstream, None)


SUBJECTS: dict[str, Start] = {
    "relay": start_relay,
    "bare": start_bare,
    "envoy": start_envoy,
    "direct": start_direct,
}
"""In the order of the tables. Ratios are the first one's to each other proxy."""


def start_echo(
    tools: Tools, directory: Path, cores: frozenset[int], *options: str, name: str = "echo"
) -> tuple[str, Process]:
    """The upstream of all subjects: its address and its process."""
    process = Process(name, [*tools.echo, *options], directory / f"{name}.log", cores)
    try:
        return f"127.0.0.1:{process.ready_line()['port']}", process
    except CouldNotStartError:
        process.stop()
        raise


def _start_with_ready_line(
    name: str, command: list[str], key: str, directory: Path, cores: frozenset[int]
) -> Running:
    process = Process(name, command, directory / f"{name}.log", cores)
    try:
        ready = process.ready_line()
        if key not in ready:
            raise process.failure(f"said no {key!r} in its ready line: {dict(ready)}")
    except CouldNotStartError:
        process.stop()
        raise
    return Running(name, str(ready[key]), process)
