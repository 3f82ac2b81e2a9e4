"""The relay and its upstreams shown as one server, under both names of the reflection protocol."""

import asyncio

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.reflection_pb2 import (
    ExtensionRequest,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from relay_service.control.names import ADMIN, HEALTH, REFLECTION_V1, REFLECTION_V1ALPHA, RELAY

PAYMENTS = "downstream.v1.PaymentService"
OWN = {HEALTH, REFLECTION_V1, REFLECTION_V1ALPHA, RELAY}
BOTH_NAMES = pytest.mark.parametrize("dialect", [REFLECTION_V1, REFLECTION_V1ALPHA])


async def ask(
    channel, *requests: ServerReflectionRequest, dialect: str = REFLECTION_V1
) -> list[ServerReflectionResponse]:
    """One stream with these requests, and its answers."""
    method = channel.stream_stream(
        f"/{dialect}/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    return [answer async for answer in method(iter(requests), timeout=10)]


def listed(answer: ServerReflectionResponse) -> list[str]:
    return [service.name for service in answer.list_services_response.service]


def pool_of(answer: ServerReflectionResponse) -> DescriptorPool:
    """The answer's files in a pool, which takes them only when nothing is missing."""
    files = [
        FileDescriptorProto.FromString(file) for file in answer.file_descriptor_response.file_descriptor_proto
    ]
    pool = DescriptorPool()
    for file in reversed(files):
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@pytest.fixture
async def relay(upstreams, learners, planes, channel_to):
    learner = learners.make((await upstreams.with_payments()).target)
    plane = await planes.start(learner)
    return channel_to(plane.private_address)


@BOTH_NAMES
async def test_own_and_upstream_services_are_listed_together(relay, dialect) -> None:
    (answer,) = await ask(relay, ServerReflectionRequest(list_services="*"), dialect=dialect)
    assert listed(answer) == sorted(OWN | {PAYMENTS})


@BOTH_NAMES
@pytest.mark.parametrize("symbol", [PAYMENTS, *sorted(OWN), "relay.v1.RelayRequest", f"{PAYMENTS}.Charge"])
async def test_every_listed_service_can_be_described(relay, dialect, symbol) -> None:
    (answer,) = await ask(relay, ServerReflectionRequest(file_containing_symbol=symbol), dialect=dialect)
    package = symbol.split(".v1", 1)[0]
    assert pool_of(answer)
    first = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    assert first.package.startswith(package)


async def test_a_file_is_found_by_its_name(relay) -> None:
    name = "protos/downstream/v1/payment.proto"
    (answer,) = await ask(relay, ServerReflectionRequest(file_by_filename=name))
    assert pool_of(answer).FindServiceByName(PAYMENTS)


@pytest.mark.parametrize(
    "request_for_nothing",
    [
        ServerReflectionRequest(file_by_filename="nothing.proto"),
        ServerReflectionRequest(file_containing_symbol="no.Thing"),
        ServerReflectionRequest(all_extension_numbers_of_type="no.Thing"),
        ServerReflectionRequest(
            file_containing_extension=ExtensionRequest(containing_type="no.Thing", extension_number=1)
        ),
        ServerReflectionRequest(file_containing_symbol=ADMIN),
    ],
    ids=["file", "symbol", "extensions", "extension", "admin"],
)
async def test_what_is_unknown_is_an_error_response_and_the_stream_goes_on(
    relay, request_for_nothing
) -> None:
    request_for_nothing.host = "h"
    answers = await ask(relay, request_for_nothing, ServerReflectionRequest(list_services="*"))
    assert answers[0].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert answers[0].original_request == request_for_nothing
    assert answers[0].valid_host == "h"
    assert PAYMENTS in listed(answers[1])


async def test_a_request_for_nothing_is_an_invalid_argument(relay) -> None:
    (answer,) = await ask(relay, ServerReflectionRequest())
    assert answer.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_extensions_of_several_upstreams_are_merged(upstreams, learners, planes, channel_to) -> None:
    def files(package: str, number: int) -> list[FileDescriptorProto]:
        base = FileDescriptorProto(name="base.proto", package="b", syntax="proto2")
        base.message_type.add(name="Base").extension_range.add(start=100, end=200)
        extending = FileDescriptorProto(
            name=f"{package}.proto", package=package, syntax="proto2", dependency=["base.proto"]
        )
        extending.extension.add(
            name="x",
            number=number,
            extendee=".b.Base",
            type=FieldDescriptorProto.TYPE_INT32,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
        )
        extending.service.add(name="Service")
        return [base, extending]

    made = [
        learners.make((await upstreams.describing([f"{name}.Service"], *files(name, number))).target, name)
        for name, number in (("one", 120), ("two", 110))
    ]
    relay = channel_to((await planes.start(*made)).private_address)
    numbers, file = await ask(
        relay,
        ServerReflectionRequest(all_extension_numbers_of_type="b.Base"),
        ServerReflectionRequest(
            file_containing_extension=ExtensionRequest(containing_type="b.Base", extension_number=110)
        ),
    )
    assert list(numbers.all_extension_numbers_response.extension_number) == [110, 120]
    assert numbers.all_extension_numbers_response.base_type_name == "b.Base"
    assert pool_of(file).FindExtensionByName("two.x").number == 110


async def test_files_of_one_name_in_two_upstreams_stay_apart(
    upstreams, learners, planes, channel_to, make_service_file
) -> None:
    made = []
    for package in ("one", "two"):
        file = make_service_file(package)
        file.name = "service.proto"
        upstream = await upstreams.describing([f"{package}.Service"], file)
        made.append(learners.make(upstream.target, package))
    relay = channel_to((await planes.start(*made)).private_address)
    for package in ("one", "two"):
        (answer,) = await ask(relay, ServerReflectionRequest(file_containing_symbol=f"{package}.Service"))
        assert pool_of(answer).FindServiceByName(f"{package}.Service")


async def test_an_answer_too_large_for_a_client_shrinks_to_the_file_itself(
    upstreams, learners, planes, channel_to, make_service_file
) -> None:
    large = FileDescriptorProto(name="large.proto", package="large")
    large.options.java_package = "x" * (3 * 1024 * 1024)
    file = make_service_file("small", dependency=["large.proto"])
    learner = learners.make((await upstreams.describing(["small.Service"], large, file)).target)
    relay = channel_to((await planes.start(learner)).private_address)
    await learners.until(learner, lambda: bool(learner.services()))
    (answer,) = await ask(relay, ServerReflectionRequest(file_containing_symbol="small.Service"))
    assert list(answer.file_descriptor_response.file_descriptor_proto) == [learner.known.files["small.proto"]]


async def test_what_an_upstream_learns_to_do_is_shown_without_a_new_stream(
    upstreams, learners, planes, channel_to, make_service_file
) -> None:
    old = await upstreams.with_payments()
    learner = learners.make(old.target)
    relay = channel_to((await planes.start(learner)).private_address)
    method = relay.stream_stream(
        f"/{REFLECTION_V1}/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    call = method(timeout=10)
    await call.write(ServerReflectionRequest(list_services="*"))
    assert PAYMENTS in listed(await call.read())
    await old.stop()
    await upstreams.describing(["orders.v1.Service"], make_service_file("orders.v1"), port=old.port)
    learner.refresh_soon()
    await learners.until(learner, lambda: learner.services() == ("orders.v1.Service",))
    await call.write(ServerReflectionRequest(list_services="*"))
    assert listed(await call.read()) == sorted(OWN | {"orders.v1.Service"})
    await call.done_writing()


async def test_the_admin_address_shows_admin_service_and_nothing_of_the_upstreams(
    upstreams, learners, planes, channel_to
) -> None:
    plane = await planes.start(learners.make((await upstreams.with_payments()).target))
    answers = await ask(
        channel_to(plane.admin_address),
        ServerReflectionRequest(list_services="*"),
        ServerReflectionRequest(file_containing_symbol=ADMIN),
        ServerReflectionRequest(file_containing_symbol=PAYMENTS),
    )
    assert listed(answers[0]) == sorted({ADMIN, HEALTH, REFLECTION_V1, REFLECTION_V1ALPHA})
    assert pool_of(answers[1]).FindServiceByName(ADMIN)
    assert answers[2].HasField("error_response")


async def test_clients_asking_at_once_get_their_own_answers(relay) -> None:
    symbols = [PAYMENTS, RELAY, HEALTH, "no.Thing"] * 10
    answers = await asyncio.gather(
        *(ask(relay, ServerReflectionRequest(file_containing_symbol=symbol)) for symbol in symbols)
    )
    for symbol, (answer,) in zip(symbols, answers, strict=True):
        assert answer.original_request.file_containing_symbol == symbol
        assert answer.HasField("error_response") == (symbol == "no.Thing")
