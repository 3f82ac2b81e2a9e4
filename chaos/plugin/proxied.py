"""A way to the user's service through Toxiproxy, and every fault of that way as a ``with`` block."""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Literal

from chaos.history import FaultWindow
from chaos.plugin.recorder import Recorder
from chaos.toxiproxy.client import Proxy, Stream, Toxic
from chaos.toxiproxy.errors import NotFoundError

Direction = Literal["upstream", "downstream", "both"]
"""``upstream`` is what is sent to the service, ``downstream`` its answers."""


class ProxiedUpstream:
    """The service as it is seen through Toxiproxy: connect to ``address``.

    Every fault acts at once, on open connections too, and is gone when its block ends; blocks may be nested,
    also of the same kind. Times are milliseconds, as in Toxiproxy, and faults enter the history as windows.
    """

    def __init__(self, proxy: Proxy, recorder: Recorder) -> None:
        self._proxy = proxy
        self._recorder = recorder
        self._numbers = itertools.count(1)
        self.address = proxy.listen

    def __repr__(self) -> str:
        return f"<ProxiedUpstream {self.address} -> {self._proxy.upstream}>"

    @property
    def toxics(self) -> list[Toxic]:
        """What is in force."""
        return self._proxy.toxics()

    def latency(
        self, latency_ms: int, jitter_ms: int = 0, *, direction: Direction = "downstream"
    ) -> contextlib.AbstractContextManager[None]:
        """Everything takes longer, by ``latency_ms`` plus or minus ``jitter_ms``."""
        return self.toxic("latency", direction, latency=latency_ms, jitter=jitter_ms)

    def bandwidth(
        self, rate_kb_per_s: int, *, direction: Direction = "downstream"
    ) -> contextlib.AbstractContextManager[None]:
        """So many thousand bytes a second and no more."""
        return self.toxic("bandwidth", direction, rate=rate_kb_per_s)

    def slow_close(
        self, delay_ms: int, *, direction: Direction = "downstream"
    ) -> contextlib.AbstractContextManager[None]:
        """Connections close late."""
        return self.toxic("slow_close", direction, delay=delay_ms)

    def timeout(
        self, timeout_ms: int, *, direction: Direction = "downstream"
    ) -> contextlib.AbstractContextManager[None]:
        """Data vanishes, and connections are closed after ``timeout_ms``; they close at the end as well."""
        return self.toxic("timeout", direction, timeout=timeout_ms)

    def blackhole(self, *, direction: Direction = "both") -> contextlib.AbstractContextManager[None]:
        """Data vanishes; connections stay open and silent."""
        return self.toxic("timeout", direction, timeout=0)

    def reset_peer(
        self, timeout_ms: int = 0, *, direction: Direction = "downstream"
    ) -> contextlib.AbstractContextManager[None]:
        """Connections are reset ``timeout_ms`` after their first data."""
        return self.toxic("reset_peer", direction, timeout=timeout_ms)

    def slicer(
        self,
        average_size_bytes: int,
        size_variation_bytes: int = 0,
        delay_us: int = 0,
        *,
        direction: Direction = "downstream",
    ) -> contextlib.AbstractContextManager[None]:
        """Data comes in small pieces, with a wait between them."""
        return self.toxic(
            "slicer",
            direction,
            average_size=average_size_bytes,
            size_variation=size_variation_bytes,
            delay=delay_us,
        )

    def limit_data(
        self, size_bytes: int, *, direction: Direction = "downstream"
    ) -> contextlib.AbstractContextManager[None]:
        """Connections are closed after so many bytes."""
        return self.toxic("limit_data", direction, bytes=size_bytes)

    @contextlib.contextmanager
    def toxic(self, type: str, direction: Direction, **attributes: int) -> Iterator[None]:  # noqa: A002 (the API's word)
        """Any toxic by Toxiproxy's own name and attributes."""
        streams: tuple[Stream, ...] = ("upstream", "downstream") if direction == "both" else (direction,)
        told = ", ".join(f"{name} {value}" for name, value in attributes.items())
        with self._window(type, f"{type} ({told}), {direction}"), contextlib.ExitStack() as stack:
            for stream in streams:
                name = f"{type}_{stream}_{next(self._numbers)}"
                stack.enter_context(self._proxy.toxic(type, stream=stream, name=name, **attributes))
            yield

    @contextlib.contextmanager
    def partition(self) -> Iterator[None]:
        """Nobody can connect, and every connection is closed."""
        with self._window("partition", "no network"):
            self._proxy.disable()
            try:
                yield
            finally:
                self._proxy.enable()

    @contextlib.contextmanager
    def flapping(self, every_s: float, down_s: float) -> Iterator[None]:
        """A partition that comes and goes: ``down_s`` of it at the end of every ``every_s``."""
        if not 0 < down_s < every_s:
            raise ValueError(f"flapping needs 0 < down_s < every_s, not {down_s} and {every_s}")
        ended = threading.Event()

        def flap() -> None:
            while not ended.wait(every_s - down_s):
                self._proxy.disable()
                ended.wait(down_s)
                self._proxy.enable()

        thread = threading.Thread(target=flap, name="chaos-flapping")
        with self._window("flapping", f"network down for {down_s:g} s of every {every_s:g} s"):
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                with contextlib.suppress(NotFoundError):
                    self._proxy.enable()

    @contextlib.contextmanager
    def _window(self, name: str, title: str) -> Iterator[None]:
        begin_s = self._recorder.now()
        try:
            yield
        finally:
            self._recorder.add_fault(FaultWindow(name, title, begin_s, self._recorder.now()))
