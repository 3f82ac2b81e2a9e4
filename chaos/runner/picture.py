"""From a run's evidence to its report."""

import os
from collections.abc import Sequence

from chaos.evidence import Evidence
from chaos.findings import Finding, worst
from chaos.report import Measure, Report, Section
from chaos.runner.plan import RunConfig

JAEGER_VARIABLE = "RELAY_CHAOS_JAEGER"
"""Where Jaeger's pages are, such as http://127.0.0.1:16686, when the run's spans are sent there as well."""


def report_of(config: RunConfig, findings: Sequence[Finding], evidence: Evidence) -> Report:
    """The page of a run."""
    history = evidence.history
    section = Section(
        name=config.scenario.name,
        title="Promises and expectations",
        story="What is promised always, and what this scenario expects besides; controls say whether the run "
        "can tell anything at all.",
        phases=(),
        findings=tuple(findings),
        measures=tuple(_measures(findings)),
    )
    return Report(
        title=config.scenario.name,
        lead=config.scenario.hypothesis,
        verdict=worst(findings),
        history=history,
        sections=(section,),
        findings=(),
        traces=evidence.traces,
        replay_command=config.command,
        jaeger_url=os.environ.get(JAEGER_VARIABLE, "").rstrip("/") or None,
    )


def _measures(findings: Sequence[Finding]) -> list[Measure]:
    return [
        Measure(
            finding.statement,
            finding.unit,
            round(finding.measured, 4),
            finding.expected,
            finding.interval,
            finding.verdict,
        )
        for finding in findings
        if finding.measured is not None and finding.expected is not None
    ]
