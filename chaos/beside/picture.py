"""All ways over one time axis: what their callers got, and what their downstream was asked for."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chaos.beside.columns import ENVOY, OFF, RELAY
from chaos.evidence import PHASES, Evidence
from chaos.experiments import draw
from chaos.report.series import Slices, arrivals, slices_between
from chaos.report.svg import Tint

SLICE_S = 0.5
HEIGHT_IN = 5.4
LOOKS: Mapping[str, tuple[Tint, str]] = {
    RELAY: (Tint.GOOD, "-"),
    OFF: (Tint.BAD, "--"),
    ENVOY: (Tint.LOAD, "-."),
}
"""Colour and dashes of a line: told apart in print as well."""


def picture(title: str, description: str, ways: Mapping[str, tuple[str, Evidence]]) -> Markup:
    """``ways`` holds each column's title and evidence by its name."""

    def drawing(figure: Figure) -> None:
        good, load = figure.subplots(2, 1, sharex=True)
        for name, (label, evidence) in ways.items():
            slices, began_s = _slices(evidence)
            places = [edge - began_s + SLICE_S / 2 for edge in slices.edges()[:-1]]
            tint, dashes = LOOKS[name]
            style = {"color": tint.value, "linestyle": dashes, "linewidth": 1.6, "label": label}
            good.plot(places, _goodput(evidence, slices), **style)
            arrived = [value / SLICE_S for value in arrivals(evidence.history.loads, slices)]
            load.plot(places, arrived, **style)
        first = next(iter(ways.values()))[1]
        for axes in (good, load):
            _shade(axes, first)
            axes.set_ylabel("per second")
        _offered(load, first)
        for axes in (good, load):
            axes.set_ylim(bottom=0)
        load.set_xlabel("seconds")
        draw.titled(good, "Calls answered OK")
        draw.titled(load, "Attempts that reach the downstream")
        draw.legend(good)
        draw.legend(load, columns=4)

    return draw.picture(title, description, drawing, height_in=HEIGHT_IN)


def _slices(evidence: Evidence) -> tuple[Slices, float]:
    """Slices from the first phase's beginning to the last one's end, and when that began."""
    began_s = evidence.phase(PHASES[0]).begin_s
    return slices_between(began_s, evidence.phase(PHASES[-1]).end_s, SLICE_S), began_s


def _goodput(evidence: Evidence, slices: Slices) -> list[float]:
    counted = [0] * slices.count
    for call in evidence.calls:
        if call.ok and (number := slices.index(call.done_s)) is not None:
            counted[number] += 1
    return [count / slices.width_s for count in counted]


def _offered(axes: Axes, evidence: Evidence) -> None:
    """What the plan holds, the same for all ways: operations, without what callers repeat by themselves."""
    slices, began_s = _slices(evidence)
    counted: list[float] = [0.0] * slices.count
    for call in evidence.calls:
        if call.client_try == 1 and (number := slices.index(call.intended_s)) is not None:
            counted[number] += 1
    _steps(axes, [edge - began_s for edge in slices.edges()], [count / slices.width_s for count in counted])


def _steps(axes: Axes, edges: Sequence[float], values: Sequence[float]) -> None:
    axes.stairs(values, edges, color=Tint.MUTED.value, linewidth=0.9, label="operations offered")


def _shade(axes: Axes, evidence: Evidence) -> None:
    began_s, struck = evidence.phase(PHASES[0]).begin_s, evidence.struck
    axes.axvspan(
        struck.begin_s - began_s, struck.end_s - began_s, color=Tint.FAULT.value, alpha=0.13, linewidth=0
    )
