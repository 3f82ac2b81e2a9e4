"""One relay on SQLite: what callers with a key are told, and what is kept through kill -9 at every step."""

import asyncio
import signal
from functools import partial
from typing import Any

import grpc
import pytest

from tests.integration.idempotency.sites import Member, Site, charge, policy_of, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

OK = grpc.StatusCode.OK
STEPS = ("looked-up", "claimed", "dispatched", "answered", "settled", "replied")


async def test_a_repeated_call_gets_the_first_answer_byte_for_byte(running_site: Site) -> None:
    await running_site.set_faults()
    relay = running_site.relays[0]
    first = await charge(relay, "first")
    again = await charge(relay, "first")
    assert (first.code, first.status, first.decision) == (OK, "executed", "FORWARDED")
    assert (again.code, again.status, again.reply) == (OK, "replayed", first.reply)
    ours = {"idempotency-status", "idempotency-first-seen"}
    assert {k: v for k, v in again.trailers.items() if k not in ours} == {
        k: v for k, v in first.trailers.items() if k not in ours
    }
    assert again.trailers["idempotency-first-seen"].endswith("Z")
    assert (await running_site.effects())["first"] == 1


async def test_a_replay_survives_a_restart_of_relay_and_downstream(site: Site) -> None:
    relay = (await site.start(policy_of())).relays[0]
    assert site.downstream is not None
    first = await charge(relay, "k1")
    await relay.process.kill()
    await site.downstream.process.kill()
    await relay.start()  # nobody is behind it: what is known needs no upstream
    again = await charge(relay, "k1")
    assert (again.status, again.reply) == ("replayed", first.reply)
    await site.downstream.start()
    assert (await site.effects())["k1"] == 1


async def test_a_key_belongs_to_one_request(running_site: Site) -> None:
    await running_site.set_faults()
    relay = running_site.relays[0]
    await charge(relay, "one-request")
    other = await charge(relay, "one-request", amount=200)
    assert (other.code, other.decision) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED")
    assert other.trailers["relay-outcome"] == "not-executed"
    assert (await running_site.effects())["one-request"] == 1


async def test_a_definite_error_is_replayed_and_then_forgotten(site: Site) -> None:
    relay = (await site.start(policy_of(keepErrors="0.3s"))).relays[0]
    first = await charge(relay, "k1", amount=-5)
    again = await charge(relay, "k1", amount=-5)
    assert (again.code, again.message, again.status) == (first.code, first.message, "replayed")
    assert first.code is grpc.StatusCode.INVALID_ARGUMENT
    await until(lambda: _is(charge(relay, "k1", amount=-5), "executed"))


async def test_duplicates_in_flight_wait_without_a_slot_for_the_same_answer(site: Site) -> None:
    policy = policy_of()
    policy["relay"]["admission"] = {"workers": 1, "queueCapacity": 0}
    relay = (await site.start(policy)).relays[0]
    await site.set_faults({"latency": {"fixed": "0.5s"}})
    told = await asyncio.gather(*(charge(relay, "k1") for _ in range(50)))
    assert {one.code for one in told} == {OK}
    assert {one.reply for one in told} == {told[0].reply}
    statuses = sorted(one.status for one in told)
    assert statuses.count("executed") == 1
    assert set(statuses) <= {"executed", "coalesced", "replayed"}
    assert (await site.effects())["k1"] == 1


async def test_duplicates_in_flight_are_aborted_where_the_policy_says_so(site: Site) -> None:
    relay = (await site.start(policy_of(inFlight="abort"))).relays[0]
    await site.set_faults({"latency": {"fixed": "1s"}})
    first = asyncio.create_task(charge(relay, "k1"))
    await until(lambda: _is_claimed(site))
    duplicate = await charge(relay, "k1")
    assert (duplicate.code, duplicate.decision) == (grpc.StatusCode.ABORTED, "IDEMPOTENCY_IN_PROGRESS")
    assert duplicate.status == "in-progress"
    assert (await first).status == "executed"


