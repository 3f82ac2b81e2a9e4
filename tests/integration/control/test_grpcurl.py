"""grpcurl, as a stranger's client, through a byte proxy that stands where the data plane will."""

import json

import grpc
import grpc.aio
import pytest

from relay_service.control.names import FORWARDED_SERVICES

PAYMENTS = "downstream.v1.PaymentService"
INVALID_ARGUMENT = 64 + grpc.StatusCode.INVALID_ARGUMENT.value[0]


class ByteProxy(grpc.GenericRpcHandler):
    """Hands the control plane's paths to it and all others to the upstream, as streams of bytes."""

    def __init__(self, control: grpc.aio.Channel, upstream: grpc.aio.Channel) -> None:
        self._control = control
        self._upstream = upstream

    def service(self, handler_call_details):
        path = handler_call_details.method
        is_own = path.split("/")[1] in FORWARDED_SERVICES
        method = (self._control if is_own else self._upstream).stream_stream(path)

        async def forward(requests, context):
            call = method(requests, metadata=context.invocation_metadata())
            async for answer in call:
                yield answer
            context.set_trailing_metadata(await call.trailing_metadata())

        return grpc.stream_stream_rpc_method_handler(forward)


@pytest.fixture
async def plane(upstreams, learners, planes, relay_state):
    upstream = await upstreams.with_payments()
    relay_state.with_upstream("payments", upstream.target)
    return await planes.start(learners.make(upstream.target))


@pytest.fixture
async def relay_address(plane, relay_state, channel_to):
    proxy = grpc.aio.server()
    control, upstream = channel_to(plane.private_address), channel_to(relay_state.upstreams[0].target)
    proxy.add_generic_rpc_handlers((ByteProxy(control, upstream),))
    port = proxy.add_insecure_port("127.0.0.1:0")
    await proxy.start()
    yield f"127.0.0.1:{port}"
    await proxy.stop(0)


async def test_list_shows_the_services_of_relay_and_upstream(grpcurl, relay_address) -> None:
    code, output = await grpcurl(relay_address, "list")
    assert code == 0, output
    assert output.split() == [
        PAYMENTS,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "relay.v1.RelayService",
    ]


async def test_list_of_a_service_shows_its_methods(grpcurl, relay_address) -> None:
    code, output = await grpcurl(relay_address, "list", PAYMENTS)
    assert code == 0, output
    assert f"{PAYMENTS}.WatchCharges" in output.split()


@pytest.mark.parametrize(
    ("symbol", "shown"),
    [
        (PAYMENTS, "rpc WatchCharges ( .downstream.v1.WatchChargesRequest ) returns ( stream "),
        (f"{PAYMENTS}.ListCharges", "idempotency_level = NO_SIDE_EFFECTS"),
        ("relay.v1.RelayService", "rpc Relay ( .relay.v1.RelayRequest )"),
        ("downstream.v1.Charge", ".google.protobuf.Timestamp create_time = 8"),
        ("grpc.reflection.v1.ServerReflection", "stream .grpc.reflection.v1.ServerReflectionRequest"),
    ],
)
async def test_describe_shows_declarations(grpcurl, relay_address, symbol, shown) -> None:
    code, output = await grpcurl(relay_address, "describe", symbol)
    assert code == 0, output
    assert shown in output


async def test_describe_without_a_symbol_describes_everything(grpcurl, relay_address) -> None:
    code, output = await grpcurl(relay_address, "describe")
    assert code == 0, output
    assert output.count("is a service") == 5


async def test_describe_of_nothing_fails_cleanly(grpcurl, relay_address) -> None:
    code, output = await grpcurl(relay_address, "describe", "no.Thing")
    assert code == 1
    assert "Symbol not found: no.Thing" in output


async def test_an_upstream_method_is_called_by_reflection_as_at_the_upstream(
    grpcurl, relay_address, relay_state
) -> None:
    request = json.dumps({"account": "ada", "amountMinor": "250", "currency": "EUR"})
    code, output = await grpcurl("-d", request, relay_address, f"{PAYMENTS}/Charge")
    assert code == 0, output
    assert json.loads(output)["charge"]["account"] == "ada"
    assert await grpcurl("-d", request, relay_state.upstreams[0].target, f"{PAYMENTS}/Charge") == (0, output)


async def test_health_is_checked_by_reflection(grpcurl, relay_address) -> None:
    request = json.dumps({"service": PAYMENTS})
    code, output = await grpcurl("-d", request, relay_address, "grpc.health.v1.Health/Check")
    assert (code, json.loads(output)) == (0, {"status": "SERVING"})


async def test_admin_service_is_called_by_reflection_at_its_own_address(grpcurl, plane) -> None:
    code, output = await grpcurl(plane.admin_address, "relay.v1.AdminService/GetStats")
    assert code == 0, output
    assert json.loads(output)["stats"]["calls"]["received"] == "10"


async def test_error_details_are_readable(grpcurl, plane) -> None:
    request = json.dumps({"interval": "0.001s"})
    code, output = await grpcurl("-d", request, plane.admin_address, "relay.v1.AdminService/WatchStats")
    assert code == INVALID_ARGUMENT
    assert "type.googleapis.com/google.rpc.BadRequest" in output
    assert '"field":"interval"' in output
