"""AdminService: look into the running relay and steer it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from protos.relay.v1 import admin_pb2
from protos.relay.v1.admin_pb2_grpc import AdminServiceServicer
from relay_service.config.candidate import Candidate
from relay_service.config.problems import ConfigError
from relay_service.control.descriptors import UpstreamDescriptors
from relay_service.control.keys import KeyViewer
from relay_service.control.refusals import Context, refuse, refuse_field, refuse_policy
from relay_service.control.sources import HealthSource, ShuttingDownError, StatsSource
from relay_service.control.stats_proto import health_message, policy_message, stats_message
from relay_service.core.reason import Reason
from relay_service.stores.interface import Store
from relay_service.times import seconds

WATCH_INTERVAL_S = 1.0
WATCH_INTERVAL_MIN_S = 0.1
WATCH_INTERVAL_MAX_S = 60.0
DRAIN_GRACE_S = 30.0
DRAIN_GRACE_MAX_S = 3600.0


class Admin(AdminServiceServicer):
    """Answers from the two sources; ``drain(grace_s)`` is what SIGTERM calls too and must return at once,
    ``reload`` is what SIGHUP leads to.

    State: ``_draining``, set once.
    """

    def __init__(
        self,
        *,
        health: HealthSource,
        stats: StatsSource,
        upstreams: Sequence[UpstreamDescriptors],
        drain: Callable[[float], None],
        reload: Callable[[], Awaitable[Candidate]],
        version: str,
        store: Store | None = None,
    ) -> None:
        self._keys = KeyViewer(store)
        self._health = health
        self._stats = stats
        self._upstreams = upstreams
        self._drain = drain
        self._reload = reload
        self._version = version
        self._draining = asyncio.Event()

    def end_watches(self) -> None:
        """Let every WatchStats send its last message and end."""
        self._draining.set()

    async def GetStats(
        self, request: admin_pb2.GetStatsRequest, _context: Context
    ) -> admin_pb2.GetStatsResponse:
        """Everything that is counted, now."""
        return admin_pb2.GetStatsResponse(stats=self._look(request.method_prefix))

    async def WatchStats(
        self, request: admin_pb2.WatchStatsRequest, context: Context
    ) -> AsyncIterator[admin_pb2.WatchStatsResponse]:
        """The same at once, at every interval, and a last time when the relay drains."""
        interval_s = await _seconds(
            context, request, "interval", WATCH_INTERVAL_S, (WATCH_INTERVAL_MIN_S, WATCH_INTERVAL_MAX_S)
        )
        is_last = False
        while not is_last:
            is_last = self._draining.is_set()
            yield admin_pb2.WatchStatsResponse(stats=self._look(request.method_prefix))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._draining.wait()

    async def GetHealth(
        self, _request: admin_pb2.GetHealthRequest, _context: Context
    ) -> admin_pb2.GetHealthResponse:
        """Health in detail."""
        stats = self._stats.stats()
        message = health_message(self._health.health(), stats, self._descriptors, self._version)
        if (store := await self._keys.health()) is not None:
            message.store.CopyFrom(store)
        return message

    async def ListAmbiguous(
        self, request: admin_pb2.ListAmbiguousRequest, context: Context
    ) -> admin_pb2.ListAmbiguousResponse:
        """See `relay_service.control.keys`."""
        return await self._keys.ambiguous(request, context)

    async def GetIdempotencyRecord(
        self, request: admin_pb2.GetIdempotencyRecordRequest, context: Context
    ) -> admin_pb2.GetIdempotencyRecordResponse:
        """See `relay_service.control.keys`."""
        return await self._keys.record(request, context)

    async def ReloadPolicy(
        self, _request: admin_pb2.ReloadPolicyRequest, context: Context
    ) -> admin_pb2.ReloadPolicyResponse:
        """Put the policy as it can be read now into force, or say what is wrong with it."""
        try:
            candidate = await self._reload()
        except ConfigError as error:
            await refuse_policy(context, error.problems)
        except ShuttingDownError:
            await refuse(context, Reason.DRAINING, Reason.DRAINING.meaning)
        warnings = [f"{found.path}: {found.text} [{found.rule}]" for found in candidate.findings]
        return admin_pb2.ReloadPolicyResponse(
            policy=policy_message(self._stats.stats().policy), warnings=warnings
        )

    async def Drain(self, request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.DrainResponse:
        """Begin to drain and say how much there is left to finish. Asking twice changes nothing."""
        grace_s = await _seconds(context, request, "grace", DRAIN_GRACE_S, (0.0, DRAIN_GRACE_MAX_S))
        in_flight = self._stats.stats().calls.in_flight
        self._drain(grace_s)
        return admin_pb2.DrainResponse(in_flight=in_flight)

    def _look(self, method_prefix: str) -> admin_pb2.Stats:
        return stats_message(self._stats.stats(), self._descriptors, method_prefix)

    @property
    def _descriptors(self) -> dict[str, UpstreamDescriptors]:
        return {upstream.name: upstream for upstream in self._upstreams}


async def _seconds(
    context: Context,
    request: admin_pb2.WatchStatsRequest | admin_pb2.DrainRequest,
    field: str,
    default_s: float,
    bounds_s: tuple[float, float],
) -> float:
    """A duration field in seconds; ends the call with INVALID_ARGUMENT when it is out of bounds."""
    if not request.HasField(field):  # type: ignore[arg-type]  # the stubs list each message's own field names
        return default_s
    given_s = seconds(getattr(request, field))
    least, most = bounds_s
    if not least <= given_s <= most:
        await refuse_field(context, field, f"must lie between {least:g} s and {most:g} s, is {given_s:g} s")
    return given_s
