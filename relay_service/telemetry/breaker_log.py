"""A log line when a circuit breaker opens, and one when it has closed again.

The breakers themselves say nothing: they are asked, a few times a second. Openings in between are not
missed, since each breaker counts its own.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from relay_service.core.breaker import BreakerState
from relay_service.core.breakers import BreakerView

LOOK_S = 0.25

log = logging.getLogger(__name__)


class BreakerLog:
    """Compares what ``views`` tells with what it told before.

    State: by upstream and methods, how often each breaker had opened and whether it was last told as open.
    """

    def __init__(self, views: Callable[[], Iterable[BreakerView]]) -> None:
        self._views = views
        self._told: dict[tuple[str, str], tuple[int, bool]] = {}

    async def follow(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Tell what has changed; a breaker that is new, or gone with its policy, is no change."""
        views = list(self._views())
        told, self._told = self._told, {}
        for view in views:
            status = view.status
            opened, was_open = told.get((view.upstream, view.methods), (0, False))
            is_open = status.state is not BreakerState.CLOSED
            self._told[view.upstream, view.methods] = status.opened, is_open
            name = f"{view.upstream} ({view.methods})" if view.methods else view.upstream
            if status.opened > opened and not was_open:
                cause = status.cause.value if status.cause else "unknown"
                log.warning(
                    "the breaker of %s opened: %s, %d of the last %d attempts failed",
                    name,
                    cause,
                    status.failures,
                    status.calls,
                )
            if not is_open and (was_open or status.opened > opened):
                log.info("the breaker of %s closed again, after it had opened %d times", name, status.opened)
