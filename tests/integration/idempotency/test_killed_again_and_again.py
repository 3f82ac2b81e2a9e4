"""Thousands of keyed calls while relay or downstream are killed with -9, at each step in turn.

One relay on SQLite, two on PostgreSQL. NONE stands for a downstream that ignores keys: there nothing may be
sent twice, and what nobody knows stays unknown and is listed.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from functools import partial
from random import Random
from typing import Any

import grpc
import pytest

from chaos.processes import ProcessError
from tests.integration.idempotency.sites import Member, Site, Told, charge, policy_of, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

OK = grpc.StatusCode.OK
STEPS = ("looked-up", "claimed", "dispatched", "answered", "settled", "replied")
CALLS = 800
WORKERS = 48
NTH_MAX = 100
"""A relay is killed at the latest when it takes the step for so many-th time."""
BACKOFF_S = 0.5
PATIENCE = 60
"""Calls in a row that a caller makes of a relay that refuses them."""
KILLS = 4
"""Of one run, so that its time is bounded where a start takes long."""
SEED = 20

Fault = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=["sqlite", "postgres"])
def any_site(request: pytest.FixtureRequest) -> Site:
    return request.getfixturevalue({"sqlite": "site", "postgres": "shared_site"}[request.param])


async def started(site: Site, safety: str) -> Site:
    """As many relays as the store allows."""
    relays = 1 if site.store.startswith("sqlite") else 2
    ignoring = ["--ignore-keys"] if safety == "NONE" else []
    return await site.start(policy_of(safety, lease="0.5s"), relays, *ignoring)


async def once(relay: Member, key: str) -> Told:
    """One call; a caller that is refused holds back for a while."""
    one = await charge(relay, key, timeout_s=20)
    if one.code is not OK:
        await asyncio.sleep(BACKOFF_S)
    return one


async def at_last(relay: Member, key: str) -> Told:
    """Called again while the relay does not trust the downstream yet."""
    for _ in range(PATIENCE):
        one = await once(relay, key)
        if one.decision != "BREAKER_OPEN":
            break
    return one


async def called(
    site: Site, keys: Iterable[str], ask: Callable[[Member, str], Awaitable[Told]] = once
) -> dict[str, Told]:
    """Each key, by callers who take turns between the relays."""
    waiting: Iterator[tuple[int, str]] = iter(enumerate(keys))
    told: dict[str, Told] = {}

    async def caller() -> None:
        for number, key in waiting:
            told[key] = await ask(site.relays[number % len(site.relays)], key)

    await asyncio.gather(*(caller() for _ in range(WORKERS)))
    return told


async def called_meanwhile(site: Site, keys: Iterable[str], fault: Fault) -> dict[str, Told]:
    """Each key once, while the fault comes again and again."""
    faults = asyncio.create_task(fault())
    try:
        return await called(site, keys)
    finally:
        faults.cancel()
        await asyncio.gather(faults, return_exceptions=True)


async def what_is_known_is_true(site: Site, told: dict[str, Told], safety: str) -> None:
    """The ledger, the answers and the list of open outcomes agree, now and when everybody calls again."""
    unanswered = [key for key, one in told.items() if one.code is not OK]
    await until(lambda: _no_live_lease(site, unanswered))
    listed = await site.ambiguous()
    effects = await site.effects()
    assert max(effects.values(), default=0) <= 1
    for key, one in told.items():
        if one.code is OK:
            assert (effects[key], key in listed) == (1, False), key
        elif effects[key] and key not in listed:
            assert (await site.record(key)).state == "DONE", key
    again = await called(site, told, at_last)
    effects = await site.effects()
    assert max(effects.values()) <= 1
    for key, one in again.items():
        if safety == "KEYED" or key not in listed:
            assert (one.code, effects[key]) == (OK, 1), (key, one)
            assert told[key].code is not OK or told[key].reply == one.reply, key
        else:
            assert one.decision == "OUTCOME_UNKNOWN", (key, one)
    print(f"{len(told)} calls, {len(unanswered)} unanswered, {len(listed)} of unknown outcome")


async def _no_live_lease(site: Site, keys: list[str]) -> bool:
    listed = await site.ambiguous()
    for key in keys:
        record = None if key in listed else await site.record(key)
        if record is not None and record.state == "IN_PROGRESS":
            return False
    return True


@pytest.mark.parametrize("safety", ["KEYED", "NONE"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_relay_killed_at_a_step_leaves_one_effect_or_an_open_outcome(
    any_site: Site, safety: str, step: str
) -> None:
    site = await started(any_site, safety)
    victim = site.relays[0]
    rng = Random(SEED)
    kills = 0

    async def kill() -> None:
        nonlocal kills
        while kills < KILLS:
            with contextlib.suppress(ProcessError):  # killed before it could say that it is ready
                await victim.start_again("--fault-point", f"{step}:kill:{rng.randint(1, NTH_MAX)}")
            assert await victim.process.wait() == -signal.SIGKILL
            kills += 1
        await victim.start_again()

    told = await called_meanwhile(site, (f"{step}-{number}" for number in range(CALLS)), kill)
    await victim.start_again()
    print(f"seed {SEED}: {kills} kills at {step}")
    assert kills >= 2
    await what_is_known_is_true(site, told, safety)


@pytest.mark.parametrize("safety", ["KEYED", "NONE"])
async def test_a_downstream_killed_under_load_leaves_one_effect_or_an_open_outcome(
    any_site: Site, safety: str
) -> None:
    site = await started(any_site, safety)
    downstream = site.downstream
    assert downstream is not None
    kills = 0

    async def kill() -> None:
        nonlocal kills
        while kills < KILLS:
            effects = sum((await site.effects()).values())
            await until(partial(_more_effects, site, effects))
            await downstream.start_again()
            kills += 1

    def keys() -> Iterator[str]:
        """At least `CALLS`, and more until the kills have been seen."""
        for number in range(5 * CALLS):
            if number >= CALLS and kills >= KILLS:
                return
            yield f"k-{number}"

    told = await called_meanwhile(site, keys(), kill)
    if not downstream.process.running:
        await downstream.start_again()
    print(f"{kills} kills of the downstream")
    assert kills >= 2
    await what_is_known_is_true(site, told, safety)


async def _more_effects(site: Site, than: int) -> bool:
    return sum((await site.effects()).values()) > than + 20
