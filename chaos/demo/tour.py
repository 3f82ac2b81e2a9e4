"""The tour from start to finish: processes up, four acts, processes down, traces read, report written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from chaos.demo.acts import ACTS, Act, ActResult
from chaos.demo.narrator import Narrator
from chaos.demo.stage import open_stage
from chaos.findings import Finding, Verdict, worst
from chaos.history import HistoryWriter, new_run, read_history
from chaos.report import Measure, Report, Section, write
from chaos.stack import Stack, StackConfig
from chaos.traces import read_traces, traces_are_whole
from chaos.tracing import ClientTracing

HISTORY_FILE = "history.jsonl"
CLIENT_SPANS_FILE = "client.jsonl"
REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"
RUN_NAME = "demo"
FIRST_POLICY = "passthrough"
"""What the first act needs, so that the relay need not start twice for it."""
KINDS = {"real": "the real Toxiproxy", "embedded": "the embedded Toxiproxy"}


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """What the tour is told."""

    out_dir: Path
    seed: int = 1
    acts: tuple[Act, ...] = ACTS


async def run_demo(config: DemoConfig, console: Console) -> dict[str, Any]:
    """Play all acts and return the summary, whose ``verdict`` is the worst of all findings.

    Everything is left in ``config.out_dir``: history, spans, logs, ``summary.json``, ``report.html``.
    Raises what `Stack.start` raises; no process is left in any case.
    """
    narrator = Narrator(console)
    stack_config = StackConfig(config.out_dir, policy=FIRST_POLICY, seed=config.seed)
    history_path = config.out_dir / HISTORY_FILE
    spans_path = config.out_dir / CLIENT_SPANS_FILE
    narrator.say("Resilient Relay: starting downstream, Toxiproxy and relay ...")
    async with Stack(stack_config) as stack:
        server = stack.toxiproxy.server
        narrator.say(f"{KINDS[server.kind]} {server.version} serves, at {server.url}")
        head = new_run(RUN_NAME, config.seed, server.kind)
        with HistoryWriter(history_path, head) as history, ClientTracing(spans_path, config.seed) as tracing:
            async with open_stage(stack, history, tracing, narrator, config.seed) as stage:
                results: list[tuple[Act, ActResult]] = []
                for number, act in enumerate(config.acts, start=1):
                    narrator.act(number, act.title, act.story)
                    result = await act.play(stage)
                    narrator.findings(result.findings)
                    results.append((act, result))
    # The processes wrote their last spans as they ended, so traces are read only now.
    report = make_report(config, results, [spans_path, *stack_config.trace_files])
    narrator.say("\nAll together", style="bold")
    narrator.findings(report.findings)
    write(report, config.out_dir / REPORT_FILE)
    summary = summarize(report)
    (config.out_dir / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    files = [config.out_dir / name for name in (REPORT_FILE, SUMMARY_FILE, HISTORY_FILE, CLIENT_SPANS_FILE)]
    narrator.closing(_measures(report), report.verdict, [*files, *stack_config.trace_files])
    return summary


def make_report(config: DemoConfig, results: list[tuple[Act, ActResult]], span_files: list[Path]) -> Report:
    """What the page is made from: the history as it stands in its file, and the spans."""
    history = read_history(config.out_dir / HISTORY_FILE)
    traces = read_traces(span_files)
    overall = (traces_are_whole(history.calls, traces),)
    findings = [*overall, *(finding for _, result in results for finding in result.findings)]
    sections = tuple(
        Section(act.name, act.title, act.story, result.phases, result.findings, result.measures)
        for act, result in results
    )
    return Report(
        title="The tour",
        lead="A relay between a client and a service that fails, over a network that fails. Each act states "
        "what the relay promises, breaks something, and holds the promise against what was recorded.",
        verdict=worst(findings),
        history=history,
        sections=sections,
        findings=overall,
        traces=traces,
        replay_command=f"relay-chaos demo --seed {config.seed}",
    )


def summarize(report: Report) -> dict[str, Any]:
    """The run for programs."""
    findings = [
        *((section.name, finding) for section in report.sections for finding in section.findings),
        *((report.history.head.name, finding) for finding in report.findings),
    ]
    return {
        "scenario": report.history.head.name,
        "seed": report.history.head.seed,
        "toxiproxy": report.history.head.toxiproxy,
        "verdict": _word(report.verdict),
        "calls": len(report.history.calls),
        "invariants": [_finding(where, finding) for where, finding in findings],
        "measures": {measure.what: measure.measured for measure in _measures(report)},
        "expected": {
            measure.what: measure.expected for measure in _measures(report) if measure.expected is not None
        },
    }


def exit_code(summary: dict[str, Any]) -> int:
    """0 held, 1 broken, 2 could not tell."""
    return Verdict[summary["verdict"].upper()].value


def _measures(report: Report) -> list[Measure]:
    return [measure for section in report.sections for measure in section.measures]


def _word(verdict: Verdict) -> str:
    return verdict.name.lower()


def _finding(where: str, finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.promise,
        "act": where,
        "statement": finding.statement,
        "verdict": _word(finding.verdict),
        "detail": finding.detail,
        "offending_traces": [offender.trace_id for offender in finding.offenders if offender.trace_id],
    }
