"""The picture of a run: what callers got, what the downstream got, how long it took; one time axis."""

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from chaos.history import CallRecord, FaultWindow, History, Phase, RelaySample
from chaos.report.series import Slices, arrivals, latency_ms, outcomes, slices_between
from chaos.report.svg import STYLE, Tint, inline
from chaos.selection import chosen

LOAD_SLICE_S = 0.1
OUTCOME_SLICES = 60
OUTCOME_SLICE_MIN_S = 0.02
WIDTH_IN = 9.6
HEIGHT_IN = 6.0
LABEL_IN_PER_CHAR = 0.075
"""How wide a label is drawn, about."""
SECONDS_SHOWN_MIN = 0.5
LATENCY_FLOOR_MS = 0.5
RELAY_IN = 2.2
RELAY_RATIOS = (2.4, 0.35)
LIMIT_SHOWN_MAX = 4
BREAKER_TINTS = {"CLOSED": Tint.BAND, "HALF_OPEN": Tint.SHED, "OPEN": Tint.BAD}

Window = TypeVar("Window", Phase, FaultWindow)


def timeline(history: History, name: str, title: str, begin_s: float, end_s: float) -> Markup:
    """A strip of phases and faults above three panels, from ``begin_s`` to ``end_s``.

    Below, where the relay was watched: its queue, its limit and what is under way, and its breaker.
    """
    calls = chosen(history.calls, lambda call: begin_s <= call.intended_s <= end_s)
    span_s = max(end_s - begin_s, SECONDS_SHOWN_MIN)
    wide = slices_between(begin_s, begin_s + span_s, max(OUTCOME_SLICE_MIN_S, span_s / OUTCOME_SLICES))
    narrow = slices_between(begin_s, begin_s + span_s, LOAD_SLICE_S)
    with rc_context(STYLE):
        watched = [sample for sample in history.relays if begin_s <= sample.at_s <= end_s]
        inside = RELAY_RATIOS if watched else ()
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN + RELAY_IN * bool(watched)), layout="constrained")
        ratios = [0.75, 3, 3, 2.4, *inside]
        strip, success, load, latency, *relay = figure.subplots(
            len(ratios), 1, sharex=True, height_ratios=ratios
        )
        _draw_strip(strip, history, begin_s, begin_s + span_s)
        _draw_outcomes(success, calls, wide)
        _draw_load(load, history, calls, narrow)
        _draw_latency(latency, calls, wide)
        if watched:
            _draw_relay(relay[0], relay[1], watched)
        for axes in (success, load, latency, *relay[:1]):
            _shade(axes, history, begin_s, begin_s + span_s)
        lowest = relay[-1] if relay else latency
        lowest.set_xlim(begin_s, begin_s + span_s)
        lowest.set_xlabel("seconds since the run began")
    return inline(figure, name, title, _description(history, calls, begin_s, end_s))


def phase_letter(history: History, phase: Phase) -> str:
    """The letter a phase has in every figure and table of the page."""
    number = history.phases.index(phase)
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _draw_strip(axes: Axes, history: History, begin_s: float, end_s: float) -> None:
    """Two rows: the phases with their letters (and names, where they fit), and the faults."""
    for phase, low, high in _visible(history.phases, begin_s, end_s):
        axes.add_patch(Rectangle((low, 1.1), high - low, 0.9, facecolor=Tint.BAND.value, linewidth=0))
        axes.add_patch(Rectangle((low, 1.1), 0, 0.9, edgecolor=Tint.MUTED.value, linewidth=0.8))
        letter = phase_letter(history, phase)
        label = f"{letter}  {phase.title}"
        fits = len(label) * LABEL_IN_PER_CHAR < (high - low) / (end_s - begin_s) * WIDTH_IN
        axes.annotate(
            label if fits else letter,
            (low, 1.53),
            (4, 0),
            textcoords="offset points",
            fontsize=8.5,
            va="center",
        )
    for _, low, high in _visible(history.faults, begin_s, end_s):
        axes.add_patch(
            Rectangle((low, 0.2), high - low, 0.55, facecolor=Tint.FAULT.value, alpha=0.4, linewidth=0)
        )
    axes.set_ylim(0, 2.1)
    axes.set_yticks([0.48, 1.53], ["faults", "phases"])
    axes.tick_params(length=0, labelbottom=False)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _visible(
    windows: Sequence[Window], begin_s: float, end_s: float
) -> Iterator[tuple[Window, float, float]]:
    """Each window that reaches into the picture, with the part of it that does."""
    for window in windows:
        low, high = max(window.begin_s, begin_s), min(window.end_s, end_s)
        if low < high:
            yield window, low, high


def _draw_outcomes(axes: Axes, calls: Collection[CallRecord], slices: Slices) -> None:
    counted = outcomes(calls, slices)
    edges = slices.edges()
    base = [0] * slices.count
    for label, values, tint in (
        ("OK", counted.ok, Tint.GOOD),
        ("shed", counted.refused, Tint.SHED),
        ("failed", counted.failed, Tint.BAD),
    ):
        top = [low + value for low, value in zip(base, values, strict=True)]
        if any(values):
            axes.stairs(top, edges, baseline=base, fill=True, color=tint.value, label=label, linewidth=0)
        base = top
    axes.set_ylabel(f"calls per {_width(slices)}")
    _legend(axes)