async def test_work_that_was_dispatched_outlives_its_caller(running_site: Site) -> None:
    await running_site.set_faults()
    relay = running_site.relays[0]
    await running_site.set_faults({"latency": {"fixed": "1s"}})
    gone = asyncio.create_task(charge(relay, "outlives"))
    await until(lambda: _is_claimed(running_site, "outlives"))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    later = await charge(relay, "outlives")
    assert later.status in ("coalesced", "replayed")
    assert (await running_site.effects())["outlives"] == 1


async def test_a_caller_whose_time_is_up_is_told_that_the_call_goes_on(running_site: Site) -> None:
    await running_site.set_faults()
    relay = running_site.relays[0]
    await running_site.set_faults({"latency": {"fixed": "1s"}})
    late = await charge(relay, "late", timeout_s=0.4)
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    later = await charge(relay, "late")
    assert later.status in ("coalesced", "replayed")
    assert (await running_site.effects())["late"] == 1


async def test_an_exhausted_call_becomes_a_dead_letter_that_owns_its_key(site: Site) -> None:
    policy = policy_of()
    policy["relay"]["deadLetters"] = {"onExhausted": True}
    relay = (await site.start(policy)).relays[0]
    await site.set_faults({"failure": {"code": 14}})
    dead = await charge(relay, "k1")
    letter_id = dead.trailers["relay-dead-letter-id"]
    assert (dead.code, dead.decision) == (grpc.StatusCode.UNAVAILABLE, "RETRIES_EXHAUSTED")
    again = await charge(relay, "k1")
    assert again.decision == "IDEMPOTENCY_KEY_DEAD_LETTERED"
    assert again.trailers["relay-dead-letter-id"] == letter_id
    assert (await site.record("k1")).reference == letter_id


async def test_what_nobody_executed_frees_its_key(running_site: Site) -> None:
    await running_site.set_faults()
    relay = running_site.relays[0]
    await running_site.set_faults({"failure": {"code": 14}, "maxStrikes": 4})
    refused = await charge(relay, "free")
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert (await charge(relay, "free")).status == "executed"


async def test_a_downstream_that_ignores_keys_gets_each_key_at_most_once(site: Site) -> None:
    relay = (await site.start(policy_of("NONE"), 1, "--ignore-keys")).relays[0]
    await site.set_faults({"failure": {"code": 13, "when": "WHEN_AFTER_EFFECT"}, "probability": 0.3})
    keys = [f"k{number}" for number in range(40)]
    await asyncio.gather(*(charge(relay, key) for key in keys for _ in range(3)))
    again = dict(zip(keys, await asyncio.gather(*(charge(relay, key) for key in keys)), strict=True))
    await site.set_faults()
    assert max((await site.effects()).values(), default=0) <= 1
    listed = await site.ambiguous()
    assert {key for key, told in again.items() if told.code is not OK} == set(listed)
    assert {again[key].decision for key in listed} == {"OUTCOME_UNKNOWN"}
    assert 0 < len(listed) < len(keys)


@pytest.mark.parametrize(
    ("safety", "steps"),
    [
        ("KEYED", ("claimed", "dispatched")),
        ("NONE", ("dispatched", "answered")),
        pytest.param("KEYED", STEPS, marks=pytest.mark.soak),
        pytest.param("NONE", STEPS, marks=pytest.mark.soak),
    ],
)
async def test_a_relay_killed_at_any_step_leaves_one_effect_or_an_open_outcome(
    site: Site, safety: str, steps: tuple[str, ...]
) -> None:
    """NONE stands for a downstream that ignores keys: there nothing may be sent twice."""
    ignoring = ["--ignore-keys"] if safety == "NONE" else []
    relay = (await site.start(policy_of(safety, lease="0.5s"), 1, *ignoring)).relays[0]
    told: dict[str, Any] = {}
    for step in steps:
        await relay.stop()
        await relay.start("--fault-point", f"{step}:kill:10")
        keys = [f"{step}-{number}" for number in range(30)]
        calls = [asyncio.create_task(charge(relay, key)) for key in keys]
        assert await relay.process.wait() == -signal.SIGKILL, step
        assert relay.channel is not None
        await relay.channel.close()
        told |= dict(zip(keys, await asyncio.gather(*calls), strict=True))
    await relay.start()
    await until(lambda: _no_live_lease(site, told))
    listed = await site.ambiguous()
    effects = await site.effects()
    assert max(effects.values(), default=0) <= 1
    for key, one in told.items():
        if one.code is OK:
            assert (effects[key], key in listed) == (1, False), key
        elif effects[key]:
            assert key in listed or (await site.record(key)).state == "DONE", key
    again = dict(zip(told, await asyncio.gather(*(charge(relay, key) for key in told)), strict=True))
    assert max((await site.effects()).values(), default=0) <= 1
    for key, one in again.items():
        if safety == "KEYED" or key not in listed:
            assert one.code is OK, (key, one)
        else:
            assert one.decision == "OUTCOME_UNKNOWN", (key, one)


