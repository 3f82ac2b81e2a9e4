"""Learning from real upstreams: those that are there, that come later, that change, and that misbehave."""

import asyncio
import logging
from dataclasses import replace

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import (
    ErrorResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionResponse,
    ServiceResponse,
)

from protos.downstream.v1.payment_pb2 import DESCRIPTOR as PAYMENT
from relay_service.control.descriptors import ReflectedMethods, ReflectionState
from relay_service.control.names import REFLECTION_V1, REFLECTION_V1ALPHA
from relay_service.control.reflection_client import ReflectionLimits
from relay_service.core.evidence import Safety

PAYMENTS = "downstream.v1.PaymentService"


def listing(*services: str) -> ServerReflectionResponse:
    return ServerReflectionResponse(
        list_services_response=ListServiceResponse(service=[ServiceResponse(name=name) for name in services])
    )


def files(*serialized: bytes) -> ServerReflectionResponse:
    return ServerReflectionResponse(
        file_descriptor_response=FileDescriptorResponse(file_descriptor_proto=serialized)
    )


NOT_FOUND = ServerReflectionResponse(
    error_response=ErrorResponse(error_code=5, error_message="no such thing")
)


@pytest.mark.parametrize(
    "dialects", [(REFLECTION_V1,), (REFLECTION_V1ALPHA,), (REFLECTION_V1, REFLECTION_V1ALPHA)], ids=str
)
async def test_methods_are_learned_by_either_name_of_the_protocol(upstreams, learners, dialects) -> None:
    upstream = await upstreams.with_payments(dialects)
    learner = await learners.start(upstream.target)
    assert learner.state is ReflectionState.LEARNED
    assert learner.services() == (PAYMENTS,)
    facts = learner.facts(f"{PAYMENTS}/ListCharges")
    assert facts is not None
    assert (facts.unary, facts.safety) == (True, Safety.NO_SIDE_EFFECTS)
    assert learner.faults() == ()


async def test_an_upstream_that_is_down_at_the_start_is_learned_when_it_comes(upstreams, learners) -> None:
    gone = await upstreams.with_payments()
    await gone.stop()
    learner = await learners.start(gone.target)
    assert learner.state is ReflectionState.UNREACHED
    assert learner.error.startswith("UNAVAILABLE")
    await upstreams.with_payments(port=gone.port)
    await learners.until(learner, lambda: learner.state is ReflectionState.LEARNED)
    assert learner.facts(f"{PAYMENTS}/Charge") is not None


async def test_an_upstream_that_stays_away_is_logged_once(upstreams, learners, caplog) -> None:
    gone = await upstreams.with_payments()
    await gone.stop()
    learner = learners.make(gone.target)
    attempts = asyncio.Semaphore(0)
    ask = learner._ask

    async def counted() -> None:
        await ask()
        attempts.release()

    learner._ask = counted
    with caplog.at_level(logging.DEBUG, logger="relay_service.control.descriptors"):
        await learner.start()
        async with asyncio.timeout(10):
            for _ in range(4):
                await attempts.acquire()
    assert len(caplog.records) == 1


async def test_asking_for_an_unknown_method_finds_what_a_restarted_upstream_offers_now(
    upstreams, learners, make_service_file
) -> None:
    old = await upstreams.with_payments()
    learner = await learners.start(old.target)
    await old.stop()
    await upstreams.describing(["orders.v1.Service"], make_service_file("orders.v1"), port=old.port)
    assert learner.facts("orders.v1.Service/Get") is None
    await learners.until(learner, lambda: learner.services() == ("orders.v1.Service",))
    assert learner.facts("orders.v1.Service/Get") is not None
    assert learner.facts(f"{PAYMENTS}/Charge") is None


async def test_what_was_learned_is_kept_while_the_upstream_is_away(upstreams, learners) -> None:
    upstream = await upstreams.with_payments()
    learner = await learners.start(upstream.target)
    await upstream.stop()
    learner.refresh_soon()
    await learners.until(learner, lambda: learner.state is ReflectionState.UNREACHED)
    assert learner.services() == (PAYMENTS,)
    assert learner.facts(f"{PAYMENTS}/Charge") is not None


async def test_the_regular_refresh_finds_a_change_nobody_asked_for(
    upstreams, learners, fast, make_service_file
) -> None:
    old = await upstreams.with_payments()
    regular = replace(fast, interval_s=0.05)
    learner = await learners.start(old.target, settings=regular)
    await old.stop()
    await upstreams.describing(["orders.v1.Service"], make_service_file("orders.v1"), port=old.port)
    await learners.until(learner, lambda: learner.services() == ("orders.v1.Service",))


