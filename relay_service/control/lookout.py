"""Looks at the relay once a second, as its own operator, and has told what alerts there are."""

import asyncio
import logging
import time
from collections.abc import Callable

from relay_service.control.sources import Stats, StatsSource
from relay_service.core.alert_policy import AlertPolicy
from relay_service.core.alerts import Alert, Alerts, Look
from relay_service.core.breaker import BreakerState
from relay_service.core.reason import Reason
from relay_service.stores.interface import UNSETTLED, Store
from relay_service.telemetry.alerts import AlertDesk

LOOK_S = 1.0
STORE_ANSWER_S = 5.0
"""A store that says nothing for so long does not work."""

FAILURES = ("UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Ends that are mostly the upstream's doing or the relay's, what an open breaker refuses among them."""
ANSWERS = ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE")
"""Ends that show a working upstream; what is refused for load and what is cancelled show nothing."""

log = logging.getLogger(__name__)


class Lookout:
    """Follows the policy in force: without `AlertPolicy` it looks away.

    State: the alerts, under the policy they were judged by.
    """

    def __init__(
        self,
        stats: StatsSource,
        store: Store | None,
        in_force: Callable[[], AlertPolicy | None],
        desk: AlertDesk,
        *,
        now: Callable[[], float],
    ) -> None:
        self._stats = stats
        self._store = store
        self._in_force = in_force
        self._desk = desk
        self._now = now
        self._alerts: Alerts | None = None

    def firing(self) -> list[Alert]:
        """What was told and is not over."""
        return self._alerts.firing if self._alerts is not None else []

    async def follow(self) -> None:
        """Look until cancelled. Whatever goes wrong here harms no call."""
        while True:
            try:
                await self.look()
            except Exception:  # an alert must never break the relay
                log.exception("the relay could not be looked at")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look once and tell what is new."""
        policy = self._in_force()
        if policy is None:
            self._alerts = None
            return
        if self._alerts is None:
            self._alerts = Alerts(policy)
        self._alerts.policy = policy
        look = look_of(self._stats.stats(), await self._store_trouble())
        now = self._now()
        for alert in self._alerts.look(look, now):
            self._desk.tell(alert, now, time.time())

    async def _store_trouble(self) -> str:
        if self._store is None:
            return ""
        try:
            async with asyncio.timeout(STORE_ANSWER_S):
                return await self._store.healthy()
        except TimeoutError:
            return f"no answer within {STORE_ANSWER_S:g} s"


def look_of(stats: Stats, store_trouble: str) -> Look:
    """What alerts are judged by."""
    jobs = stats.jobs
    failed = sum(method.by_code.get(code, 0) for method in stats.methods for code in FAILURES)
    # INTERNAL as well, and the doing of neither.
    failed -= stats.calls.by_reason.get(Reason.MALFORMED_REQUEST.name, 0)
    answered = sum(method.by_code.get(code, 0) for method in stats.methods for code in ANSWERS)
    return Look(
        store_trouble=store_trouble,
        upstreams_away={one.name: one.last_error for one in stats.upstreams if one.state == "BACKING_OFF"},
        breakers_open=frozenset(
            f"{view.upstream} ({view.methods})" if view.methods else view.upstream
            for upstream in stats.upstreams
            for view in upstream.breakers
            if view.status.state is not BreakerState.CLOSED
        ),
        oldest_ready_s=jobs.oldest_ready_s if jobs is not None else 0.0,
        unsettled=sum(jobs.letters.get(state, 0) for state in UNSETTLED) if jobs is not None else 0,
        letters_max=jobs.letters_max if jobs is not None else 0,
        ended=failed + answered,
        errors=failed,
        leases_lost=jobs.counters.leases_lost if jobs is not None else 0,
    )
