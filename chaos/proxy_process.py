"""Toxiproxy as a member of the stack: the same verbs as `ManagedProcess`, over the launcher's handle."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from chaos.processes import ProcessError
from chaos.toxiproxy.client import Proxy, ProxySpec, ToxiproxyClient
from chaos.toxiproxy.errors import DiedError, NotFoundError, ToxiproxyError
from chaos.toxiproxy.launcher import Choice, Running, Toxiproxy, find, launch

LIVENESS_BEAT_S = 0.5


class ProxyProcess:
    """One Toxiproxy with one proxy in it.

    One that somebody else runs (``TOXIPROXY_URL``) is joined: its proxy is made and taken away again, and
    it cannot be killed or paused.
    """

    def __init__(self, proxy_name: str, seed: int, log_dir: Path) -> None:
        self.name = "toxiproxy"
        self._proxy_name = proxy_name
        self._seed = seed
        self._log_dir = log_dir
        self._choice: Choice = find()
        self._server: Toxiproxy | None = None

    @property
    def joined(self) -> bool:
        """Whether it is somebody else's."""
        return isinstance(self._choice, Running)

    @property
    def server(self) -> Toxiproxy:
        """The launcher's handle."""
        if self._server is None:
            raise RuntimeError("Toxiproxy was never started")
        return self._server

    @property
    def pid(self) -> int | None:
        """Its process id; None when it is somebody else's."""
        return self.server.pid

    @property
    def client(self) -> ToxiproxyClient:
        """A client for its API; blocking, see `proxy`."""
        return self.server.client()

    async def proxy(self) -> Proxy:
        """The proxy, as it is now."""
        return await asyncio.to_thread(self.client.get, self._proxy_name)

    async def start(self, api: str, listen: str, upstream: str) -> Proxy:
        """Start or join the server and make the proxy. Raises `ProcessError`; nothing is left then."""
        host, _, port = api.rpartition(":")
        try:
            # Not in a thread of the pool: the server lives as long as the thread that started it.
            self._server = launch(
                self._choice, host=host, port=int(port), seed=self._seed, log_dir=self._log_dir
            )
            spec = ProxySpec(self._proxy_name, listen, upstream)
            (proxy,) = await asyncio.to_thread(self.client.populate, [spec])
        except ToxiproxyError as error:
            await self.stop()
            raise ProcessError(self.name, f"could not serve: {error}", self._log_dir / "none") from error
        except BaseException:
            await self.stop()
            raise
        return proxy

    async def wait(self) -> int:
        """Return when it no longer lives."""
        while True:
            try:
                await asyncio.to_thread(self.server.check)
            except DiedError:
                return 1
            await asyncio.sleep(LIVENESS_BEAT_S)

    async def stop(self) -> None:
        """End it, or leave somebody else's as it was found."""
        server, self._server = self._server, None
        if server is None:
            return
        if self.joined:
            with contextlib.suppress(ToxiproxyError, NotFoundError):
                await asyncio.to_thread(server.client().delete, self._proxy_name)
            return
        if server.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGCONT)
        server.stop()

    async def kill(self) -> None:
        """SIGKILL, at once."""
        self._signal(signal.SIGKILL)
        self.server.stop()

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def died(self) -> ProcessError:
        """The error that tells how it ended."""
        try:
            self.server.check()
        except DiedError as error:
            return ProcessError(self.name, str(error), self._log_dir / "none")
        return ProcessError(self.name, "ended", self._log_dir / "none")

    def _signal(self, signum: signal.Signals) -> None:
        if self.pid is None:
            raise RuntimeError(f"{self._choice} is not ours to signal")
        os.kill(self.pid, signum)
