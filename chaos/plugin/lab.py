"""What a test gets: ways through Toxiproxy, services, relays, a record; all of it gone when the test ends."""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from chaos.history import new_run
from chaos.plugin.proxied import ProxiedUpstream
from chaos.plugin.recorder import Recorder
from chaos.plugin.relay import Policy, Relay
from chaos.plugin.service import AdoptedProcess, Service
from chaos.toxiproxy.errors import NotFoundError
from chaos.toxiproxy.launcher import Toxiproxy

HISTORY_FILE = "history.jsonl"
Upstream = str | Service | ProxiedUpstream | Sequence[str]
"""``host:port``, something the lab has made, or a command with ``{port}`` to be started."""


class Lab:
    """Makes what a test needs. Make one with `open_lab`, or take the fixture ``chaos_lab``."""

    def __init__(self, toxiproxy: Toxiproxy, folder: Path, seed: int, stack: contextlib.ExitStack) -> None:
        self.toxiproxy = toxiproxy
        self.folder = folder
        """Logs, policies, and the history when the test has ended."""
        self.seed = seed
        self.history = Recorder(seed)
        self._stack = stack
        self._numbers = itertools.count(1)

    def service(
        self,
        command: Sequence[str],
        *,
        name: str = "service",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Service:
        """Start a command that listens at 127.0.0.1 and the port that ``{port}`` stands for in it."""
        service = Service(command, log_path=self._log(name), name=name, cwd=cwd, env=env)
        self._stack.callback(service.stop)
        service.start()
        return service

    def adopt(self, process: "subprocess.Popen[bytes] | subprocess.Popen[str] | int") -> AdoptedProcess:
        """A process of the test's own, to be paused or killed."""
        return AdoptedProcess(process if isinstance(process, int) else process.pid)

    def proxied(self, upstream: Upstream) -> ProxiedUpstream:
        """A way to ``upstream`` through Toxiproxy, at an address of its own."""
        client = self.toxiproxy.client()
        name = f"chaos-{os.getpid()}-{self.seed}-{id(self):x}-{next(self._numbers)}"
        proxy = client.create(name, "127.0.0.1:0", self._address(upstream))

        def remove() -> None:
            with contextlib.suppress(NotFoundError):
                client.delete(name)

        self._stack.callback(remove)
        return ProxiedUpstream(proxy, self.history)

    def relay(self, upstream: Upstream, policy: Policy = "default") -> Relay:
        """A relay that forwards to ``upstream``: a preset, a policy file, or a policy as a dict."""
        relay = Relay(self._address(upstream), policy, log_path=self._log("relay"), seed=self.seed)
        self._stack.callback(relay.stop)
        relay.start()
        return relay

    def _address(self, upstream: Upstream) -> str:
        match upstream:
            case str():
                return upstream
            case Service() | ProxiedUpstream():
                return upstream.address
            case _:
                return self.service(upstream).address

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}-{next(self._numbers)}.log"


@contextlib.contextmanager
def open_lab(toxiproxy: Toxiproxy, folder: Path, seed: int) -> Iterator[Lab]:
    """A lab for as long as the block lasts; then everything it made is ended, the last first.

    Each is ended even when another resists; the history is written to ``folder`` in any case.
    """
    with contextlib.ExitStack() as stack:
        lab = Lab(toxiproxy, folder, seed, stack)
        try:
            yield lab
        finally:
            lab.history.write(folder / HISTORY_FILE, new_run("pytest", seed, toxiproxy.kind))