def _draw_load(axes: Axes, history: History, calls: Collection[CallRecord], slices: Slices) -> None:
    edges = slices.edges()
    arrived = arrivals(history.loads, slices)
    axes.stairs(arrived, edges, color=Tint.LOAD.value, fill=True, alpha=0.35, linewidth=0)
    axes.stairs(
        arrived,
        edges,
        color=Tint.LOAD.value,
        linewidth=1.1,
        label="attempts at the downstream",
        baseline=None,
    )
    counted = outcomes(calls, slices)
    offered = [sum(each) for each in zip(counted.ok, counted.refused, counted.failed, strict=True)]
    axes.stairs(offered, edges, color=Tint.INK.value, linewidth=0.9, label="calls offered", baseline=None)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"per {_width(slices)}")
    _legend(axes)


def _draw_latency(axes: Axes, calls: Collection[CallRecord], slices: Slices) -> None:
    edges = slices.edges()
    for percentile, style in ((50, "-"), (99, ":")):
        values = latency_ms(calls, slices, percentile)
        axes.stairs(
            [max(value, LATENCY_FLOOR_MS) for value in values],
            edges,
            color=Tint.INK.value,
            linewidth=1.2,
            linestyle=style,
            label=f"p{percentile}",
            baseline=None,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("latency, ms")
    _legend(axes)


def _draw_relay(inside: Axes, breaker: Axes, samples: Sequence[RelaySample]) -> None:
    """What the relay says of itself: attempts under way, their limit, the queue; and the breaker below."""
    moments = [sample.at_s for sample in samples]
    highest = max(1, *(max(sample.workers_busy, sample.queue_length) for sample in samples))
    # A limit far above what is used would flatten the rest; it is drawn where it matters.
    limits = [
        sample.workers if sample.workers <= LIMIT_SHOWN_MAX * highest else math.nan for sample in samples
    ]
    for label, values, tint, style in (
        ("limit", limits, Tint.FAULT, "--"),
        ("attempts under way", [sample.workers_busy for sample in samples], Tint.LOAD, "-"),
        ("queue", [sample.queue_length for sample in samples], Tint.SHED, "-"),
    ):
        if all(math.isnan(value) for value in values):
            continue
        inside.step(
            moments, values, where="post", color=tint.value, linewidth=1.2, linestyle=style, label=label
        )
    inside.set_ylim(bottom=0)
    inside.set_ylabel("relay")
    _legend(inside)
    for sample, after in pairwise(samples):
        if (state := BREAKER_TINTS.get(sample.breaker)) is not None:
            breaker.add_patch(
                Rectangle((sample.at_s, 0), after.at_s - sample.at_s, 1, facecolor=state.value, linewidth=0)
            )
    breaker.set_ylim(0, 1)
    breaker.set_yticks([0.5], ["breaker"])
    breaker.tick_params(axis="y", length=0)
    breaker.grid(visible=False)


def _legend(axes: Axes) -> None:
    """Above its panel, at the right, where no data is."""
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 0.97),
        ncols=3,
        borderaxespad=0,
        borderpad=0.2,
        columnspacing=1.2,
    )


def _shade(axes: Axes, history: History, begin_s: float, end_s: float) -> None:
    """Faults behind the data, and a line where each phase begins."""
    for _, low, high in _visible(history.faults, begin_s, end_s):
        axes.axvspan(low, high, color=Tint.FAULT.value, alpha=0.07, linewidth=0, zorder=-2)
    for _, low, _ in _visible(history.phases, begin_s, end_s):
        axes.axvline(low, color=Tint.MUTED.value, linewidth=0.6, alpha=0.5)


def _width(slices: Slices) -> str:
    return f"{slices.width_s * 1000:.0f} ms" if slices.width_s < 1 else f"{slices.width_s:.1f} s"


def _description(history: History, calls: Collection[CallRecord], begin_s: float, end_s: float) -> str:
    """What the picture shows, for those who hear it."""
    total = len(calls)
    good = sum(call.ok for call in calls)
    shed = sum(call.code == "RESOURCE_EXHAUSTED" for call in calls)
    inside = [sample for sample in history.loads if begin_s <= sample.at_s <= end_s]
    arrived = sum(max(0, after.calls - before.calls) for before, after in pairwise(inside))
    windows = "; ".join(
        f"{fault.title} from {fault.begin_s:.1f} to {fault.end_s:.1f} s"
        for fault in history.faults
        if fault.end_s > begin_s and fault.begin_s < end_s
    )
    return (
        f"{total} calls: {good} OK, {shed} shed, {total - good - shed} failed. "
        f"{arrived} attempts arrived at the downstream. Faults: {windows or 'none'}."
        f"{_relay_in_words(history, begin_s, end_s)}"
    )


def _relay_in_words(history: History, begin_s: float, end_s: float) -> str:
    watched = [sample for sample in history.relays if begin_s <= sample.at_s <= end_s]
    if not watched:
        return ""
    limits = [sample.workers for sample in watched]
    states = dict.fromkeys(sample.breaker for sample in watched if sample.breaker)
    return (
        f" In the relay the queue reached {max(sample.queue_length for sample in watched)}, the limit lay "
        f"between {min(limits)} and {max(limits)}; breaker: {', '.join(states) or 'none'}."
    )
