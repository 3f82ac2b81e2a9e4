"""An experiment as one HTML file: picture, advice, prediction against measurement; no network, no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chaos.experiments.experiment import Conclusion, Design, Experiment
from chaos.experiments.prediction import as_measure
from chaos.findings import Finding, Verdict

_HERE = Path(__file__).parent
_STYLES = _HERE.parent / "report"


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page says."""

    experiment: Experiment
    design: Design
    conclusion: Conclusion
    findings: Sequence[Finding]
    verdict: Verdict
    seed: int
    toxiproxy: str
    calls: int
    replay_command: str


def render(page: Page) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader([_HERE, _STYLES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [
        {
            "prediction": prediction,
            "measure": as_measure(prediction, finding.measured or 0.0, finding.verdict),
            "told": finding.measured is not None,
        }
        for prediction, finding in zip(page.design.predictions, page.findings, strict=True)
    ]
    return environment.get_template("experiment.html.j2").render(page=page, rows=rows)
