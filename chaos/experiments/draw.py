"""What the experiments' pictures have in common: panels, scales, units, the bars of a prediction."""

from collections.abc import Callable, Sequence

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from chaos.report.svg import STYLE, Tint, inline

WIDTH_IN = 9.6
PANEL_HEIGHT_IN = 2.9
PICTURE = "picture"


def picture(
    title: str, description: str, draw: Callable[[Figure], None], *, height_in: float = PANEL_HEIGHT_IN
) -> Markup:
    """One figure in the page's colours."""
    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06, wspace=0.06)
        figure = Figure(figsize=(WIDTH_IN, height_in), layout=layout)
        draw(figure)
    return inline(figure, PICTURE, title, description)


def settings(axes: Axes, labels: Sequence[str], knob: str) -> range:
    """An axis with one place for each setting of the knob; returns the places."""
    places = range(len(labels))
    axes.set_xticks(places, labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel(knob)
    return places


def bars(axes: Axes, places: Sequence[int], values: Sequence[float | None], tint: Tint, label: str) -> None:
    """What was measured; nothing where nothing was."""
    heights = [value if value is not None else 0.0 for value in values]
    axes.bar(places, heights, width=0.56, color=tint.value, label=label, linewidth=0)


def predicted(axes: Axes, places: Sequence[float], values: Sequence[float], width: float = 0.72) -> None:
    """What theory says of each setting: a line across its bar."""
    for number, (place, value) in enumerate(zip(places, values, strict=True)):
        axes.hlines(
            value,
            place - width / 2,
            place + width / 2,
            color=Tint.INK.value,
            linewidth=1.6,
            label="predicted" if number == 0 else "_more of the same",
            zorder=4,
        )


def labelled(
    axes: Axes,
    places: Sequence[int],
    values: Sequence[float | None],
    show: Callable[[float], str],
    above: Sequence[float] = (),
) -> None:
    """The measured value over each bar, and over the prediction's line (``above``) where that is higher."""
    lines = above or [0.0] * len(places)
    for place, value, line in zip(places, values, lines, strict=True):
        axes.annotate(
            show(value) if value is not None else "?",
            (place, max(value or 0.0, line)),
            (0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )


def titled(axes: Axes, title: str, rows: int = 1) -> None:
    """A panel's title, at its left, over so many rows of legend."""
    axes.set_title(title, loc="left", fontsize=9.5, pad=6 + 14 * rows)


def legend(axes: Axes, columns: int = 3) -> None:
    """Between title and panel, where no data is."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 0.99),
        ncols=columns,
        borderaxespad=0,
        borderpad=0.25,
        columnspacing=1.2,
    )


def headroom(axes: Axes, values: Sequence[float | None], share: float = 0.18) -> None:
    """From 0 to a little above the highest value, so that its label fits."""
    top = max([value for value in values if value is not None], default=1.0)
    axes.set_ylim(0, (top or 1.0) * (1 + share))


def percent(axes: Axes) -> None:
    """Shares as percent, with room for a label above 100 %."""
    axes.set_ylim(0, 1.14)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def logarithmic(axes: Axes) -> None:
    """A log axis labelled in plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
