"""Real upstreams with every kind of reflection, a relay's state to be read, and a control plane over both."""

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio as grpcio_reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from protos.downstream.v1 import payment_pb2, payment_pb2_grpc
from relay_service.config.candidate import Candidate
from relay_service.control.descriptors import RefreshSettings, UpstreamDescriptors
from relay_service.control.names import REFLECTION_V1ALPHA
from relay_service.control.reflection_client import ReflectionLimits
from relay_service.control.server import ControlPlane, ControlSettings
from relay_service.control.sources import (
    BulkheadStatus,
    Health,
    HedgingStatus,
    QueueStatus,
    ShuttingDownError,
    Stats,
    TelemetryStatus,
    UpstreamStatus,
)
from relay_service.core.admission import AdmissionState
from relay_service.core.breaker import BreakerState, BreakerStatus, Trigger
from relay_service.core.breakers import BreakerView
from relay_service.core.budget import BudgetState
from relay_service.core.criticality import Criticality
from relay_service.core.hedge import HedgedMethod, HedgingState, HeldBack
from relay_service.ports import CallersStatus, PoolStatus
from relay_service.telemetry.histogram import LogHistogram
from relay_service.telemetry.metrics import CallTotals, MethodStats

WAIT_S = 10.0
"""The bound of every wait in these tests."""

PAYMENTS = "downstream.v1.PaymentService"


class Payments(payment_pb2_grpc.PaymentServiceServicer):
    """Charges and keeps nothing."""

    async def Charge(self, request: payment_pb2.ChargeRequest, context: Any) -> payment_pb2.ChargeResponse:
        return payment_pb2.ChargeResponse(
            charge=payment_pb2.Charge(account=request.account, amount_minor=request.amount_minor)
        )


class Healthy(health_pb2_grpc.HealthServicer):
    """The upstream's own health, which the relay must not show as its own."""

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)


@dataclass
class Upstream:
    """One running grpcio server."""

    server: grpc.aio.Server
    port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def stop(self) -> None:
        await self.server.stop(0)


Converse = Callable[[AsyncIterator[ServerReflectionRequest], Any], AsyncIterator[ServerReflectionResponse]]


def reflection_handler(service: str, converse: Converse) -> grpc.GenericRpcHandler:
    handler = grpc.stream_stream_rpc_method_handler(
        converse,
        request_deserializer=ServerReflectionRequest.FromString,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler})


