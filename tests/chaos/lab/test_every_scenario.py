"""Every scenario, short, on a fixed seed, in real processes: every promise holds.

The runs share the machine, so one whose verdict hangs on time is given a second run, alone. A promise of
safety (effects, budgets, books, traces) that is broken once is broken.
"""

import json
import os

import pytest

from chaos.runner.matrix import Job, run_all
from chaos.scenarios import SCENARIOS

SEED = 1
SIDE_BY_SIDE = max(2, min(6, 2 * (os.cpu_count() or 1)))
TIMELY = {"I1", "I5", "I6", "C01", "C03", "C06", "control", "lab"}
"""What a busy machine can spoil."""

pytestmark = pytest.mark.timeout(900)


def job_of(name, out_dir):
    words = (name, "--seed", str(SEED), "--short", "--pictures", "unless-held", "--out", str(out_dir))
    return Job(name, SEED, words, out_dir / name)


@pytest.fixture(scope="module")
async def summaries(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("runs")
    jobs = [job_of(scenario.name, out_dir) for scenario in SCENARIOS]
    return {job.scenario: summary async for job, summary in run_all(jobs, SIDE_BY_SIDE)}


def complaints(summary):
    return [
        f"{each['id']} {each['statement']}: {each['detail']}"
        for each in summary["invariants"]
        if each["verdict"] != "held"
    ]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS])
async def test_the_promises_hold(name, summaries, tmp_path):
    summary = summaries[name]
    print(f"seed {SEED}: {summary['replay']}")
    spoiled = {each["id"] for each in summary["invariants"] if each["verdict"] != "held"}
    if spoiled and spoiled <= TIMELY:
        print(f"a second run, alone, because of {complaints(summary)}")
        async for _, again in run_all([job_of(name, tmp_path)], 1):
            summary = again
    assert summary["verdict"] == "held", json.dumps(complaints(summary), indent=2)
