"""Every scenario, short, on a fixed seed, in real processes: every promise holds.

The runs share the machine, so one whose verdict hangs on time is given a second run, alone. A promise of
safety (effects, budgets, books, traces) that is broken once is broken.
"""

import asyncio
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from chaos.runner.matrix import Job, run_all
from chaos.scenarios import SCENARIOS

SEED = 1
MEMORY = Path("/dev/shm")  # noqa: S108 (a private folder is made in it)
SIDE_BY_SIDE = max(2, min(6, 2 * (os.cpu_count() or 1)))
TIMELY = {"I1", "I5", "I6", "C01", "C03", "C06", "control", "lab"}
"""What a busy machine can spoil."""
SELDOM = {
    "postgres-restarted",
    "postgres-slow",
    "postgres-silent",
    "drawn-on-postgres",
    "store-full-relay-killed",
    "capacity-drop-10x",
    "capacity-drop-workers",
}
"""Like others that are run each time; each needs a server of its own, or a machine to itself. They are run
alone, and in full: a short form has too few calls to judge some of them by."""
OFTEN = [scenario.name for scenario in SCENARIOS if scenario.name not in SELDOM]

pytestmark = pytest.mark.timeout(900)


def job_of(name, out_dir, *form):
    words = (name, "--seed", str(SEED), *form, "--pictures", "unless-held", "--out", str(out_dir))
    return Job(name, SEED, words, out_dir / name)


@pytest.fixture(scope="module")
def memory_dir(tmp_path_factory):
    """In memory where that can be: the ledger syncs each commit, and a shared disk may stall for a second."""
    if not MEMORY.is_dir():
        yield tmp_path_factory.mktemp("runs")
        return
    with tempfile.TemporaryDirectory(prefix="relay-chaos-", dir=MEMORY) as folder:
        yield Path(folder)


async def run_jobs(jobs, side_by_side):
    found = {}
    async for job, summary in run_all(jobs, side_by_side):
        found[job.scenario] = summary
        if summary["verdict"] == "held":
            shutil.rmtree(job.out_dir)
    return found


@pytest.fixture(scope="module")
def summaries(memory_dir):
    jobs = [job_of(name, memory_dir, "--short") for name in OFTEN]
    return asyncio.run(run_jobs(jobs, SIDE_BY_SIDE))


def complaints(summary):
    return [
        f"{each['id']} {each['statement']}: {each['detail']}"
        for each in summary["invariants"]
        if each["verdict"] != "held"
    ]


@pytest.mark.parametrize("name", OFTEN)
def test_the_promises_hold(name, summaries, memory_dir):
    summary = summaries[name]
    print(f"seed {SEED}: {summary['replay']}")
    spoiled = {each["id"] for each in summary["invariants"] if each["verdict"] != "held"}
    if spoiled and spoiled <= TIMELY:
        print(f"a second run, alone, because of {complaints(summary)}")
        summary = asyncio.run(run_jobs([job_of(name, memory_dir / "again", "--short")], 1))[name]
    assert summary["verdict"] == "held", json.dumps(complaints(summary), indent=2)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(SELDOM))
def test_the_promises_hold_in_what_is_run_seldom(name, memory_dir):
    summary = asyncio.run(run_jobs([job_of(name, memory_dir)], 1))[name]
    assert summary["verdict"] == "held", json.dumps(complaints(summary), indent=2)
