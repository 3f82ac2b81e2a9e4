"""The embedded server: the HTTP API on an address of its own, and the proxies behind it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from chaos.toxiproxy.embedded import addresses, api
from chaos.toxiproxy.embedded.collection import Collection

SHUTDOWN_TIMEOUT_S: Final = 1.0


class EmbeddedToxiproxy:
    """A Toxiproxy in this process's event loop. `port` 0 takes a free one; `url` tells which.

    `seed` decides every draw (toxicity, jitter, slice sizes): the same toxics on the same connections in the
    same order do the same again. Use it as an async context manager, or `start` and `stop` it.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, seed: int = 0) -> None:
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._collection = Collection(str(seed))
        self._runner: web.AppRunner | None = None
        self._bound = ""

    @property
    def url(self) -> str:
        """Where the API is, once started."""
        return f"http://{self._bound}"

    async def start(self) -> None:
        """Listen. Raises AddressError (a ValueError) where the address cannot be had; returns when ready."""
        listener = await addresses.listen(self._address)
        self._bound = addresses.bound_address(listener)
        self._runner = web.AppRunner(
            api.application(self._collection), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Close the API, every proxy and every connection; nothing is left running."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        await self._collection.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()


async def serve(host: str, port: int, seed: int, on_ready: Callable[[str], None]) -> None:
    """Run a server until SIGTERM or SIGINT; `on_ready` gets its URL. Raises AddressError."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
            loop.add_signal_handler(signum, stopped.set)
    async with EmbeddedToxiproxy(host, port, seed=seed) as server:
        on_ready(server.url)
        await stopped.wait()


def run(host: str, port: int, seed: int, on_ready: Callable[[str], None]) -> None:
    """`serve` in an event loop of its own, uvloop where it is installed. Raises AddressError."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(host, port, seed, on_ready))
    else:
        uvloop.run(serve(host, port, seed, on_ready))
