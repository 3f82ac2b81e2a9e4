"""Another policy takes over in a running relay: no call is lost, and a bad one changes nothing."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from typer.testing import CliRunner

from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import admin_pb2
from relay_service.cli.app import app

RELOADS = 20


def policy_for(downstreams: dict[str, Any], routed_to: str, **relay: Any) -> dict[str, Any]:
    """Everything goes to one of the downstreams, the others are not there."""
    upstreams = {routed_to: {"target": downstreams[routed_to].target}}
    return {"relay": {"preset": "payments-demo", "name": f"to-{routed_to}", "upstreams": upstreams, **relay}}


async def test_twenty_reloads_under_load_lose_no_call_and_each_call_has_its_effect_once(
    sites, a_charge
) -> None:
    site = await sites.start("one", "two", policy=lambda known: policy_for(known, "one"))
    for downstream in site.downstreams.values():
        # So that calls are under way at every switch.
        await downstream.set_faults({"latency": {"exponential": {"mean": "0.03s"}}})
    over = asyncio.Event()
    made: list[str] = []

    async def call_on(worker: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            key = f"{worker}-{number}"
            made.append(key)
            await site.payments.Charge(a_charge("load"), metadata=[("idempotency-key", key)], timeout=10)

    conversation = site.payments.Authorize()
    await conversation.write(payment_pb2.AuthorizeRequest(charge=a_charge()))
    assert (await conversation.read()).approved

    workers = [asyncio.create_task(call_on(number)) for number in range(12)]
    versions = set()
    for number in range(1, RELOADS + 1):
        name = ("one", "two")[number % 2]
        # The queue and the workers change with the upstream.
        site.write_policy(
            policy_for(site.downstreams, name, admission={"workers": 4 + number, "queueCapacity": 100})
        )
        if number % 2:
            site.hang_up()
        else:
            await site.admin(lambda admin: admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest()))
        stats = await site.until(lambda stats, number=number: stats.policy.reloads == number)
        versions.add(stats.policy.version)
        assert (stats.policy.name, stats.queue.workers) == (f"to-{name}", 4 + number)
        assert [upstream.name for upstream in stats.upstreams] == [name]
        ok = stats.calls.ok
        await site.until(lambda stats, ok=ok: stats.calls.ok >= ok + 20)
    over.set()
    await asyncio.gather(*workers)

    assert len(versions) == RELOADS
    effects = [await one.charges() for one in site.downstreams.values()]
    assert sum(effects) == len(made), "each call has its effect, and has it once"
    assert min(effects) > 0, "both took calls"
    # What began under the first policy goes on, though its upstream has been gone since.
    await conversation.write(payment_pb2.AuthorizeRequest(charge=a_charge()))
    assert (await conversation.read()).approved
    await conversation.done_writing()
    assert await conversation.read() is grpc.aio.EOF
    calls = (await site.until(lambda stats: stats.calls.in_flight == 0)).calls
    assert (calls.errors, calls.refused, calls.cancelled) == (0, 0, 0)
    assert calls.ok == len(made) + 1


async def test_a_bad_policy_changes_nothing_and_is_told_in_the_words_of_a_start(sites, a_charge) -> None:
    site = await sites.start("one", policy=lambda known: policy_for(known, "one"))
    before = (await site.stats()).policy
    site.write_policy({"relay": {"preset": "default", "admission": {"workers": 0}, "maxHop": 3}})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await site.admin(lambda admin: admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest()))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    runner = CliRunner()
    told = await asyncio.to_thread(runner.invoke, app, ["reload", "-a", site.admin_address])
    at_start = await asyncio.to_thread(runner.invoke, app, ["serve", "--policy", str(site.policy_file)])
    assert (told.exit_code, at_start.exit_code) == (1, 2)
    faults = [line for line in told.stderr.splitlines() if line.startswith("error: ")]
    assert faults == at_start.stderr.splitlines()
    assert len(faults) == 2

    site.write_policy('{"relay": ')
    site.hang_up()
    now = (await site.until(lambda stats: stats.policy.refused == 3)).policy
    assert (now.name, now.version, now.reloads) == (before.name, before.version, 0)
    assert now.load_time == before.load_time
    assert "is not JSON" in now.last_refusal
    assert now.last_refusal_time.seconds >= now.load_time.seconds
    assert "the new policy is refused" in site.log
    await site.payments.Charge(a_charge(), timeout=10)

    site.write_policy(policy_for(site.downstreams, "one", retryBudget={"ratio": 0.5}))
    done = await asyncio.to_thread(runner.invoke, app, ["reload", "-a", site.admin_address])
    assert done.exit_code == 0, done.stderr
    now = (await site.stats()).policy
    assert done.stdout.splitlines()[-1] == f"policy to-one {now.version} is in force"
    assert (now.reloads, now.version != before.version) == (1, True)


async def test_a_policy_file_that_changes_is_reloaded_where_that_is_asked_for(sites) -> None:
    site = await sites.start(
        "one", policy=lambda known: policy_for(known, "one"), relay_args=("--policy-poll", "0.05")
    )
    site.write_policy(policy_for(site.downstreams, "one", maxHops=2))
    await site.until(lambda stats: stats.policy.reloads == 1)
    site.write_policy("{")
    await site.until(lambda stats: stats.policy.refused == 1)
    assert (await site.stats()).policy.reloads == 1


async def test_what_has_been_learned_stays_with_an_upstream_that_stays(sites, a_charge) -> None:
    """An open breaker stays open over a reload, and its upstream keeps its connections."""

    def policy(known: dict[str, Any], **relay: Any) -> dict[str, Any]:
        breaker = {"consecutiveFailures": 3, "openTime": "60s"}
        return policy_for(known, "one", breaker=breaker, off=["retry"], **relay)

    site = await sites.start("one", policy=policy)
    await site.downstreams["one"].set_faults({"failure": {"code": 14}})
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError):
            await site.payments.Charge(a_charge(), timeout=10)
    site.write_policy(policy(site.downstreams, admission={"workers": 7}))
    await site.admin(lambda admin: admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest()))
    stats = await site.stats()
    (upstream,) = stats.upstreams
    assert (stats.queue.workers, upstream.breakers[0].state, upstream.connects) == (7, "OPEN", 1)
    # With a breaker that judges by other limits it begins anew.
    site.write_policy(policy_for(site.downstreams, "one", breaker={"consecutiveFailures": 4}, off=["retry"]))
    await site.admin(lambda admin: admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest()))
    assert (await site.stats()).upstreams[0].breakers[0].state == "CLOSED"


async def test_a_relay_that_drains_takes_no_other_policy(sites) -> None:
    site = await sites.start("one", policy=lambda known: policy_for(known, "one"))
    watch = site.payments.WatchCharges(payment_pb2.WatchChargesRequest())
    await site.until(lambda stats: stats.calls.in_flight == 1)
    await site.admin(lambda admin: admin.Drain(admin_pb2.DrainRequest()))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await site.admin(lambda admin: admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest()))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    watch.cancel()


async def test_certificates_that_cannot_be_used_refuse_a_policy_like_any_other_fault(sites, a_charge) -> None:
    site = await sites.start("one", policy=lambda known: policy_for(known, "one"))
    policy = policy_for(site.downstreams, "one")
    policy["relay"]["upstreams"]["secret"] = {"target": "127.0.0.1:1", "tls": {"ca": "/nowhere/ca.pem"}}
    policy["relay"]["routes"] = [{"upstream": "one"}]
    site.write_policy(policy)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await site.admin(lambda admin: admin.ReloadPolicy(admin_pb2.ReloadPolicyRequest()))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    stats = await site.stats()
    assert (stats.policy.reloads, stats.policy.refused) == (0, 1)
    assert "/nowhere/ca.pem cannot be read" in stats.policy.last_refusal
    await site.payments.Charge(a_charge(), timeout=10)
