"""AdminService tells what the relay's sources say, and drains."""

import asyncio
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure
from grpc_status import rpc_status
from grpc_status.rpc_status import aio as rich

from protos.relay.v1 import admin_pb2
from protos.relay.v1.admin_pb2_grpc import AdminServiceStub
from relay_service.config.candidate import Candidate
from relay_service.config.lint import Finding, Rule
from relay_service.config.problems import ConfigError, Problem
from relay_service.core.policy import RelayPolicy, UpstreamPolicy

PAYMENTS = "downstream.v1.PaymentService"


@pytest.fixture
async def plane(upstreams, learners, planes, relay_state):
    upstream = await upstreams.with_payments()
    relay_state.with_upstream("payments", upstream.target, last_error="connection reset")
    return await planes.start(learners.make(upstream.target))


@pytest.fixture
def admin(plane, channel_to):
    return AdminServiceStub(channel_to(plane.admin_address))


async def rest_of(watch) -> list[admin_pb2.WatchStatsResponse]:
    messages = []
    while (message := await watch.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


async def test_stats_are_told_in_full(admin) -> None:
    stats = (await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=10)).stats
    assert stats.observe_time.ToNanoseconds() == 1_750_000_000_500_000_000
    assert stats.uptime.ToMilliseconds() == 61_500
    calls = stats.calls
    assert calls.received == calls.ok + calls.errors + calls.refused + calls.cancelled + calls.in_flight == 10
    assert dict(calls.by_reason) == {"QUEUE_FULL": 1, "RETRIES_EXHAUSTED": 3}
    first = stats.methods[0]
    assert (first.method, first.received, first.ok, first.attempts, first.retries) == ("a.B/C", 7, 3, 11, 4)
    assert (first.hedges, dict(first.by_code)) == (2, {"OK": 3, "UNAVAILABLE": 3})
    assert first.latency_p50.ToMicroseconds() == pytest.approx(20_000, rel=0.1)
    assert (stats.queue.length, stats.queue.capacity, stats.queue.workers_busy, stats.queue.workers) == (
        3,
        100,
        5,
        5,
    )
    assert [(one.criticality, one.length) for one in stats.queue.classes] == [
        ("CRITICAL", 2),
        ("SHEDDABLE", 1),
    ]
    assert stats.queue.displaced == 9
    assert (stats.queue.streams, stats.queue.streams_max, stats.queue.drain_per_second) == (2, 64, 12.5)
    assert (stats.telemetry.spans_exported, stats.telemetry.spans_dropped) == (42, 1)
    assert stats.telemetry.spans_afterwards_suppressed == 7
    callers = stats.callers
    assert (callers.connections, callers.refused_of_peer, callers.last_failure) == (4, 6, "a ping flood")


async def test_upstreams_are_told_with_their_connections_budget_and_services(admin) -> None:
    (upstream,) = (await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=10)).stats.upstreams
    assert (upstream.name, upstream.state, upstream.last_error) == ("payments", "READY", "connection reset")
    assert (upstream.connections, upstream.streams, upstream.connects, upstream.disconnects) == (1, 3, 2, 1)
    budget = upstream.retry_budget
    assert (budget.tokens, budget.max_tokens, budget.granted, budget.refused) == (7.5, 10.0, 4, 2)
    assert upstream.reflection == "LEARNED"
    assert list(upstream.services) == [PAYMENTS]


async def test_each_breaker_is_told_with_its_state_and_what_it_has_seen(admin) -> None:
    (upstream,) = (await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=10)).stats.upstreams
    (breaker,) = upstream.breakers
    told = {field.name: value for field, value in breaker.ListFields()}
    assert told == {
        "methods": "a.B/C",
        "state": "HALF_OPEN",
        "cause": "PROBE_LOST",
        "calls": 29,
        "failures": 28,
        "slow": 3,
        "consecutive_failures": 27,
        "probes": 1,
        "opened": 6,
        "refused": 12345,
        "probes_lost": 2,
        "stuck": 8,
        "late": 9,
    }


async def test_each_compartment_is_told_with_its_own_queue(admin) -> None:
    (upstream,) = (await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=10)).stats.upstreams
    own, slow = upstream.bulkheads
    assert (own.methods, slow.methods) == ("", "a.B/Slow")
    assert (own.queue.length, own.queue.workers_busy, own.queue.workers, own.queue.streams) == (1, 2, 3, 4)
    assert (slow.queue.length, slow.queue.capacity, slow.queue.workers_busy) == (6, 8, 9)


async def test_the_connections_are_told_by_state_and_by_what_happened_to_them(admin) -> None:
    (upstream,) = (await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=10)).stats.upstreams
    told = {field.name: value for field, value in upstream.pool.ListFields()}
    assert dict(told.pop("connections")) == {"READY": 1, "RESTING": 2}
    last, slowest = told.pop("ping_round_trip"), told.pop("ping_round_trip_max")
    assert (last.ToTimedelta().total_seconds(), slowest.ToTimedelta().total_seconds()) == (0.0125, 0.25)
    assert told == {
        "streams": 3,
        "waiting": 4,
        "connects": 5,
        "connect_failures": 6,
        "reconnects": 7,
        "disconnects": 8,
        "goaways": 9,
        "pings": 10,
        "pings_answered": 11,
        "zombies": 12,
        "attempts_unsent": 13,
    }


async def test_hedging_is_told_with_what_was_learned_and_what_was_held_back(admin) -> None:
    (upstream,) = (await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=10)).stats.upstreams
    hedging = upstream.hedging
    assert (hedging.connections, hedging.started, hedging.won, hedging.cancelled) == (1, 17, 11, 5)
    assert dict(hedging.held_back) == {"BUDGET": 8}
    (learned,) = hedging.methods
    assert (learned.method, learned.samples, learned.quantile.ToMicroseconds()) == ("a.B/C", 900, 42_500)