async def test_an_upstream_without_reflection_is_known_as_such_and_not_asked_on_demand(
    upstreams, learners, caplog
) -> None:
    upstream = await upstreams.start()
    with caplog.at_level(logging.WARNING):
        learner = await learners.start(upstream.target)
    assert learner.state is ReflectionState.NOT_OFFERED
    assert learner.error.startswith("UNIMPLEMENTED")
    assert learner.facts(f"{PAYMENTS}/Charge") is None
    assert not learner._wanted.is_set()
    assert not caplog.records


async def test_an_upstream_that_loses_its_reflection_loses_its_facts(upstreams, learners) -> None:
    old = await upstreams.with_payments()
    learner = await learners.start(old.target)
    await old.stop()
    await upstreams.start(port=old.port)
    learner.refresh_soon()
    await learners.until(learner, lambda: learner.state is ReflectionState.NOT_OFFERED)
    assert learner.facts(f"{PAYMENTS}/Charge") is None


async def test_demands_are_rate_limited(upstreams, learners, fast) -> None:
    asked = []

    async def converse(requests, _context):
        asked.append(1)
        async for _ in requests:
            yield listing()

    upstream = await upstreams.saying(converse)
    slow = replace(fast, on_demand_interval_s=20.0)
    learner = await learners.start(upstream.target, settings=slow)
    for _ in range(1000):
        learner.facts("a.B/C")
    # What would be a refresh per question had two whole round trips of time to begin.
    for _ in range(2):
        other = await learners.start((await upstreams.with_payments()).target)
        assert other.state is ReflectionState.LEARNED
    assert len(asked) == 1


async def test_imports_are_fetched_by_name_and_well_known_ones_need_not_be_given(upstreams, learners) -> None:
    asked = []

    async def converse(requests, _context):
        async for request in requests:
            asked.append(request.WhichOneof("message_request"))
            if request.HasField("list_services"):
                yield listing(PAYMENTS)
            elif request.HasField("file_containing_symbol"):
                yield files(PAYMENT.serialized_pb)
            else:
                yield NOT_FOUND

    learner = await learners.start((await upstreams.saying(converse)).target)
    assert asked == ["list_services", "file_containing_symbol", "file_by_filename"]
    assert learner.facts(f"{PAYMENTS}/Charge") is not None
    assert learner.faults() == ()


async def test_an_import_that_is_not_there_is_asked_for_once(upstreams, learners) -> None:
    importing = {"a": ["gone", "b"], "b": ["gone", "c"], "c": ["gone"]}
    asked = []

    async def converse(requests, _context):
        async for request in requests:
            asked.append(request.file_by_filename)
            if request.HasField("list_services"):
                yield listing("a.Service")
                continue
            name = request.file_by_filename or "a"
            if name in importing:
                yield files(FileDescriptorProto(name=name, dependency=importing[name]).SerializeToString())
            else:
                yield NOT_FOUND

    await learners.start((await upstreams.saying(converse)).target)
    assert sorted(filter(None, asked)) == ["b", "c", "gone"]


async def test_broken_descriptors_are_reported_and_spoil_nothing_else(
    upstreams, learners, make_service_file
) -> None:
    whole = make_service_file("whole.v1").SerializeToString()
    answers = {
        "whole.v1.Service": files(whole),
        "garbled.v1.Service": files(b"\xff\xff not a descriptor"),
        "hollow.v1.Service": files(),
        "unknown.v1.Service": NOT_FOUND,
        "silly.v1.Service": listing("silly"),
        "lost.v1.Service": files(make_service_file("lost.v1", dependency=["gone.proto"]).SerializeToString()),
        "twice.v1.Service": files(
            make_service_file("twice.v1").SerializeToString(),
            make_service_file("twice.v1", "Put").SerializeToString(),
        ),
    }

    async def converse(requests, _context):
        async for request in requests:
            if request.HasField("list_services"):
                yield listing(*answers)
            else:
                yield answers.get(request.file_containing_symbol, NOT_FOUND)

    learner = await learners.start((await upstreams.saying(converse)).target)
    assert learner.state is ReflectionState.LEARNED
    assert learner.services() == tuple(sorted(answers))
    assert set(learner.known.methods) == {"whole.v1.Service/Get", "twice.v1.Service/Get"}
    for broken in ("garbled", "hollow", "unknown", "silly", "lost", "twice"):
        assert any(broken in fault for fault in learner.faults()), broken


async def test_an_upstream_that_ends_the_stream_early_is_taken_as_one_without_reflection(
    upstreams, learners
) -> None:
    async def converse(_requests, _context):
        return
        yield

    learner = await learners.start((await upstreams.saying(converse)).target)
    assert learner.state is ReflectionState.NOT_OFFERED


