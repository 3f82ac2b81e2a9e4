"""grpc.health.v1 follows the relay and its upstreams."""

import asyncio

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from relay_service.control.health import service_table
from relay_service.control.names import ADMIN, HEALTH, RELAY
from relay_service.control.sources import Health

PAYMENTS = "downstream.v1.PaymentService"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


async def check(channel, service: str = "") -> HealthCheckResponse.ServingStatus:
    return (await HealthStub(channel).Check(HealthCheckRequest(service=service), timeout=10)).status


async def until_status(watch, status: HealthCheckResponse.ServingStatus) -> None:
    async for news in watch:
        if news.status == status:
            return
    pytest.fail("the watch ended")


@pytest.fixture
async def plane(upstreams, learners, planes):
    return await planes.start(learners.make((await upstreams.with_payments()).target))


@pytest.mark.parametrize("service", ["", RELAY, HEALTH, PAYMENTS])
async def test_every_service_and_the_whole_are_serving_while_an_upstream_is_ready(
    plane, channel_to, service
) -> None:
    assert await check(channel_to(plane.private_address), service) == SERVING


@pytest.mark.parametrize("service", ["no.Service", "n" * 200_000])
async def test_an_unknown_service_is_not_found_by_a_check(plane, channel_to, service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(channel_to(plane.private_address), service)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_tells_of_an_upstream_that_goes_and_comes(plane, channel_to, relay_state) -> None:
    watch = HealthStub(channel_to(plane.private_address)).Watch(
        HealthCheckRequest(service=PAYMENTS), timeout=10
    )
    await until_status(watch, SERVING)
    relay_state.ready["payments"] = False
    await until_status(watch, NOT_SERVING)
    relay_state.ready["payments"] = True
    plane.health_changed()
    await until_status(watch, SERVING)


async def test_a_watch_of_an_unknown_service_hears_when_it_appears_and_when_it_goes(
    upstreams, learners, planes, channel_to, make_service_file
) -> None:
    old = await upstreams.with_payments()
    learner = learners.make(old.target)
    plane = await planes.start(learner)
    stub = HealthStub(channel_to(plane.private_address))
    orders = stub.Watch(HealthCheckRequest(service="orders.v1.Service"), timeout=10)
    payments = stub.Watch(HealthCheckRequest(service=PAYMENTS), timeout=10)
    await until_status(orders, SERVICE_UNKNOWN)
    await until_status(payments, SERVING)
    await old.stop()
    await upstreams.describing(["orders.v1.Service"], make_service_file("orders.v1"), port=old.port)
    learner.refresh_soon()
    await until_status(orders, SERVING)
    await until_status(payments, SERVICE_UNKNOWN)


async def test_a_drain_is_told_to_watches_and_cannot_be_taken_back(plane, channel_to) -> None:
    channel = channel_to(plane.private_address)
    watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=10)
    await until_status(watch, SERVING)
    plane.drain()
    await until_status(watch, NOT_SERVING)
    plane.health_changed()
    for service in ("", RELAY, PAYMENTS):
        assert await check(channel, service) == NOT_SERVING


async def test_a_watcher_that_does_not_read_keeps_the_news_from_nobody(
    plane, channel_to, relay_state
) -> None:
    idle = [
        HealthStub(channel_to(plane.private_address)).Watch(HealthCheckRequest(), timeout=10)
        for _ in range(20)
    ]
    watch = HealthStub(channel_to(plane.private_address)).Watch(HealthCheckRequest(), timeout=10)
    for ready, status in [(True, SERVING), (False, NOT_SERVING)] * 20:
        relay_state.ready["payments"] = ready
        plane.health_changed()
        await until_status(watch, status)
    assert len(idle) == 20


async def test_the_admin_address_has_a_health_of_its_own(plane, channel_to, relay_state) -> None:
    relay_state.ready["payments"] = False
    plane.health_changed()
    channel = channel_to(plane.admin_address)
    assert await check(channel) == SERVING
    assert await check(channel, ADMIN) == SERVING
    with pytest.raises(grpc.aio.AioRpcError):
        await check(channel, RELAY)
    plane.drain()
    assert await check(channel, ADMIN) == NOT_SERVING


async def test_many_checks_at_once_are_all_answered(plane, channel_to) -> None:
    channel = channel_to(plane.private_address)
    assert set(await asyncio.gather(*(check(channel) for _ in range(200)))) == {SERVING}


@pytest.mark.parametrize(
    ("health", "reasons"),
    [
        (Health(draining=False, upstreams_ready={"a": True, "b": False}), ()),
        (Health(draining=True, upstreams_ready={"a": True}), ("the relay is draining",)),
        (Health(draining=False, upstreams_ready={}), ("no upstream is configured",)),
        (
            Health(draining=False, upstreams_ready={"a": False, "b": False}),
            ("upstream a is not ready", "upstream b is not ready"),
        ),
    ],
    ids=["one ready", "draining", "none configured", "none ready"],
)
def test_the_relay_serves_unless_there_is_a_reason_not_to(health, reasons) -> None:
    assert health.reasons == reasons
    assert health.serving == (not reasons)


async def test_a_service_of_two_upstreams_serves_while_one_of_them_is_ready(upstreams, learners) -> None:
    pair = [await learners.start((await upstreams.with_payments()).target, name) for name in ("a", "b")]
    for ready_a, ready_b in [(True, False), (False, True), (False, False)]:
        health = Health(draining=False, upstreams_ready={"a": ready_a, "b": ready_b})
        assert service_table(health, pair)[PAYMENTS] == (ready_a or ready_b)
