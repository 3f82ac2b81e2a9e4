"""An experiment from start to finish: predictions told, processes up, arms run, all down, page written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from chaos.downstream import Downstream
from chaos.experiments import narrate
from chaos.experiments.arm import Evidence
from chaos.experiments.bench import Bench, with_loads, write_policy
from chaos.experiments.experiment import Design, Experiment, Pace
from chaos.experiments.page import Page, render
from chaos.experiments.prediction import judge_all
from chaos.findings import Finding, Verdict, worst
from chaos.history import HistoryWriter, new_run
from chaos.stack import Stack, StackConfig
from chaos.tracing import ClientTracing

HISTORY_FILE = "history.jsonl"
CLIENT_SPANS_FILE = "client.jsonl"
PAGE_FILE = "experiment.html"
SUMMARY_FILE = "summary.json"
POLICIES = "policies"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What an experiment is told."""

    out_dir: Path
    seed: int = 1
    pace: Pace = Pace.FULL


async def run_experiment(experiment: Experiment, config: RunConfig, console: Console) -> dict[str, Any]:
    """Run it on a stack of its own and return the summary.

    Everything is left in ``config.out_dir``: history, logs, policies, ``summary.json``, ``experiment.html``.
    Raises what `Stack.start` raises; no process is left in any case.
    """
    design = experiment.design(config.pace)
    narrate.predictions(console, experiment, design)
    # The first arm's policy, so that the relay need not start twice for it.
    policy = write_policy(design.arms[0], config.out_dir / POLICIES)
    async with Stack(StackConfig(config.out_dir, policy=policy, seed=config.seed, sample_ratio=0.0)) as stack:
        toxiproxy = stack.toxiproxy.server.kind
        results = await measure(stack, experiment, design, config, console)
    return conclude(experiment, design, results, config, toxiproxy=toxiproxy, console=console)


async def measure(
    stack: Stack, experiment: Experiment, design: Design, config: RunConfig, console: Console
) -> dict[str, Evidence]:
    """Run all arms on a running stack, one after another."""
    head = new_run(f"experiment-{experiment.name}", config.seed, stack.toxiproxy.server.kind)
    results: dict[str, Evidence] = {}
    with (
        HistoryWriter(config.out_dir / HISTORY_FILE, head) as history,
        ClientTracing(config.out_dir / CLIENT_SPANS_FILE, config.seed) as tracing,
    ):
        async with Downstream(stack.addresses.downstream) as downstream:
            bench = Bench(stack, history, tracing, downstream, config.seed, config.out_dir / POLICIES)
            for number, arm in enumerate(design.arms, start=1):
                narrate.measuring(console, number, len(design.arms), arm.title)
                results[arm.name] = await bench.measure(arm)
    return results


def conclude(
    experiment: Experiment,
    design: Design,
    results: dict[str, Evidence],
    config: RunConfig,
    *,
    toxiproxy: str,
    console: Console,
) -> dict[str, Any]:
    """Judge what was measured, write page and summary, and tell."""
    seen = with_loads(results, config.out_dir / HISTORY_FILE)
    conclusion = experiment.conclude(design, seen)
    findings = judge_all(design.predictions, conclusion.measured)
    calls = sum(len(evidence.calls) for evidence in results.values())
    page = Page(
        experiment=experiment,
        design=design,
        conclusion=conclusion,
        findings=findings,
        verdict=worst(findings),
        seed=config.seed,
        toxiproxy=toxiproxy,
        calls=calls,
        replay_command=f"relay-chaos experiment {experiment.name} --seed {config.seed}"
        + (" --quick" if config.pace is Pace.QUICK else ""),
    )
    page_path = config.out_dir / PAGE_FILE
    page_path.write_text(render(page), encoding="utf-8")
    summary = summarize(page, seen.values())
    (config.out_dir / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    narrate.conclusion(console, design, findings, conclusion, page_path)
    return summary


def summarize(page: Page, results: Any) -> dict[str, Any]:
    """The run for programs."""
    design, conclusion, findings = page.design, page.conclusion, page.findings
    peaks_mb = [each.memory_peak_mb for each in results if each.memory_peak_mb is not None]
    return {
        "scenario": f"experiment-{page.experiment.name}",
        "seed": page.seed,
        "toxiproxy": page.toxiproxy,
        "verdict": _word(page.verdict),
        "calls": page.calls,
        "invariants": [_finding(finding) for finding in findings],
        "measures": {
            **{key: value for key, value in conclusion.measured.items() if value is not None},
            **{measure.what: measure.measured for measure in conclusion.observed},
        },
        "expected": {prediction.key: prediction.expected for prediction in design.predictions},
        "tolerated": {
            prediction.key: [prediction.interval.low, prediction.interval.high]
            for prediction in design.predictions
        },
        "relay_memory_peak_mb": max(peaks_mb, default=None),
        "advice": conclusion.advice,
    }


def exit_code(summary: dict[str, Any]) -> int:
    """0 matched the prediction, 1 did not, 2 could not tell."""
    return Verdict[summary["verdict"].upper()].value


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.promise,
        "statement": finding.statement,
        "verdict": _word(finding.verdict),
        "detail": finding.detail,
    }


def _word(verdict: Verdict) -> str:
    return verdict.name.lower()
