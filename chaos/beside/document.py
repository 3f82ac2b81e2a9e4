"""Comparisons as a Markdown page."""

from collections.abc import Iterator, Sequence

from chaos.beside.columns import Column, Missing
from chaos.beside.run import Comparison
from chaos.beside.table import cells
from chaos.scenarios import find

COMMAND = "relay-chaos beside all --write docs/reference/beside.md"


def document(made: Sequence[Comparison]) -> str:
    """A section for each comparison, under a heading that says how it was made."""
    lines = ["# Side by side", "", f"Written by `{COMMAND}`. How to read it:"]
    lines += ["[the same trouble, three ways](../explanation/beside.md).", ""]
    for each in made:
        lines += [*_section(each), ""]
    return "\n".join(lines)


def _section(made: Comparison) -> Iterator[str]:
    yield f"## {made.entry.scenario}"
    yield find(made.entry.scenario).hypothesis
    yield ""
    titles = [column.title for column in made.columns if column.name in made.found]
    yield f"| | {' | '.join(titles)} |"
    yield f"| --- |{' ---: |' * len(titles)}"
    for title, shown in cells(made.found):
        yield f"| {title} | {' | '.join(shown)} |"
    yield ""
    for column in made.columns:
        match column:
            case Missing(_, title, why):
                yield f"- {title}: {why}."
            case Column(_, title, words):
                yield f"- {title}: {words}."
    yield f"- Again: `{made.summary['replay']}`"
