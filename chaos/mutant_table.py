"""The table of scenarios and mutants: which scenario catches which missing protection."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.mutants import MUTANTS, Mutant, find
from chaos.runner.matrix import Job, run_all

COMMAND = "relay-chaos mutants --write"
_CAUGHT, _MISSED, _UNSURE = "caught", "-", "?"
Verdicts = Mapping[tuple[str, str], str]
"""Of (mutant, scenario)."""


def jobs_for(
    mutants: Sequence[Mutant], scenarios: Sequence[str] | None, seed: int, out_dir: Path
) -> list[tuple[str, Job]]:
    """Each mutant against the scenarios, or only against the one that is expected to catch it."""
    return [
        (mutant.name, _job(mutant.name, scenario, seed, out_dir / mutant.name))
        for mutant in mutants
        for scenario in (scenarios or (mutant.caught_by,))
    ]


def _job(mutant: str, scenario: str, seed: int, out_dir: Path) -> Job:
    words = (scenario, "--seed", str(seed), "--short", "--mutant", mutant, "--out", str(out_dir))
    return Job(scenario, seed, (*words, "--pictures", "unless-held"), out_dir / scenario)


async def run_mutants(
    jobs: Sequence[tuple[str, Job]], side_by_side: int, told: Callable[[str, dict[str, Any]], None]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Every summary, by mutant and scenario."""
    mutant_of = {job.out_dir: mutant for mutant, job in jobs}
    found = {}
    async for job, summary in run_all([job for _, job in jobs], side_by_side):
        mutant = mutant_of[job.out_dir]
        found[mutant, job.scenario] = summary
        told(f"{mutant} on {job.scenario}", summary)
    return found


def missed(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """The mutants that no scenario caught."""
    caught = {mutant for (mutant, _), summary in found.items() if summary["verdict"] == "broken"}
    return sorted({mutant for mutant, _ in found} - caught)


def table(found: Mapping[tuple[str, str], Mapping[str, Any]], seed: int) -> str:
    """The page for the docs: what catches each mutant and, where more was run, every scenario beside it."""
    lines = [
        "# What the lab would notice",
        "",
        "Each row is a relay with one protection taken from it, and the scenario that is to notice. A mutant",
        "that nothing caught would mean that the lab checks too little.",
        "",
        f"Written by `{COMMAND}` with seed {seed}, short runs.",
        "",
        "| mutant | missing | scenario | verdict | seen |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mutant in MUTANTS:
        summary = found.get((mutant.name, mutant.caught_by))
        if summary is not None:
            row = (f"`{mutant.name}`", mutant.missing, mutant.caught_by, _cell(summary), _seen(summary))
            lines.append(f"| {' | '.join(row)} |")
    if any(scenario != find(mutant).caught_by for mutant, scenario in found):
        lines += _matrix(found)
    return "\n".join(lines) + "\n"


def _matrix(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    scenarios = sorted({scenario for _, scenario in found})
    lines = [
        "",
        "## All of them",
        "",
        f"`{_CAUGHT}`: a promise was reported as broken. `{_MISSED}`: all held, as it should be where the",
        f"protection does not matter. `{_UNSURE}`: the run could not tell.",
        "",
        f"| mutant | {' | '.join(scenarios)} |",
        "| --- |" + " --- |" * len(scenarios),
    ]
    for mutant in MUTANTS:
        cells = [_cell(found.get((mutant.name, scenario))) for scenario in scenarios]
        if any(cells):
            lines.append(f"| `{mutant.name}` | {' | '.join(cells)} |")
    return lines


def _seen(summary: Mapping[str, Any]) -> str:
    broken = (each for each in summary["invariants"] if each["verdict"] == "broken")
    return next((f"{each['id']}, {each['statement']}: {each['detail']}" for each in broken), "")


def _cell(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""
    return {"broken": _CAUGHT, "held": _MISSED}.get(summary["verdict"], _UNSURE)
