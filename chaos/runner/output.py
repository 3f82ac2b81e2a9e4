"""A run's folder: ``summary.json`` for programs, ``junit.xml`` for CI, ``report.html`` for people."""

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from chaos.evidence import Evidence
from chaos.findings import Finding, Verdict, worst
from chaos.runner.plan import RunConfig

SUMMARY_FILE = "summary.json"
JUNIT_FILE = "junit.xml"
REPORT_FILE = "report.html"


class Pictures(Enum):
    """When a report is drawn; it costs a second or two."""

    ALWAYS = "always"
    UNLESS_HELD = "unless-held"


def word(verdict: Verdict) -> str:
    """A verdict in the files: ``held``, ``broken``, ``could_not_tell``."""
    return verdict.name.lower()


def summarize(
    config: RunConfig, toxiproxy: str, findings: Sequence[Finding], measures: Mapping[str, float]
) -> dict[str, Any]:
    """The run for programs."""
    return {
        "scenario": config.scenario.name,
        "hypothesis": config.scenario.hypothesis,
        "seed": config.seed,
        "toxiproxy": toxiproxy,
        "mutant": config.change.name or None,
        "verdict": word(worst(findings)),
        "invariants": [_shown(finding) for finding in findings],
        "measures": dict(measures),
        "expected": {
            finding.statement: finding.expected for finding in findings if finding.expected is not None
        },
        "replay": config.command,
    }


def failed_summary(config: RunConfig, why: str) -> dict[str, Any]:
    """The summary of a run that the lab could not make."""
    lab = Finding("lab", "the lab could do what the run asked for", Verdict.COULD_NOT_TELL, why)
    return summarize(config, "unknown", (lab,), {})


def write_all(
    config: RunConfig,
    findings: Sequence[Finding],
    evidence: Evidence,
    summary: Mapping[str, Any],
    pictures: Pictures,
) -> None:
    """Every file of the folder but the history and the spans, which are there already."""
    write_summary(config.out_dir, summary)
    write_junit(config.out_dir / JUNIT_FILE, [summary])
    if pictures is Pictures.ALWAYS or worst(findings) is not Verdict.HELD:
        from chaos.report import write
        from chaos.runner.picture import report_of

        write(report_of(config, findings, evidence), config.out_dir / REPORT_FILE)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """``summary.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def write_junit(path: Path, summaries: Sequence[Mapping[str, Any]]) -> None:
    """One suite a run, one case a finding. Broken is a failure; could not tell is an error."""
    root = ET.Element("testsuites", name="relay-chaos")
    for summary in summaries:
        cases = summary["invariants"]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=f"{summary['scenario']}, seed {summary['seed']}",
            tests=str(len(cases)),
            failures=str(sum(case["verdict"] == "broken" for case in cases)),
            errors=str(sum(case["verdict"] == "could_not_tell" for case in cases)),
        )
        for case in cases:
            element = ET.SubElement(
                suite,
                "testcase",
                classname=f"relay-chaos.{summary['scenario']}",
                name=f"{case['id']} {case['statement']}",
            )
            if case["verdict"] != "held":
                tag = "failure" if case["verdict"] == "broken" else "error"
                told = [case["detail"], *case["offending_traces"], summary["replay"]]
                ET.SubElement(element, tag, message=case["detail"]).text = "\n".join(told)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _shown(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.promise,
        "statement": finding.statement,
        "verdict": word(finding.verdict),
        "detail": finding.detail,
        "offenders": finding.offender_count,
        "offending_traces": [offender.trace_id for offender in finding.offenders if offender.trace_id],
    }