async def test_an_upstream_that_never_answers_is_given_up_in_time(upstreams, learners, fast) -> None:
    released = asyncio.Event()

    async def converse(_requests, _context):
        await released.wait()
        yield listing()

    upstream = await upstreams.saying(converse, REFLECTION_V1)
    hasty = replace(fast, limits=ReflectionLimits(timeout_s=0.2))
    learner = await learners.start(upstream.target, settings=hasty)
    released.set()
    assert learner.state is ReflectionState.UNREACHED
    assert learner.error.startswith("DEADLINE_EXCEEDED")


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        (ReflectionLimits(services_max=2), "3 services left out"),
        (ReflectionLimits(files_max=2), "more than 2 files"),
        (ReflectionLimits(size_bytes_max=300), "more than 300 bytes"),
    ],
    ids=["services", "files", "bytes"],
)
async def test_a_limit_leaves_the_rest_out_and_says_so(
    upstreams, learners, fast, make_service_file, *, limits, fault
) -> None:
    described = [make_service_file(f"s{i}") for i in range(5)]
    upstream = await upstreams.describing([f"s{i}.Service" for i in range(5)], *described)
    learner = await learners.start(upstream.target, settings=replace(fast, limits=limits))
    assert learner.state is ReflectionState.LEARNED
    assert 1 <= len(learner.known.methods) < 5
    assert any(fault in line for line in learner.faults())


async def test_a_chain_of_imports_without_end_ends(upstreams, learners, fast) -> None:
    async def converse(requests, _context):
        async for request in requests:
            if request.HasField("list_services"):
                yield listing("a.Service")
                continue
            name = request.file_by_filename or "0"
            imported = FileDescriptorProto(name=name, dependency=[str(int(name) + 1)])
            yield files(imported.SerializeToString())

    upstream = await upstreams.saying(converse)
    limits = ReflectionLimits(files_max=50)
    learner = await learners.start(upstream.target, settings=replace(fast, limits=limits))
    assert learner.state is ReflectionState.LEARNED
    assert learner.faults()


async def test_many_services_are_learned_in_one_conversation(upstreams, learners, make_service_file) -> None:
    described = [make_service_file(f"s{i}") for i in range(100)]
    upstream = await upstreams.describing([f"s{i}.Service" for i in range(100)], *described)
    learner = await learners.start(upstream.target)
    assert len(learner.known.methods) == 100


async def test_a_listener_that_fails_harms_neither_the_learner_nor_the_next_listener(
    upstreams, learners
) -> None:
    learner = learners.make((await upstreams.with_payments()).target)
    told = asyncio.Event()

    def fail() -> None:
        raise RuntimeError("listener")

    learner.on_change(fail)
    learner.on_change(told.set)
    await learner.start()
    async with asyncio.timeout(10):
        await told.wait()
    assert learner.state is ReflectionState.LEARNED


async def test_an_unchanged_upstream_is_no_change(upstreams, learners, fast) -> None:
    asked = asyncio.Semaphore(0)

    async def converse(requests, _context):
        async for _ in requests:
            yield listing()
        asked.release()

    changes = []
    often = replace(fast, interval_s=0.02)
    learner = learners.make((await upstreams.saying(converse)).target, settings=often)
    learner.on_change(lambda: changes.append(learner.state))
    await learner.start()
    async with asyncio.timeout(10):
        for _ in range(4):
            await asked.acquire()
    assert changes == [ReflectionState.LEARNED]


async def test_the_catalogue_asks_the_named_upstream(upstreams, learners, make_service_file) -> None:
    orders = await upstreams.describing(["orders.v1.Service"], make_service_file("orders.v1"))
    payments = await upstreams.with_payments()
    catalogue = ReflectedMethods(
        [await learners.start(orders.target, "orders"), await learners.start(payments.target, "payments")]
    )
    assert catalogue.facts("orders", "orders.v1.Service/Get") is not None
    assert catalogue.facts("payments", "orders.v1.Service/Get") is None
    assert catalogue.facts("nobody", "orders.v1.Service/Get") is None


async def test_a_stop_gives_up_a_conversation_that_hangs(upstreams, learners) -> None:
    reached = asyncio.Event()

    async def converse(_requests, context):
        reached.set()
        await asyncio.Event().wait()
        yield listing()

    learner = learners.make((await upstreams.saying(converse, REFLECTION_V1)).target)
    await learner.start()
    async with asyncio.timeout(10):
        await reached.wait()
        await learner.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("descriptors of")]
