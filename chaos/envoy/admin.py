"""The statistics of an Envoy, asked for as a relay's are."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from chaos.envoy.process import ask
from chaos.envoy.statistics import WANTED, as_stats, parse
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
BEAT_MIN_S = 0.1


class EnvoyAdmin(admin_pb2_grpc.AdminServiceServicer):
    """``GetStats`` and ``WatchStats`` in front of Envoy's admin pages; all else is UNIMPLEMENTED."""

    def __init__(self, admin: str, requests_max: int) -> None:
        self._admin = admin
        self._requests_max = requests_max
        self._began_s = time.monotonic()

    async def GetStats(
        self, _request: admin_pb2.GetStatsRequest, context: Context
    ) -> admin_pb2.GetStatsResponse:
        """Envoy's counters now."""
        return admin_pb2.GetStatsResponse(stats=await self._stats(context))

    async def WatchStats(
        self, request: admin_pb2.WatchStatsRequest, context: Context
    ) -> AsyncIterator[admin_pb2.WatchStatsResponse]:
        """The same again and again, until the asker has enough."""
        beat_s = max(BEAT_MIN_S, request.interval.ToTimedelta().total_seconds())
        while True:
            yield admin_pb2.WatchStatsResponse(stats=await self._stats(context))
            await asyncio.sleep(beat_s)

    async def _stats(self, context: Context) -> admin_pb2.Stats:
        try:
            text = await asyncio.to_thread(ask, self._admin, WANTED)
        except OSError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"Envoy's admin pages: {error}")
        return as_stats(parse(text), self._requests_max, time.monotonic() - self._began_s)
