"""The server's clock, as this process sees it between two of its answers."""

import time
from collections.abc import Callable

NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


class ServerClock:
    """Every relay on one store goes by the server's clock; the relay's own wall clock is never read.

    State: how far the server's clock is ahead of the monotonic one, and the last time given out.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._ahead_s = 0.0
        self._last = 0.0

    def set(self, server_s: float) -> None:
        """The server said this time in an answer that has just come: by now it is that late, or later. So
        what this clock says is past is past for the server too."""
        self._ahead_s = server_s - self._monotonic()

    def now(self) -> float:
        """Unix seconds; never earlier than before."""
        self._last = max(self._last, self._monotonic() + self._ahead_s)
        return self._last