async def test_a_relay_stopped_past_its_lease_goes_on_with_what_nobody_took(site: Site) -> None:
    """There is one relay on SQLite: while it sleeps nobody takes its key over, and its fence still counts."""
    relay = (await site.start(policy_of(lease="0.5s"))).relays[0]
    await relay.stop()
    await relay.start("--fault-point", "dispatched:stop:1")
    asleep = asyncio.create_task(charge(relay, "k1", timeout_s=30))
    await until(relay.is_stopped)
    await asyncio.sleep(1.0)  # the lease's time, not a wait for something
    relay.process.resume()
    late, again = await asyncio.gather(asleep, charge(relay, "k1", timeout_s=30))
    assert (late.code, again.code, late.reply) == (OK, OK, again.reply)
    assert [late.status, again.status].count("executed") == 1
    assert (await site.effects())["k1"] == 1
    assert (await site.record("k1")).state == "DONE"


async def test_a_relay_that_is_told_to_stop_settles_the_work_that_its_callers_left(site: Site) -> None:
    relay = (await site.start(policy_of())).relays[0]
    await site.set_faults({"latency": {"fixed": "1s"}})
    gone = asyncio.create_task(charge(relay, "k1"))
    await until(lambda: _is_claimed(site))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await relay.stop()
    await relay.start()
    assert (await site.record("k1")).state == "DONE"
    assert (await charge(relay, "k1")).status == "replayed"


async def test_a_downstream_killed_under_load_executes_no_key_twice(site: Site) -> None:
    relay = (await site.start(policy_of())).relays[0]
    assert site.downstream is not None
    await site.set_faults({"latency": {"fixed": "0.05s"}})
    keys = [f"k{number}" for number in range(150)]
    calls = [asyncio.create_task(charge(relay, key)) for key in keys for _ in range(2)]
    await until(lambda: _some_effects(site))
    await site.downstream.process.kill()
    await site.downstream.start()
    told = await asyncio.gather(*calls)
    for key in keys:  # the relay may not trust the downstream at once
        await until(partial(_is_ok, relay, key))
    effects = await site.effects()
    assert set(effects.values()) == {1}
    assert any(one.code is OK for one in told)


async def test_the_default_store_is_made_when_a_policy_asks_for_one(site: Site) -> None:
    state = site.run_dir / "state"
    await site.start(policy_of(), 0)
    relay = await site.add_relay("--state-dir", str(state))
    assert (await charge(relay, "k1")).status == "executed"
    assert (state / "relay.db").exists()


async def _is(call: Any, status: str) -> bool:
    return (await call).status == status


async def _is_claimed(site: Site, key: str = "k1") -> bool:
    record = await site.record(key)
    return record is not None and record.state == "IN_PROGRESS"


async def _no_live_lease(site: Site, told: dict[str, Any]) -> bool:
    listed = await site.ambiguous()
    for key in told:
        if key not in listed and await _is_claimed(site, key):
            return False
    return True


async def _some_effects(site: Site) -> bool:
    return sum((await site.effects()).values()) > 10


async def _is_ok(relay: Member, key: str) -> bool:
    return (await charge(relay, key)).code is OK