class Upstreams:
    """Starts upstreams and stops what is left of them."""

    def __init__(self) -> None:
        self._running: list[Upstream] = []

    async def start(self, *handlers: grpc.GenericRpcHandler, port: int = 0) -> Upstream:
        """A server with these handlers besides payments and health."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(), server)
        health_pb2_grpc.add_HealthServicer_to_server(Healthy(), server)
        server.add_generic_rpc_handlers(handlers)
        upstream = Upstream(server, server.add_insecure_port(f"127.0.0.1:{port}"))
        await server.start()
        self._running.append(upstream)
        return upstream

    async def with_payments(
        self, dialects: Sequence[str] = (REFLECTION_V1ALPHA,), *, port: int = 0
    ) -> Upstream:
        """The payment service, described under these names of the reflection protocol."""
        names = (PAYMENTS, "grpc.health.v1.Health", *dialects)
        converse = grpcio_reflection.ReflectionServicer(names).ServerReflectionInfo
        return await self.start(*(reflection_handler(dialect, converse) for dialect in dialects), port=port)

    async def describing(
        self, services: Sequence[str], *files: FileDescriptorProto, port: int = 0
    ) -> Upstream:
        """A server that says it offers these services, declared in these files."""
        pool = DescriptorPool()
        for file in files:
            pool.AddSerializedFile(file.SerializeToString())
        converse = grpcio_reflection.ReflectionServicer(services, pool).ServerReflectionInfo
        return await self.start(reflection_handler(REFLECTION_V1ALPHA, converse), port=port)

    async def saying(self, converse: Converse, dialect: str = REFLECTION_V1ALPHA) -> Upstream:
        """A server whose reflection is this conversation."""
        return await self.start(reflection_handler(dialect, converse))

    async def stop(self) -> None:
        await asyncio.gather(*(upstream.stop() for upstream in self._running))


def service_file(package: str, method: str = "Get", **fields: Any) -> FileDescriptorProto:
    """A file that declares ``package.Service`` with one idempotent unary method."""
    file = FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3", **fields)
    file.message_type.add(name="Thing")
    declared = file.service.add(name="Service").method.add(
        name=method, input_type=f".{package}.Thing", output_type=f".{package}.Thing"
    )
    declared.options.idempotency_level = MethodOptions.IDEMPOTENT
    return file


HALF_OPEN = BreakerStatus(
    state=BreakerState.HALF_OPEN,
    share=0.0,
    cause=Trigger.PROBE_LOST,
    calls=29,
    failures=28,
    slow=3,
    consecutive_failures=27,
    probes=1,
    opened=6,
    refused=12345,
    probes_lost=2,
    stuck=8,
    late=9,
)


@dataclass
class RelayState:
    """A relay as its control plane sees it; tests turn the knobs."""

    draining: bool = False
    ready: dict[str, bool] = field(default_factory=dict)
    calls: CallTotals = field(
        default_factory=lambda: CallTotals(10, 4, 3, 1, 1, 1, {"QUEUE_FULL": 1, "RETRIES_EXHAUSTED": 3})
    )
    upstreams: tuple[UpstreamStatus, ...] = ()
    looks: int = 0

    def health(self) -> Health:
        return Health(draining=self.draining, upstreams_ready=dict(self.ready))

    def stats(self) -> Stats:
        self.looks += 1
        latency = LogHistogram()
        latency.record(0.02)
        return Stats(
            observed_at_unix_s=1_750_000_000.5,
            uptime_s=61.5,
            calls=self.calls,
            methods=(
                MethodStats("a.B/C", 7, {"OK": 3, "UNAVAILABLE": 3}, 11, 4, latency, 2),
                MethodStats("d.E/F", 3, {"OK": 1}, 3, 0, latency),
            ),
            queue=QueueStatus(
                length=3,
                capacity=100,
                workers_busy=5,
                workers=5,
                streams=2,
                streams_max=64,
                drain_per_s=12.5,
                admission=AdmissionState(
                    queued={Criticality.SHEDDABLE: 1, Criticality.CRITICAL: 2}, displaced=9
                ),
            ),
            upstreams=self.upstreams,
            telemetry=TelemetryStatus(spans_exported=42, spans_dropped=1, afterwards_suppressed=7),
            callers=CallersStatus(connections=4, refused_of_peer=6, last_failure="a ping flood"),
        )

    def with_upstream(self, name: str, target: str, *, last_error: str = "") -> None:
        self.ready[name] = True
        budget = BudgetState(7.5, 10.0, 4, 2)
        breaker = BreakerView(name, "a.B/C", HALF_OPEN)
        hedging = HedgingStatus(
            1, HedgingState(17, 11, 5, {HeldBack.BUDGET: 8}, (HedgedMethod("a.B/C", 900, 0.0425),))
        )
        status = UpstreamStatus(
            *(name, target, "READY", 1, 3, 2, 1, last_error, budget, [breaker], hedging),
            pool=PoolStatus(
                *({"READY": 1, "RESTING": 2}, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0.0125, 0.25),
                zombies=12,
                attempts_unsent=13,
            ),
            bulkheads=[
                BulkheadStatus("", QueueStatus(1, 7, 2, 3, 4, 5)),
                BulkheadStatus("a.B/Slow", QueueStatus(length=6, capacity=8, workers_busy=9, workers=10)),
            ],
        )
        self.upstreams = (*self.upstreams, status)

    def with_calls(self, **counts: int) -> None:
        self.calls = replace(self.calls, **counts)


FAST = RefreshSettings(
    interval_s=30.0,
    on_demand_interval_s=0.01,
    retry_min_s=0.05,
    retry_max_s=0.2,
    limits=ReflectionLimits(timeout_s=5.0),
)


class Learners:
    """Makes `UpstreamDescriptors` and waits for what they learn."""

    def __init__(self) -> None:
        self._running: list[UpstreamDescriptors] = []

    def make(
        self, target: str, name: str = "payments", settings: RefreshSettings = FAST
    ) -> UpstreamDescriptors:
        learner = UpstreamDescriptors(name, target, settings=settings, rng=random.Random(1))
        self._running.append(learner)
        return learner

    async def start(
        self, target: str, name: str = "payments", settings: RefreshSettings = FAST
    ) -> UpstreamDescriptors:
        learner = self.make(target, name, settings)
        await learner.start()
        assert await learner.asked_once(WAIT_S)
        return learner

    async def until(self, learner: UpstreamDescriptors, condition: Callable[[], bool]) -> None:
        """Wait until a change of ``learner`` makes ``condition`` true."""
        changed = asyncio.Event()
        learner.on_change(changed.set)
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await changed.wait()
                changed.clear()

    async def stop(self) -> None:
        await asyncio.gather(*(learner.stop() for learner in self._running))


@pytest.fixture
async def upstreams() -> AsyncIterator[Upstreams]:
    running = Upstreams()
    yield running
    await running.stop()


@pytest.fixture
async def learners() -> AsyncIterator[Learners]:
    running = Learners()
    yield running
    await running.stop()


@pytest.fixture
def relay_state() -> RelayState:
    return RelayState(ready={"payments": True})


@dataclass
class Planes:
    """Starts control planes; ``drains`` holds the grace of every Drain that was asked for."""

    state: RelayState
    drains: list[float] = field(default_factory=list)
    reloaded: Candidate | Exception = field(default_factory=ShuttingDownError)
    _running: list[ControlPlane] = field(default_factory=list)

    async def reload(self) -> Candidate:
        """Tells what the test has put into ``reloaded``."""
        if isinstance(self.reloaded, Exception):
            raise self.reloaded
        return self.reloaded

    def make(self, *learners: UpstreamDescriptors, **settings: Any) -> ControlPlane:
        addresses = {
            "private_address": "127.0.0.1:0",
            "admin_address": "127.0.0.1:0",
            "health_interval_s": 0.02,
        }
        plane = ControlPlane(
            ControlSettings(**(addresses | settings)),
            health=self.state,
            stats=self.state,
            upstreams=learners,
            drain=self.drains.append,
            reload=self.reload,
            version="1.2.3",
        )
        self._running.append(plane)
        return plane

    async def start(self, *learners: UpstreamDescriptors, **settings: Any) -> ControlPlane:
        plane = self.make(*learners, **settings)
        await plane.start()
        for learner in learners:
            assert await learner.asked_once(WAIT_S)
        return plane

    async def stop(self) -> None:
        await asyncio.gather(*(plane.stop(grace_s=0.0) for plane in self._running))


@pytest.fixture
async def planes(relay_state: RelayState) -> AsyncIterator[Planes]:
    running = Planes(relay_state)
    yield running
    await running.stop()


@pytest.fixture
async def channel_to() -> AsyncIterator[Callable[[str], grpc.aio.Channel]]:
    async with contextlib.AsyncExitStack() as open_channels:
        made: list[grpc.aio.Channel] = []

        def connect(address: str) -> grpc.aio.Channel:
            channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            made.append(channel)
            open_channels.push_async_callback(channel.close)
            return channel

        yield connect


@pytest.fixture
def grpcurl() -> Callable[..., Any]:
    program = Path(sys.executable).with_name("grpcurl")

    async def run(*arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            str(program),
            "-plaintext",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(WAIT_S):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    return run


@pytest.fixture
def make_service_file() -> Callable[..., FileDescriptorProto]:
    return service_file


@pytest.fixture
def fast() -> RefreshSettings:
    """Settings for an upstream that is asked often."""
    return FAST
