"""Where hedges go: the same upstream over a connection that first attempts never use.

A hedge is a bet that the first attempt is slow by bad luck. On the same connection it would share that
luck: a lost packet holds up everything behind it, and a connection that is dead is dead for both.
"""

from relay_service.ports import Attempt, AttemptSink, Headers, PoolStatus
from relay_service.upstream import Upstream


class HedgeLane:
    """Implements `relay_service.ports.UpstreamPort` over an `Upstream` of its own, opened on first need.

    From then on its connection rests between hedges, watched and replaced like any other.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.name = upstream.name
        self._upstream = upstream
        self._opened = False

    def start(self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> Attempt:
        """Begin an attempt; the first one waits for its connection."""
        if not self._opened:
            self._opened = True
            self._upstream.open()
        return self._upstream.start(method, metadata, timeout_s, sink)

    @property
    def connections(self) -> int:
        """Connections that may take hedges now."""
        return self._upstream.connections

    def pool(self) -> PoolStatus:
        """The connections of their own now, and what happened to them since the start."""
        return self._upstream.pool()

    async def close(self, grace_s: float) -> None:
        """Start nothing more; let hedges end for ``grace_s``, then drop them."""
        await self._upstream.close(grace_s)