async def test_a_prefix_limits_the_methods_and_nothing_else(admin) -> None:
    stats = (await admin.GetStats(admin_pb2.GetStatsRequest(method_prefix="d."), timeout=10)).stats
    assert [method.method for method in stats.methods] == ["d.E/F"]
    assert stats.calls.received == 10


async def test_a_watch_tells_at_once_and_again_and_a_last_time_when_the_relay_drains(
    admin, plane, relay_state
) -> None:
    watch = admin.WatchStats(admin_pb2.WatchStatsRequest(interval=Duration(nanos=100_000_000)), timeout=30)
    for _ in range(3):
        assert (await watch.read()).stats.calls.received == 10
    relay_state.with_calls(received=11, ok=5)
    plane.drain()
    seen = [message.stats.calls.received for message in await rest_of(watch)]
    assert seen[-1] == 11
    assert await watch.code() is grpc.StatusCode.OK


async def test_a_watch_with_a_long_interval_ends_at_once_when_the_relay_drains(admin, plane) -> None:
    watch = admin.WatchStats(admin_pb2.WatchStatsRequest(interval=Duration(seconds=60)), timeout=30)
    await watch.read()
    plane.drain()
    async with asyncio.timeout(10):
        assert len(await rest_of(watch)) == 1


async def test_a_watch_keeps_to_its_interval(admin, relay_state) -> None:
    watch = admin.WatchStats(admin_pb2.WatchStatsRequest(interval=Duration(nanos=200_000_000)), timeout=30)
    await watch.read()
    began = time.monotonic()
    for _ in range(3):
        await watch.read()
    assert time.monotonic() - began >= 0.5


async def test_a_watch_that_is_left_is_forgotten(admin, plane) -> None:
    watch = admin.WatchStats(admin_pb2.WatchStatsRequest(), timeout=30)
    await watch.read()
    assert plane.running_calls == 1
    watch.cancel()
    async with asyncio.timeout(10):
        while plane.running_calls:  # noqa: ASYNC110  # the end of a handler sets no event that a test could wait for
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "interval",
    [
        Duration(),
        Duration(nanos=99_000_000),
        Duration(seconds=61),
        Duration(seconds=-1),
        Duration(seconds=2**62),
    ],
    ids=str,
)
async def test_an_interval_out_of_bounds_is_refused_with_the_field(admin, interval) -> None:
    watch = admin.WatchStats(admin_pb2.WatchStatsRequest(interval=interval), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = await rich.from_call(watch)
    details = BadRequest()
    assert status is not None
    assert status.details[0].Unpack(details)
    assert details.field_violations[0].field == "interval"
    assert "between 0.1 s and 60 s" in details.field_violations[0].description


async def test_health_is_told_in_detail(admin, plane, relay_state) -> None:
    health = await admin.GetHealth(admin_pb2.GetHealthRequest(), timeout=10)
    assert (health.serving, health.draining, health.version) == (True, False, "1.2.3")
    assert (health.queue.capacity, [upstream.name for upstream in health.upstreams]) == (100, ["payments"])
    relay_state.ready["payments"] = False
    health = await admin.GetHealth(admin_pb2.GetHealthRequest(), timeout=10)
    assert (health.serving, list(health.reasons)) == (False, ["upstream payments is not ready"])


@pytest.mark.parametrize(
    ("request_to_drain", "grace_s"),
    [
        (admin_pb2.DrainRequest(), 30.0),
        (admin_pb2.DrainRequest(grace=Duration()), 0.0),
        (admin_pb2.DrainRequest(grace=Duration(seconds=2, nanos=500_000_000)), 2.5),
    ],
    ids=["default", "none", "2.5 s"],
)
async def test_a_drain_is_passed_on_with_its_grace(admin, planes, request_to_drain, grace_s) -> None:
    answer = await admin.Drain(request_to_drain, timeout=10)
    assert planes.drains == [grace_s]
    assert answer.in_flight == 1


@pytest.mark.parametrize("grace", [Duration(seconds=-1), Duration(seconds=3601)], ids=str)
async def test_a_grace_out_of_bounds_drains_nothing(admin, planes, grace) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await admin.Drain(admin_pb2.DrainRequest(grace=grace), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert planes.drains == []


async def test_admin_service_is_not_at_the_address_of_the_data_plane(plane, channel_to) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await AdminServiceStub(channel_to(plane.private_address)).GetHealth(
            admin_pb2.GetHealthRequest(), timeout=10
        )
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_reload_tells_the_policy_in_force_and_what_is_suspicious_in_it(admin, planes) -> None:
    finding = Finding(Rule.GRPC_TIMEOUT, "methodConfig[0].timeout", "early")
    planes.reloaded = Candidate(RelayPolicy("p", {"u": UpstreamPolicy("h:1")}), (finding,))
    reloaded = await admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest(), timeout=10)
    assert list(reloaded.warnings) == ["methodConfig[0].timeout: early [grpc-timeout]"]
    stats = (await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=10)).stats
    assert reloaded.policy == stats.policy


async def test_a_policy_that_is_refused_is_told_fault_by_fault_as_far_as_there_is_room(admin, planes) -> None:
    problems = [Problem("p.json", f"relay.x{number}", "got 1", "unknown field") for number in range(500)]
    planes.reloaded = ConfigError(problems)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "500 faults" in refused.value.details()
    failure = PreconditionFailure()
    status = rpc_status.from_call(refused.value)
    assert status.details[0].Unpack(failure)
    assert [violation.description for violation in failure.violations] == [str(p) for p in problems[:10]]
