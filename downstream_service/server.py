"""The gRPC server: services, health, reflection, and the channel arguments each of them needs."""

from typing import Any, Final

import grpc

# Imported for what it registers: without it reflection cannot describe the details of our errors.
from google.rpc import error_details_pb2  # noqa: F401
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from downstream_service.fault_service import FaultService
from downstream_service.handler import PaymentService
from protos.downstream.v1 import fault_pb2, fault_pb2_grpc, payment_pb2, payment_pb2_grpc

SERVICE_NAMES: Final = (
    payment_pb2.DESCRIPTOR.services_by_name["PaymentService"].full_name,
    fault_pb2.DESCRIPTOR.services_by_name["FaultService"].full_name,
)

SERVER_OPTIONS: Final = (
    # Two servers on one port would share its connections by chance; a busy port must be an error.
    ("grpc.so_reuseport", 0),
    # Overload is the capacity model's to refuse: nothing may be held back or refused below the handler, where
    # gRPC's own limits (1,000 calls that wait to be accepted) answer CANCELLED.
    ("grpc.max_concurrent_streams", 1_000_000),
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
    # Clients that look for dead connections ping often; the default answer is GOAWAY too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A full batch with long notes is larger than the default of 4 MiB.
    ("grpc.max_receive_message_length", 16 << 20),
)


class BindError(Exception):
    """The address cannot be listened on."""


class Health:
    """What ``grpc.health.v1`` reports, for each service and for the whole."""

    def __init__(self) -> None:
        self._servicer: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]  # there at run time

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the health service."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)  # type: ignore[no-untyped-call]

    async def serving(self) -> None:
        """Report every service as SERVING."""
        for name in SERVICE_NAMES:
            await self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def draining(self) -> None:
        """Report everything as NOT_SERVING, for good."""
        await self._servicer.enter_graceful_shutdown()


def build_server(payments: PaymentService, faults: FaultService, health_state: Health) -> grpc.aio.Server:
    """Return a server, not started, with every service registered."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(payments, server)
    fault_pb2_grpc.add_FaultServiceServicer_to_server(faults, server)
    health_state.add_to(server)
    names = (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)  # type: ignore[no-untyped-call]
    return server


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Listen on the address (port 0: any free one) and return the port; raises ``BindError``."""
    try:
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        reason = str(error).partition(";")[0]
        raise BindError(f"cannot listen on {host}:{port}: is the port in use? ({reason})") from error
