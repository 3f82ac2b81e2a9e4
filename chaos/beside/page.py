"""The comparison as one HTML file: table, picture, configurations; no network, no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from chaos.beside.columns import Column, Missing
from chaos.beside.measure import Measured
from chaos.beside.table import cells
from chaos.scenarios.expectations import SETTLED
from chaos.scenarios.model import Scenario

_HERE = Path(__file__).parent
_STYLES = _HERE.parent / "report"


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page says."""

    scenario: Scenario
    seed: int
    toxiproxy: str
    columns: Sequence[Column | Missing]
    found: Mapping[str, Measured]
    """By the name of the column; only of those that were run."""
    figure: Markup
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
    made = [column for column in page.columns if column.name in page.found]
    missing = [column for column in page.columns if isinstance(column, Missing)]
    return environment.get_template("beside.html.j2").render(
        page=page, made=made, missing=missing, rows=cells(page.found), settled=f"{SETTLED:.0%}"
    )
