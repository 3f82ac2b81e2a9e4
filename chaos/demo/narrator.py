"""The voice of the tour: a live display on a terminal, plain lines elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chaos.findings import Finding, Verdict
from chaos.history import CallRecord, HistoryWriter
from chaos.report import Measure

BEAT_S = 0.2
BAR_CELLS = 36
PLAIN_WIDTH = 118
STYLES = {Verdict.HELD: "green", Verdict.BROKEN: "bold red", Verdict.COULD_NOT_TELL: "yellow"}


class Narrator:
    """Tells what happens on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, style: str = "") -> None:
        """One paragraph."""
        self._console.print(text, style=style, highlight=False)

    def act(self, number: int, title: str, story: str) -> None:
        """An act begins."""
        self._console.print()
        self._console.print(f"{number}. {title}", style="bold")
        self._console.print(story, style="dim", highlight=False)

    @contextlib.asynccontextmanager
    async def watching(self, title: str, planned: int, history: HistoryWriter) -> AsyncIterator[None]:
        """Show the calls of a phase as they come in, and one line when it is over."""
        if not self._console.is_terminal:
            yield
            self._console.print(_line(title, history.recent, len(history.recent)), soft_wrap=True)
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            task = asyncio.create_task(self._keep_showing(live, title, planned, history))
            try:
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._console.print(_line(title, history.recent, len(history.recent)))

    def findings(self, findings: Iterable[Finding]) -> None:
        """Each promise of an act and whether it held."""
        for finding in findings:
            text = Text("   ")
            text.append(f"{finding.verdict.words:<15}", STYLES[finding.verdict])
            text.append(f"{finding.statement}: ")
            text.append(finding.detail, "dim")
            self._console.print(text, soft_wrap=not self._console.is_terminal)

    def closing(self, measures: Sequence[Measure], verdict: Verdict, files: Sequence[Path]) -> None:
        """The table, the verdict, and where everything is."""
        self._console.print()
        self._console.print(_table(measures))
        self._console.print()
        for path in files:
            self._console.print(f"  {path}", soft_wrap=True, highlight=False)
        self._console.print(f"\nEvery promise: {verdict.words}", style=STYLES[verdict])

    async def _keep_showing(self, live: Live, title: str, planned: int, history: HistoryWriter) -> None:
        while True:
            live.update(_line(title, history.recent, planned), refresh=True)
            await asyncio.sleep(BEAT_S)


def _line(title: str, calls: Sequence[CallRecord], planned: int) -> Text:
    """Title, a bar of what ended how, and the numbers."""
    good = sum(call.ok for call in calls)
    shed = sum(call.code == "RESOURCE_EXHAUSTED" for call in calls)
    bad = len(calls) - good - shed
    text = Text(f"   {title:<40} ")
    shown = 0
    for count, style in ((good, "green"), (shed, "yellow"), (bad, "red")):
        cells = round(BAR_CELLS * count / max(planned, len(calls), 1))
        cells = min(cells, BAR_CELLS - shown)
        text.append("\N{FULL BLOCK}" * cells, style)
        shown += cells
    text.append("\N{MIDDLE DOT}" * (BAR_CELLS - shown), "dim")
    share = f"{good / len(calls):7.2%}" if calls else "       "
    text.append(f" {share} of {len(calls):,} OK")
    if shed:
        text.append(f", {shed:,} shed")
    if bad:
        text.append(f", {bad:,} failed")
    return text


def _table(measures: Sequence[Measure]) -> Table:
    table = Table(
        title="Expected against measured", title_justify="left", title_style="bold", box=None, pad_edge=True
    )
    table.add_column("")
    for heading in ("expected", "measured", "allowed"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for measure in measures:
        allowed = ""
        if measure.interval is not None:
            allowed = f"{measure.show(measure.interval.low)} to {measure.show(measure.interval.high)}"
        verdict = measure.verdict
        table.add_row(
            measure.what,
            measure.show(measure.expected),
            measure.show(measure.measured),
            allowed,
            Text(verdict.words, STYLES[verdict]) if verdict is not None else Text("no promise", "dim"),
        )
    return table
