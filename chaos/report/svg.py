"""Matplotlib figures as SVG that belongs to its page: its colours, its fonts, its accessibility.

Matplotlib knows no CSS, so a figure is drawn in stand-in colours, each replaced afterwards by a CSS
variable of the page; one drawing then serves light, dark and print.
"""

import io
import re
from enum import Enum
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure


class Tint(Enum):
    """A colour by its role; the value is the stand-in that no drawing would contain by chance."""

    INK = "#010a01"
    MUTED = "#020a02"
    GRID = "#030a03"
    GOOD = "#040a04"
    BAD = "#050a05"
    SHED = "#060a06"
    LOAD = "#070a07"
    FAULT = "#080a08"
    BAND = "#090a09"

    @property
    def css(self) -> str:
        """The variable of the page that it becomes."""
        return f"var(--{self.name.lower()})"


STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": Tint.INK.value,
    "axes.edgecolor": Tint.MUTED.value,
    "axes.labelcolor": Tint.MUTED.value,
    "axes.titlecolor": Tint.INK.value,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": Tint.GRID.value,
    "grid.linewidth": 0.7,
    "xtick.color": Tint.MUTED.value,
    "ytick.color": Tint.MUTED.value,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
}
"""Settings for `matplotlib.rc_context` while a figure is made for `inline`."""

FONT_STACK = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def inline(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an ``<svg>`` element named for screen readers; ``name`` must be unique in its page."""
    text = _drawn(figure, name)
    for tint in Tint:
        text = text.replace(tint.value, tint.css)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]*", rf"font: \1 {FONT_STACK}", text)
    return Markup(_named(text, name, title, description))  # noqa: S704 (drawn here, labels escaped by matplotlib)


def _drawn(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r"\n\s*", "\n", text).replace("xlink:href", "href")


def _named(text: str, name: str, title: str, description: str) -> str:
    """Make ids unique to this figure and give the root its role, name and flexible size."""
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    view_box = re.search(r'viewBox="[^"]+"', text)
    assert view_box is not None  # noqa: S101 (matplotlib always writes one)
    root = (
        f'<svg {view_box.group()} role="img" aria-labelledby="{name}-title {name}-desc">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: root, text, count=1)
