"""The control plane as a whole: the servers on which the relay's own services run."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from protos.relay.v1 import relay_pb2  # noqa: F401  # RelayService is shown by reflection although the data plane answers it
from protos.relay.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from protos.relay.v1.dead_letter_pb2_grpc import add_DeadLetterServiceServicer_to_server
from protos.relay.v1.job_pb2_grpc import add_JobServiceServicer_to_server
from relay_service.config.candidate import Candidate
from relay_service.control.admin import Admin
from relay_service.control.binding import BindError
from relay_service.control.dead_letter_service import DeadLetters
from relay_service.control.descriptor_set import DescriptorSet
from relay_service.control.descriptors import UpstreamDescriptors
from relay_service.control.grpc_server import GrpcServer
from relay_service.control.health import OVERALL, HealthBoard, HealthFollower
from relay_service.control.job_service import Facts, Jobs
from relay_service.control.names import ADMIN, DEAD_LETTERS, FORWARDED_SERVICES, JOBS, PUBLIC_SERVICES
from relay_service.control.reflection import Reflection, own_descriptors
from relay_service.control.sources import HealthSource, StatsSource
from relay_service.jobs.office import JobsOffice
from relay_service.stores.interface import Store

_ADMIN_SERVICES = (FORWARDED_SERVICES - {JOBS}) | {ADMIN}
"""What is at the admin address: AdminService, with health and reflection of its own."""

WORK_BYTES_MAX = 64 * 1024 * 1024
"""Of one request that brings a job or a dead letter along; what a method takes is for its policy to say."""


@dataclass(frozen=True, slots=True)
class WorkServices:
    """Durable jobs and dead letters, where there is a store for them."""

    office: JobsOffice
    facts: Facts


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """Where the control plane listens and how much it takes."""

    private_address: str = "127.0.0.1:0"
    """For the data plane only: ``host:port`` on loopback, or ``unix:path``."""
    admin_address: str = "127.0.0.1:50055"
    """For AdminService; keep it on loopback, it asks nobody who they are."""
    health_interval_s: float = 0.25
    """How late a change of an upstream's state may show in health checks at most."""
    private_calls_max: int = 1_000
    """Watches and reflection streams of clients, all together; more are refused with RESOURCE_EXHAUSTED."""
    admin_calls_max: int = 100


class ControlPlane:
    """Health and reflection at a private address for the data plane, and AdminService at its own.

    `start`, then in this order `drain` (health says NOT_SERVING; the caller waits a moment for its
    clients to see it), `stop`. The upstreams' descriptors are started and stopped along.
    """

    def __init__(
        self,
        settings: ControlSettings,
        *,
        health: HealthSource,
        stats: StatsSource,
        upstreams: Sequence[UpstreamDescriptors],
        drain: Callable[[float], None],
        reload: Callable[[], Awaitable[Candidate]],
        version: str,
        work: WorkServices | None = None,
        store: Store | None = None,
    ) -> None:
        """``drain(grace_s)`` begins the relay's drain and returns at once; it is what ``Drain`` calls.

        ``reload`` puts another policy into force. ``upstreams`` may change its members then: whoever
        changes it starts the new ones, stops those that are gone, and calls `health_changed`.
        Without ``work`` there are no JobService and no DeadLetterService.
        """
        self._settings = settings
        self._work = work
        public = PUBLIC_SERVICES if work is not None else PUBLIC_SERVICES - {JOBS}
        self._admin_services = _ADMIN_SERVICES | {DEAD_LETTERS} if work is not None else _ADMIN_SERVICES
        self._upstreams = upstreams
        self._board = HealthBoard()
        self._admin_board = HealthBoard()
        self._follower = HealthFollower(self._board, health, upstreams, public)
        self._admin = Admin(
            health=health,
            stats=stats,
            upstreams=upstreams,
            drain=drain,
            reload=reload,
            version=version,
            store=store,
        )
        self._own = own_descriptors(sorted(public))
        self._private: GrpcServer | None = None
        self._admin_server: GrpcServer | None = None
        self._following: asyncio.Task[None] | None = None

    @property
    def private_address(self) -> str:
        """Where the data plane forwards the calls of `FORWARDED_SERVICES` to; after `start` the real port."""
        return self._private.address if self._private else self._settings.private_address

    @property
    def admin_address(self) -> str:
        """Where AdminService is; after `start` the real port."""
        return self._admin_server.address if self._admin_server else self._settings.admin_address

    @property
    def running_calls(self) -> int:
        """Handlers that have not ended, on both servers."""
        return sum(server.running_calls for server in self._servers())

    async def start(self) -> None:
        """Bind both addresses, then serve. Raises `BindError` with nothing left running."""
        self._private = self._private_server()
        self._admin_server = self._new_admin_server()
        try:
            for server in self._servers():
                await server.bind()
        except BindError:
            await self._stop_servers(grace_s=0.0)
            raise
        self._admin_board.publish(dict.fromkeys((OVERALL, *self._admin_services), True))
        self._follower.refresh()
        for server in self._servers():
            await server.start()
        for upstream in self._upstreams:
            await upstream.start()
        self._following = asyncio.create_task(
            self._follower.follow(self._settings.health_interval_s), name="health follows the relay"
        )

    def health_changed(self) -> None:
        """Show the health source's news at once instead of at the next look."""
        self._follower.refresh()

    def drain(self) -> None:
        """Say NOT_SERVING from now on and end the stats watches. Calls are still answered."""
        self._board.enter_graceful_shutdown()
        self._admin_board.enter_graceful_shutdown()
        self._admin.end_watches()

    async def stop(self, grace_s: float) -> None:
        """Stop both servers and all tasks, within ``grace_s`` and about two seconds."""
        self.drain()
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following], timeout=1.0)
            self._following = None
        await asyncio.gather(*(upstream.stop() for upstream in self._upstreams))
        await self._stop_servers(grace_s)

    async def _stop_servers(self, grace_s: float) -> None:
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers()))

    def _servers(self) -> list[GrpcServer]:
        return [server for server in (self._private, self._admin_server) if server is not None]

    def _private_server(self) -> GrpcServer:
        server = GrpcServer(
            "control plane",
            self._settings.private_address,
            calls_max=self._settings.private_calls_max,
            request_bytes_max=WORK_BYTES_MAX,
        )
        if self._work is not None:
            jobs = Jobs(self._work.office, self._work.facts)
            add_JobServiceServicer_to_server(jobs, server.server)
        self._board.add_to(server.server)
        Reflection(self._public_descriptors).add_to(server.server)
        return server

    def _new_admin_server(self) -> GrpcServer:
        server = GrpcServer(
            "admin",
            self._settings.admin_address,
            calls_max=self._settings.admin_calls_max,
            request_bytes_max=WORK_BYTES_MAX,
        )
        add_AdminServiceServicer_to_server(self._admin, server.server)
        if self._work is not None:
            letters = DeadLetters(self._work.office, self._work.facts)
            add_DeadLetterServiceServicer_to_server(letters, server.server)
        self._admin_board.add_to(server.server)
        own = [own_descriptors(sorted(self._admin_services))]
        Reflection(lambda: own).add_to(server.server)
        return server

    def _public_descriptors(self) -> list[DescriptorSet]:
        return [self._own, *(upstream.known for upstream in self._upstreams)]
