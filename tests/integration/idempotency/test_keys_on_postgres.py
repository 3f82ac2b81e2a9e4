"""Two relays on PostgreSQL: one key is one effect, whichever relay it comes to and whichever of them dies."""

import asyncio
import signal
import time

import grpc
import pytest

from tests.integration.idempotency.postgres_outage import outage
from tests.integration.idempotency.sites import Site, Told, charge, policy_of, until
from tests.stores.postgres_server import PostgresServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

OK = grpc.StatusCode.OK


async def test_a_thousand_calls_with_one_key_over_two_relays_are_one_effect_and_one_answer(
    shared_site: Site,
) -> None:
    relays = (await shared_site.start(policy_of(), 2)).relays
    await shared_site.set_faults({"latency": {"fixed": "0.2s"}})
    told = await asyncio.gather(*(charge(relays[number % 2], "k1", timeout_s=30) for number in range(1000)))
    assert {one.code for one in told} == {OK}
    assert {one.reply for one in told} == {told[0].reply}
    assert [one.status for one in told].count("executed") == 1
    assert (await shared_site.effects())["k1"] == 1


async def test_a_relay_stopped_past_its_lease_writes_nothing_when_it_wakes(shared_site: Site) -> None:
    asleep_at = ("--fault-point", "dispatched:stop:1")
    first, second = (await shared_site.start(policy_of(lease="0.5s"), 2, first=asleep_at)).relays
    asleep = asyncio.create_task(charge(first, "k1", timeout_s=30))
    await until(lambda: _listed(shared_site, "k1", 1))
    taken_over = await charge(second, "k1")
    before = await shared_site.record("k1", 1)
    assert (taken_over.code, taken_over.status, before.state) == (OK, "executed", "DONE")
    first.process.resume()
    late = await asleep
    assert late.status == "unknown"
    assert (await shared_site.keys(0)).stale_writes == 1
    assert await shared_site.record("k1", 1) == before
    assert (await shared_site.effects())["k1"] == 1


async def test_what_a_stopped_relay_may_have_sent_is_unknown_until_it_wakes(shared_site: Site) -> None:
    """The downstream ignores keys, so nobody else may try."""
    asleep_at = ("--fault-point", "claimed:stop:1")
    site = await shared_site.start(policy_of("NONE", lease="0.5s"), 2, "--ignore-keys", first=asleep_at)
    first, second = site.relays
    asleep = asyncio.create_task(charge(first, "k1", timeout_s=30))
    await until(lambda: _listed(site, "k1", 1))
    assert (await charge(second, "k1")).decision == "OUTCOME_UNKNOWN"
    first.process.resume()
    woken = await asleep
    assert (woken.code, woken.status) == (OK, "executed")
    again = await charge(second, "k1")
    assert (again.status, again.reply) == ("replayed", woken.reply)
    assert (await site.effects())["k1"] == 1


async def test_a_relay_killed_under_load_leaves_its_keys_to_the_other(shared_site: Site) -> None:
    killed_at = ("--fault-point", "answered:kill:20")
    first, second = (await shared_site.start(policy_of(lease="0.5s"), 2, first=killed_at)).relays
    keys = [f"k{number}" for number in range(60)]
    calls = [asyncio.create_task(charge(first, key, timeout_s=5)) for key in keys]
    assert await first.process.wait() == -signal.SIGKILL
    assert first.channel is not None
    await first.channel.close()
    told = await asyncio.gather(*calls)
    again = await asyncio.gather(*(charge(second, key) for key in keys))
    assert {one.code for one in again} == {OK}
    for before, after in zip(told, again, strict=True):
        assert before.code is not OK or before.reply == after.reply
    assert set((await shared_site.effects()).values()) == {1}
    assert await shared_site.ambiguous(1) == {}


@pytest.mark.parametrize("outage_s", [3.0, pytest.param(10.0, marks=pytest.mark.soak)])
async def test_service_is_back_soon_after_its_store_and_nothing_was_done_twice(
    shared_site: Site, postgres_server: PostgresServer, outage_s: float
) -> None:
    relays = (await shared_site.start(policy_of(lease="1s"), 2)).relays
    told: list[tuple[float, str, Told]] = []
    over = asyncio.Event()

    async def load(worker: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            key = f"k{worker}-{number}"
            one = await charge(relays[worker % 2], key, timeout_s=8)
            told.append((time.monotonic(), key, one))
            await asyncio.sleep(0.02)

    workers = [asyncio.create_task(load(worker)) for worker in range(8)]
    await until(lambda: _some(told, 40))
    await outage(postgres_server, "stop")
    stopped_at = time.monotonic()
    await asyncio.sleep(outage_s)  # the outage itself, not a wait for something
    await outage(postgres_server, "start")
    back_at = time.monotonic()
    await until(lambda: _succeeded_since(told, back_at))
    recovered_s = min(at for at, _, one in told if at > back_at and one.code is OK) - back_at
    over.set()
    await asyncio.gather(*workers)
    refused = [one for at, _, one in told if one.code is not OK]
    assert {(one.code, one.decision) for one in refused} == {
        (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    }
    assert any(stopped_at < at < back_at for at, _, one in told if one.code is not OK)
    assert recovered_s < 2.0 + SLACK_S
    effects = await shared_site.effects()
    assert max(effects.values()) == 1
    for _, key, one in told:
        assert effects[key] == (1 if one.code is OK else 0), (key, one)


SLACK_S = 2.0
"""A machine that is busy with other things; the bound itself is 2 s."""


async def _listed(site: Site, key: str, relay: int) -> bool:
    return key in await site.ambiguous(relay)


async def _some(told: list[tuple[float, str, Told]], count: int) -> bool:
    return len(told) >= count


async def _succeeded_since(told: list[tuple[float, str, Told]], since: float) -> bool:
    return any(at > since and one.code is OK for at, _, one in told)
