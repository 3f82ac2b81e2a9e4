"""From what was measured to the page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from chaos.findings import Finding, Verdict
from chaos.history import CallRecord, History, Phase
from chaos.model import Interval
from chaos.percentile import percentile_of
from chaos.report.timeline import phase_letter, timeline
from chaos.report.waterfall import Waterfall, waterfall
from chaos.traces import Traces, most_telling

BROKEN_SHOWN_MAX = 3
FAULTS_TOLD_MAX = 20
"""A schedule's; the pulses of an act that breaks again and again are more, and look alike."""
MARGIN_S = 0.4
"""What is shown before and after a section's own phases."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A measured number beside its prediction, for the table."""

    what: str
    unit: str
    """``%`` (values are shares), ``x`` (factors), or the name of what is counted."""
    measured: float
    expected: float | None = None
    interval: Interval | None = None
    verdict: Verdict | None = None
    """None where nothing was promised."""

    def show(self, value: float | None) -> str:
        """A value in this measure's unit; a dash for none."""
        if value is None:
            return "\N{EN DASH}"
        match self.unit:
            case "%":
                return f"{value:.2%}"
            case "x":
                return f"\N{MULTIPLICATION SIGN}{value:.3f}"
            case _:
                return f"{value:g} {self.unit}".rstrip()

    def scale(self) -> Mapping[str, float]:
        """Where expectation, measurement and interval lie on a bar from 0 to 100."""
        marks = [self.measured]
        marks += [self.expected] if self.expected is not None else []
        marks += [self.interval.low, self.interval.high] if self.interval else []
        low, high = min(marks), max(marks)
        pad = (high - low) * 0.15 or 1.0
        place = {"measured": self.measured, "expected": self.expected}
        place |= {"low": self.interval.low, "high": self.interval.high} if self.interval else {}
        span = high - low + 2 * pad
        return {
            key: round(100 * (value - low + pad) / span, 2)
            for key, value in place.items()
            if value is not None
        }


@dataclass(frozen=True, slots=True)
class Section:
    """A chapter: one or more phases of the history with a story, promises and numbers."""

    name: str
    title: str
    story: str
    phases: tuple[str, ...]
    findings: tuple[Finding, ...]
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page says."""

    title: str
    lead: str
    verdict: Verdict
    history: History
    sections: tuple[Section, ...]
    findings: tuple[Finding, ...]
    """Judged over the whole run."""
    traces: Traces
    replay_command: str
    jaeger_url: str | None = None
    """Where Jaeger's pages are, if the run's spans went there."""


def write(report: Report, path: Path) -> None:
    """Write the page, which needs nothing beside it."""
    path.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        head=report.history.head,
        overview=_overview(report.history),
        faults=sorted(report.history.faults, key=lambda fault: fault.begin_s)[:FAULTS_TOLD_MAX],
        legend=[(phase_letter(report.history, phase), phase.title) for phase in report.history.phases],
        figures={section.name: _figure(report.history, section) for section in report.sections},
        phase_rows={section.name: _phase_rows(report.history, section) for section in report.sections},
        exhibits=_exhibits(report),
        measures=[measure for section in report.sections for measure in section.measures],
    )


def _overview(history: History) -> Markup:
    ends = [phase.end_s for phase in history.phases] + [call.done_s for call in history.calls]
    begins = [phase.begin_s for phase in history.phases] + [call.intended_s for call in history.calls]
    begin_s, end_s = min(begins, default=0.0), max(ends, default=1.0)
    return timeline(history, "overview", "The whole run over time", begin_s, end_s)


def _figure(history: History, section: Section) -> Markup:
    phases = _phases(history, section)
    if not phases:
        return Markup()
    begin_s = min(phase.begin_s for phase in phases)
    end_s = max(phase.end_s for phase in phases)
    margin_s = min(MARGIN_S, 0.05 * (end_s - begin_s))
    return timeline(history, section.name, section.title, begin_s - margin_s, end_s + margin_s)


def _phases(history: History, section: Section) -> list[Phase]:
    return [phase for phase in history.phases if phase.name in section.phases]


def _phase_rows(history: History, section: Section) -> list[dict[str, Any]]:
    """Counts and latency of each phase."""
    rows = []
    for phase in _phases(history, section):
        calls = history.in_phase(phase.name)
        latencies_ms = [call.latency_s * 1000 for call in calls if call.sent_s is not None]
        rows.append(
            {
                "letter": phase_letter(history, phase),
                "title": phase.title,
                "calls": len(calls),
                "ok": sum(call.ok for call in calls),
                "shed": sum(call.code == "RESOURCE_EXHAUSTED" for call in calls),
                "failed": sum(not call.ok and call.code != "RESOURCE_EXHAUSTED" for call in calls),
                "p50_ms": percentile_of(latencies_ms, 50),
                "p99_ms": percentile_of(latencies_ms, 99),
            }
        )
    return rows


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A call worth looking into, and why."""

    name: str
    why: str
    picture: Waterfall


def _exhibits(report: Report) -> list[Exhibit]:
    """The calls that broke a promise, the most telling one, the slowest; each once, if it has spans."""
    chosen: dict[str, tuple[str, CallRecord]] = {}
    broken: dict[str, str] = {}
    for finding in _all_findings(report):
        for offender in finding.offenders:
            if report.traces.get(offender.trace_id):
                broken.setdefault(offender.trace_id, offender.what)
    if broken:
        for call in report.history.calls:
            if call.trace_id in broken and len(chosen) < BROKEN_SHOWN_MAX:
                chosen[call.trace_id] = (f"It broke a promise: {broken[call.trace_id]}", call)
    telling = most_telling(report.history.calls, report.traces)
    if telling is not None:
        chosen.setdefault(telling.trace_id, ("One call, seen from inside", telling))
    if report.history.relays:
        slowest = max(
            (call for call in report.history.calls if call.traced and report.traces.get(call.trace_id)),
            key=lambda call: call.latency_s,
            default=None,
        )
        if slowest is not None:
            chosen.setdefault(slowest.trace_id, ("The slowest call that was traced", slowest))
    pictures = ((why, waterfall(call, report.traces[call.trace_id])) for why, call in chosen.values())
    return [
        Exhibit(f"trace-{number}", why, picture)
        for number, (why, picture) in enumerate(pictures)
        if picture is not None
    ]


def _all_findings(report: Report) -> Iterator[Finding]:
    yield from report.findings
    for section in report.sections:
        yield from section.findings
