"""An upstream as the relay's calls hold on to it, so that it goes only after the last of them."""

from collections.abc import Callable

from relay_service.ports import Attempt, AttemptSink, Headers, UpstreamPort


class Destination:
    """Where calls go, and how many of them may still make an attempt there.

    A call counts from its admission to its verdict, so a retry always finds the upstream it began with,
    whatever the policy says by then. State: the calls, and who waits for there to be none.
    """

    __slots__ = ("_on_idle", "calls", "fallbacks", "hedge_port", "port")

    def __init__(self, port: UpstreamPort, hedge_port: UpstreamPort | None = None) -> None:
        """``hedge_port`` is the same service over connections of its own."""
        self.port = port
        self.hedge_port = hedge_port
        self.calls = 0
        self.fallbacks = 0
        """Calls with an attempt here because their own upstream could not take them, since the start."""
        self._on_idle: Callable[[], None] | None = None

    def enter(self) -> None:
        """One more call may make attempts."""
        self.calls += 1

    def leave(self) -> None:
        """A call is over."""
        self.calls -= 1
        if not self.calls and self._on_idle is not None:
            self._on_idle()

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when no call is left, perhaps at once. For one that gets no new calls."""
        self._on_idle = callback
        if not self.calls:
            callback()


class Diversion:
    """A destination as a call meets it whose own is another (a `relay_service.ports.UpstreamPort`).

    The call is counted when it makes its first attempt there: until then it may still end in the queue.
    """

    __slots__ = ("_arrived", "_destination", "name")

    def __init__(self, destination: Destination) -> None:
        self.name = destination.port.name
        self._destination = destination
        self._arrived = False

    def start(self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> Attempt:
        """Begin an attempt there."""
        self._destination.fallbacks += not self._arrived
        self._arrived = True
        return self._destination.port.start(method, metadata, timeout_s, sink)
