"""What the tests of configuration and command line share."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from typer.testing import CliRunner

from protos.downstream.v1 import payment_pb2, payment_pb2_grpc
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

PolicyFileWriter = Callable[[Any], Path]


@pytest.fixture
def policy_file(tmp_path: Path) -> PolicyFileWriter:
    """Write a policy file: text as it is, anything else as JSON."""

    def write(content: Any) -> Path:
        path = tmp_path / "policy.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("RELAY_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner()


class Payments(payment_pb2_grpc.PaymentServiceServicer):
    """A small server to call: answers, fails with details, streams both ways."""

    def Charge(self, request, context):
        if request.account == "broke":
            context.abort_with_status(rpc_status.to_status(_refusal()))
        context.set_trailing_metadata((("relay-attempts", "1"), ("seen-key-bin", b"\x00\x01")))
        seen = dict(context.invocation_metadata())
        charge = payment_pb2.Charge(
            account=request.account,
            amount_minor=request.amount_minor,
            idempotency_key=seen.get("idempotency-key", ""),
        )
        return payment_pb2.ChargeResponse(charge=charge)

    def WatchCharges(self, request, context):
        for number in range(1, request.max_charges + 1):
            yield payment_pb2.WatchChargesResponse(charge=payment_pb2.Charge(sequence=number))

    def UploadCharges(self, request_iterator, context):
        return payment_pb2.UploadChargesResponse(received=sum(1 for _ in request_iterator))

    def ListCharges(self, request, context):
        never = grpc.StatusCode.UNAVAILABLE
        context.abort(never, "nobody is home")


def _refusal() -> Status:
    details = [
        ErrorInfo(reason="QUEUE_FULL", domain="resilient-relay"),
        RetryInfo(),
    ]
    details[1].retry_delay.FromMilliseconds(250)
    status = Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="come back later")
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    stranger = AnyMessage(type_url="type.googleapis.com/acme.Unknown", value=b"abc")
    status.details.append(stranger)
    return status


class Admin(admin_pb2_grpc.AdminServiceServicer):
    """A relay's numbers, always the same."""

    def GetStats(self, request, context):
        return admin_pb2.GetStatsResponse(stats=sample_stats())

    def WatchStats(self, request, context):
        for _ in range(3):
            yield admin_pb2.WatchStatsResponse(stats=sample_stats())


def sample_stats() -> admin_pb2.Stats:
    stats = admin_pb2.Stats(
        calls=admin_pb2.Calls(received=7, ok=4, errors=1, refused=2, by_reason={"QUEUE_FULL": 2}),
        methods=[admin_pb2.MethodStats(method="a.B/C", received=7, ok=4, retries=3)],
        upstreams=[
            admin_pb2.Upstream(
                name="payments",
                target="127.0.0.1:1",
                state="READY",
                breakers=[admin_pb2.Breaker(state="OPEN", calls=29, failures=28, cause="FAILURE_RATIO")],
            )
        ],
        queue=admin_pb2.Queue(length=1, capacity=100, workers_busy=5, workers=5),
    )
    stats.methods[0].latency_p99.FromMilliseconds(12)
    return stats


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A real gRPC server with payments, admin, health and reflection; its address."""
    yield from _serve(with_reflection=True)


@pytest.fixture(scope="session")
def silent_server() -> Iterator[str]:
    """The same without reflection."""
    yield from _serve(with_reflection=False)


def _serve(*, with_reflection: bool) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(Payments(), server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(Admin(), server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    if with_reflection:
        names = [
            payment_pb2.DESCRIPTOR.services_by_name["PaymentService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        ]
        reflection.enable_server_reflection(names, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(5)
