"""What an experiment prints: predictions before it measures, both beside each other after."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chaos.experiments.experiment import Conclusion, Design, Experiment
from chaos.experiments.prediction import as_measure
from chaos.findings import Finding, Verdict

COLOURS = {Verdict.HELD: "green", Verdict.BROKEN: "red", Verdict.COULD_NOT_TELL: "yellow"}


def predictions(console: Console, experiment: Experiment, design: Design) -> None:
    """The question and what theory answers, before anything has run."""
    console.print(f"\n{experiment.title}", style="bold", highlight=False)
    console.print(experiment.question, highlight=False)
    if experiment.scaled:
        console.print(experiment.scaled, highlight=False)
    table = Table("predicted", "", "because", box=None, pad_edge=False, header_style="dim")
    for each in design.predictions:
        shown = as_measure(each, each.expected, Verdict.HELD)
        table.add_row(each.what, shown.show(shown.expected), each.because)
    console.print()
    console.print(table, highlight=False)
    console.print()


def measuring(console: Console, number: int, count: int, title: str) -> None:
    """One line as an arm begins."""
    console.print(f"measuring {number}/{count}: {title} ...", style="dim", highlight=False)


def conclusion(
    console: Console, design: Design, findings: Sequence[Finding], conclusion_: Conclusion, page: Path
) -> None:
    """Expected against measured, the observations, the advice, and where the picture is."""
    table = Table("what", "predicted", "measured", "verdict", box=None, pad_edge=False, header_style="dim")
    for prediction, finding in zip(design.predictions, findings, strict=True):
        shown = as_measure(prediction, finding.measured or 0.0, finding.verdict)
        measured = shown.show(shown.measured) if finding.measured is not None else "-"
        verdict = f"[{COLOURS[finding.verdict]}]{finding.verdict.words}[/]"
        table.add_row(prediction.what, shown.show(shown.expected), measured, verdict)
    for measure in conclusion_.observed:
        table.add_row(measure.what, "", measure.show(measure.measured), "")
    console.print()
    console.print(table, highlight=False)
    console.print(f"\n{conclusion_.advice}", highlight=False)
    console.print(f"\nThe picture: {page}", highlight=False, soft_wrap=True)
