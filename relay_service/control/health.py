"""grpc.health.v1 for the relay: overall, for its own services, and for each service of its upstreams.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md. grpcio's ready-made servicer
writes to a watcher while holding the lock that a change of status needs, so one client that stops
reading would keep the news from all others, and it cannot forget a service that has gone. Hence one
of our own on grpcio's messages.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server

from relay_service.contract import MESSAGE_CHARS_MAX
from relay_service.control.descriptors import UpstreamDescriptors
from relay_service.control.names import PUBLIC_SERVICES
from relay_service.control.sources import Health, HealthSource

OVERALL = ""
"""The name under which the health of the whole server is asked for."""

# Generic in its type stubs only.
_Context: TypeAlias = "grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]"


class HealthBoard(HealthServicer):
    """Check and Watch over a table of services.

    State: ``_serving`` by service, ``_changed`` (set and replaced at every change), ``_shut_down``.
    """

    def __init__(self) -> None:
        self._serving: Mapping[str, bool] = {}
        self._changed = asyncio.Event()
        self._shut_down = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve the protocol."""
        add_HealthServicer_to_server(self, server)  # type: ignore[no-untyped-call]  # generated without types

    def publish(self, serving: Mapping[str, bool]) -> None:
        """Replace the table; a service that is no longer in it becomes unknown. Ignored after a shutdown."""
        if not self._shut_down and serving != self._serving:
            self._replace(dict(serving))

    def enter_graceful_shutdown(self) -> None:
        """Everything is NOT_SERVING from now on, for good."""
        self._shut_down = True
        self._replace(dict.fromkeys(self._serving, False))

    def _replace(self, serving: Mapping[str, bool]) -> None:
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: HealthCheckRequest, context: _Context) -> HealthCheckResponse:
        """The status of a service; NOT_FOUND for an unknown one."""
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            # In short: it may be megabytes, and trailers that large would end the connection.
            name = request.service[:MESSAGE_CHARS_MAX]
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {name!r}")
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: _Context) -> None:
        """The status now and after every change; a watcher that reads slowly misses what lies in between."""
        told = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                await context.write(HealthCheckResponse(status=status))
                told = status
            await changed.wait()

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        match self._serving.get(service):
            case None:
                return HealthCheckResponse.SERVICE_UNKNOWN
            case True:
                return HealthCheckResponse.SERVING
            case _:
                return HealthCheckResponse.NOT_SERVING


class HealthFollower:
    """Keeps a board in step with the relay and its upstreams."""

    def __init__(
        self,
        board: HealthBoard,
        source: HealthSource,
        upstreams: Sequence[UpstreamDescriptors],
        own: Collection[str] = PUBLIC_SERVICES,
    ) -> None:
        """``own`` are the relay's own services that are there."""
        self._own = own
        self._board = board
        self._source = source
        self._upstreams = upstreams
        for upstream in upstreams:
            upstream.on_change(self.refresh)

    def refresh(self) -> None:
        """Publish what the source says now."""
        self._board.publish(service_table(self._source.health(), self._upstreams, self._own))

    async def follow(self, interval_s: float) -> None:
        """Refresh until cancelled; between two looks a change takes at most ``interval_s`` to be told."""
        while True:
            self.refresh()
            await asyncio.sleep(interval_s)


def service_table(
    health: Health, upstreams: Sequence[UpstreamDescriptors], own: Collection[str] = PUBLIC_SERVICES
) -> dict[str, bool]:
    """Which service is serving: the relay's own with the whole, an upstream's with that upstream.

    A service that several upstreams have is serving when one of them is ready.
    """
    table: dict[str, bool] = {}
    for upstream in upstreams:
        ready = not health.draining and health.upstreams_ready.get(upstream.name, False)
        for service in upstream.services():
            table[service] = table.get(service, False) or ready
    return table | dict.fromkeys((OVERALL, *own), health.serving)
