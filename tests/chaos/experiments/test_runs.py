"""Every experiment on real processes, at the quick pace; and two real runs held against each other."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
import pytest_asyncio
from rich.console import Console

from chaos.comparison.gate import compare, verdict_of
from chaos.comparison.sample import read_run
from chaos.downstream import Downstream
from chaos.experiments import run as runs
from chaos.experiments.arm import Arm
from chaos.experiments.bench import Bench
from chaos.experiments.catalogue import EXPERIMENTS
from chaos.experiments.downstreams import limited
from chaos.experiments.experiment import Pace
from chaos.experiments.policies import policy
from chaos.experiments.run import RunConfig
from chaos.findings import Verdict
from chaos.history import HistoryWriter, new_run
from chaos.plan import Arrivals, Profile, Step
from chaos.stack import Stack, StackConfig
from chaos.tracing import ClientTracing

SEED = 1
ONE_OF_ALL = "timeout"
"""Shows in `make test` that measuring and predicting fit; `make soak` runs the others too."""
TRIES = 2
"""A loaded machine may miss a tolerance; one that misses it twice over has found something."""
ROUNDS_MAX = 3

on_the_stack = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    """One for all: starting the programs takes longer than most of these runs."""
    folder = tmp_path_factory.mktemp("stack")
    async with Stack(StackConfig(folder, policy="passthrough", seed=SEED, sample_ratio=0.0)) as running:
        yield running


async def run_on(stack, experiment, design, out):
    config = RunConfig(out, SEED, Pace.QUICK)
    console = Console(quiet=True)
    out.mkdir(parents=True, exist_ok=True)
    results = await runs.measure(stack, experiment, design, config, console)
    summary = runs.conclude(
        experiment, design, results, config, toxiproxy=stack.toxiproxy.server.kind, console=console
    )
    return summary, all(evidence.sound for evidence in results.values())


@on_the_stack
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == ONE_OF_ALL else pytest.mark.soak)
        for name in sorted(EXPERIMENTS.keys() - {"storm"})
    ],
)
async def test_what_is_measured_matches_what_was_predicted(stack, tmp_path, name):
    experiment = EXPERIMENTS[name]
    design = experiment.design(Pace.QUICK)
    for number in range(TRIES):
        summary, sound = await run_on(stack, experiment, design, tmp_path / str(number))
        if summary["verdict"] == "held":
            break
    if not sound:
        pytest.skip(f"this machine could not make the load of {name} in {TRIES} tries")
    assert summary["verdict"] == "held", summary["invariants"]
    assert set(summary["expected"]) == {each.key for each in design.predictions}
    page = (tmp_path / str(number) / "experiment.html").read_text()
    assert summary["advice"].split(".")[0] in page
    assert len(re.findall(r"<svg", page)) == 1
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


@on_the_stack
async def test_a_budget_that_does_not_bind_is_told_as_broken(stack, tmp_path):
    experiment = EXPERIMENTS["storm"]
    design = experiment.design(Pace.QUICK)
    unbounded, budgeted = design.arms
    mutant = dataclasses.replace(budgeted, policy=unbounded.policy)
    alone = dataclasses.replace(design, arms=(mutant,), predictions=design.predictions[1:])
    for number in range(TRIES):
        summary, sound = await run_on(stack, experiment, alone, tmp_path / str(number))
        if sound:
            break
    if not sound:
        pytest.skip(f"this machine could not make the load of the mutant in {TRIES} tries")
    assert summary["verdict"] == "broken", summary["invariants"]
    assert summary["measures"] == {mutant.name: 4.0}
    assert runs.exit_code(summary) == 1


async def healthy_run(stack, out, service_s):
    """A steady load on a downstream that takes so long, as a folder that `compare` reads."""
    arm = Arm(
        name="steady",
        title="steady",
        policy=policy(),
        downstream=limited(8, service_s, queue=1000),
        profile=Profile((Step(120, 2.5),), Arrivals.CONSTANT, 300),
        timeout_s=5.0,
    )
    with (
        HistoryWriter(out / "history.jsonl", new_run("steady", SEED, "test")) as history,
        ClientTracing(out / "client.jsonl", SEED) as tracing,
    ):
        async with Downstream(stack.addresses.downstream) as downstream:
            bench = Bench(stack, history, tracing, downstream, SEED, out.parent / "policies")
            evidence = await bench.measure(arm)
    (out / "summary.json").write_text(json.dumps({"relay_memory_peak_mb": evidence.memory_peak_mb}))
    return read_run(out)


@on_the_stack
async def test_of_two_real_runs_the_slower_one_is_found_and_the_like_one_is_not(stack, tmp_path):
    # A machine that is busier in one of the runs does make it slower, and `compare` is right to say so.
    found = []
    for number in range(ROUNDS_MAX):
        before, like, slower = [
            await healthy_run(stack, tmp_path / f"{number}-{place}", service_s)
            for place, service_s in enumerate((0.02, 0.02, 0.045))
        ]
        alike = verdict_of(compare(before, like))
        rows = {row.measure: row for row in compare(before, slower)}
        median = rows["p50 latency"]
        found.append((alike, median))
        by_as_much = median.worse_by == pytest.approx(25, abs=12)
        if alike is not Verdict.BROKEN and median.verdict is Verdict.BROKEN and by_as_much:
            break
    else:
        pytest.fail(f"like runs and slower ones were not told apart: {found}")
    assert rows["memory"].before is None or rows["memory"].verdict is Verdict.HELD


def test_the_command_prints_json_and_leaves_page_and_data(tmp_path):
    out = tmp_path / "storm"
    arguments = ["experiment", "storm", "--quick", "--json", "--seed", "5", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "chaos", *arguments], capture_output=True, text=True, timeout=90, check=False
    )
    summary = json.loads(done.stdout)
    # A machine too busy to make the load could not tell; on no machine may it come out as broken.
    assert (done.returncode, summary["verdict"]) in ((0, "held"), (2, "could_not_tell")), done.stderr
    assert (summary["scenario"], summary["seed"]) == ("experiment-storm", 5)
    assert done.stderr.index("predicted") < done.stderr.index("measuring")
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "experiment.html").exists()
    assert (out / "history.jsonl").exists()
