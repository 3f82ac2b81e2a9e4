"""kill -9 of the relay at every named step, and of the downstream: nothing is lost, nothing is done twice."""

import asyncio
from typing import Any

import grpc.aio
import pytest

from protos.relay.v1 import job_pb2

STEPS = (
    "job-submitted",
    "job-answered",
    *(
        pytest.param(step, marks=pytest.mark.soak)
        for step in ("job-submitting", "job-leased", "job-dispatched", "job-settling", "job-settled")
    ),
)
JOBS = 60


async def submit_until_known(lab: Any, relay: Any, helpers: Any, number: int) -> str:
    """Submit under one key until somebody acknowledges it, as a careful caller does; the job's id."""

    async def attempt() -> str:
        response, _ = await relay.submit(f"key-{number}", account=f"account-{number}")
        return str(response.job.id)

    return str(await helpers.eventually(attempt))


@pytest.mark.parametrize("step", STEPS)
async def test_a_relay_killed_at_any_step_loses_no_accepted_job_and_repeats_none(
    lab: Any, helpers: Any, step: str
) -> None:
    relay = await lab.relay(helpers.policy(), "--fault-point", f"{step}:kill:{20 if 'submit' in step else 7}")
    submissions = asyncio.gather(*(submit_until_known(lab, relay, helpers, n) for n in range(JOBS)))
    await relay.process.wait()
    await relay.restart()
    ids = await submissions
    assert len(set(ids)) == JOBS
    states = await helpers.all_ended(relay, JOBS)
    assert states == {"COMPLETED": JOBS}
    effects = await lab.effects()
    assert len(effects) == JOBS
    assert set(effects.values()) == {1}


@pytest.mark.soak
async def test_a_downstream_killed_again_and_again_gets_each_job_once(lab: Any, helpers: Any) -> None:
    relay = await lab.relay(helpers.policy())
    await lab.set_faults({"latency": {"uniform": {"min": "0s", "max": "0.02s"}}})
    submissions = asyncio.gather(*(submit_until_known(lab, relay, helpers, n) for n in range(4 * JOBS)))
    for _ in range(2):
        await helpers.eventually(lambda: _some_running(relay))
        await lab.downstream.kill()
        await lab.start_downstream()
    await submissions
    assert await helpers.all_ended(relay, 4 * JOBS) == {"COMPLETED": 4 * JOBS}
    assert set((await lab.effects()).values()) == {1}


async def test_work_that_is_not_safe_to_repeat_is_never_run_again_after_a_kill(
    lab: Any, helpers: Any
) -> None:
    rules = helpers.policy()
    rules["relay"]["methods"][0]["safety"] = "NONE"
    relay = await lab.relay(rules, "--fault-point", "job-answered:kill:7")
    for number in range(20):
        try:
            await relay.submit(f"key-{number}", account=f"account-{number}")
        except grpc.aio.AioRpcError:
            break
    await relay.process.wait()
    await relay.restart()
    states = await helpers.all_ended(relay, 7)
    assert states["DEAD"] >= 1
    effects = await lab.effects()
    assert set(effects.values()) == {1}
    jobs = await relay.all_jobs()
    dead = [job for job in jobs if job.state == job_pb2.JOB_STATE_DEAD]
    completed = sum(job.state == job_pb2.JOB_STATE_COMPLETED for job in jobs)
    assert completed <= len(effects) <= completed + len(dead)


async def _some_running(relay: Any) -> bool:
    return (await relay.states())["RUNNING"] > 0


async def test_a_stalled_relay_writes_nothing_of_what_it_lost(lab: Any, helpers: Any) -> None:
    """SIGSTOP at the step between answer and write, past the lease; SQLite lets only one relay in, so what
    another would do is done by the same one after its resumption: its old fences are outdated by then."""
    relay = await lab.relay(helpers.policy(jobs={"lease": "0.3s"}), "--fault-point", "job-settling:stop:1")
    await asyncio.gather(
        *(relay.submit(f"key-{n}", account=f"a-{n}") for n in range(5)), return_exceptions=True
    )
    await asyncio.sleep(1.0)
    relay.process.resume()
    assert await helpers.all_ended(relay, 1)
    effects = await lab.effects()
    assert set(effects.values()) == {1}
