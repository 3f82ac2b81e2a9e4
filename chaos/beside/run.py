"""One comparison from start to finish: every way run, measured, and written into one folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chaos.beside.catalogue import Beside
from chaos.beside.columns import Column, Missing, columns
from chaos.beside.measure import Measured, measure
from chaos.evidence import Evidence
from chaos.runner.output import word
from chaos.runner.plan import Form
from chaos.runner.run import RunResult, run_scenario

SUMMARY_FILE = "beside.json"
PAGE_FILE = "beside.html"
Told = Callable[[Column | Missing], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found. ``found`` holds, by name, the columns that could be run."""

    entry: Beside
    columns: tuple[Column | Missing, ...]
    found: Mapping[str, Measured]
    summary: dict[str, Any]


async def run_beside(entry: Beside, out_dir: Path, seed: int, form: Form, told: Told) -> Comparison:
    """Run every way, one after another, and write ``beside.json``, ``beside.html`` and a folder for each.

    ``told`` hears of each column before it is run. Raises `chaos.runner.RunFailedError`.
    """
    planned = tuple(columns(entry, out_dir, seed, form))
    results: dict[str, RunResult] = {}
    for column in planned:
        told(column)
        if isinstance(column, Column):
            results[column.name] = await run_scenario(column.config)
    found = {name: _measured(result) for name, result in results.items()}
    summary = _summary(entry, planned, results, found)
    (out_dir / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _write_page(out_dir / PAGE_FILE, planned, results, found)
    return Comparison(entry, planned, found, summary)


def _measured(result: RunResult) -> Measured:
    return measure(result.evidence, result.findings, result.config.timing.recovers_within_s)


def _summary(
    entry: Beside,
    planned: Sequence[Column | Missing],
    results: Mapping[str, RunResult],
    found: Mapping[str, Measured],
) -> dict[str, Any]:
    ways: dict[str, Any] = {}
    for column in planned:
        match column:
            case Missing(name, title, why):
                ways[name] = {"title": title, "missing": why}
            case Column(name, title, words):
                verdict = word(results[name].verdict)
                ways[name] = {"title": title, "configuration": words, "verdict": verdict}
                ways[name] |= {"measures": asdict(found[name])}
    first = next(iter(results.values()))
    return {
        "scenario": entry.scenario,
        "seed": first.config.seed,
        "toxiproxy": first.summary["toxiproxy"],
        "ways": ways,
        "replay": first.config.command,
    }


def _write_page(
    path: Path,
    planned: Sequence[Column | Missing],
    results: Mapping[str, RunResult],
    found: Mapping[str, Measured],
) -> None:
    from chaos.beside.page import Page, render
    from chaos.beside.picture import picture

    titles = {column.name: column.title for column in planned}
    ways: dict[str, tuple[str, Evidence]] = {
        name: (titles[name], result.evidence) for name, result in results.items()
    }
    first = next(iter(results.values()))
    scenario = first.config.scenario
    page = Page(
        scenario=scenario,
        seed=first.config.seed,
        toxiproxy=first.summary["toxiproxy"],
        columns=planned,
        found=found,
        figure=picture(f"{scenario.name}, side by side", scenario.hypothesis, ways),
        replay_command=first.config.command,
    )
    path.write_text(render(page), encoding="utf-8")
