"""Does jitter spread the load? Many calls fail at once; when do they come back?"""

import math
import random
from collections.abc import Sequence

from matplotlib.figure import Figure

from chaos.experiments import draw
from chaos.experiments.arm import Arm, Evidence
from chaos.experiments.downstreams import failing
from chaos.experiments.experiment import Conclusion, Design, Experiment, Pace, Results
from chaos.experiments.policies import Retries, policy
from chaos.experiments.prediction import Prediction
from chaos.model import Interval
from chaos.plan import Arrivals, Profile, Step
from chaos.report import Measure
from chaos.report.series import arrivals, slices_between
from chaos.report.svg import Tint

WINDOW_S = 0.1
"""The stretch whose load is looked at: about as long as a herd of this size takes to arrive here."""
HERD = {Pace.FULL: 200, Pace.QUICK: 120}
ATTEMPTS = {Pace.FULL: 3, Pace.QUICK: 2}
BACKOFF_S = 1.0
BACKOFF_MAX_S = 2.0
JITTERS = {Pace.FULL: ("none", "equal", "full", "decorrelated"), Pace.QUICK: ("none", "full")}
BURST_S = 0.02
MODEL_RUNS = 300
MODEL_SEED = 1
SMEAR = 0.35
"""Of a peak: what the arrival of a herd, the counting at a beat, and a busy machine may hide of it."""


def backoffs_s(jitter: str, retries: int, rng: random.Random) -> list[float]:
    """The waits of one call (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015)."""
    waits: list[float] = []
    last_s = BACKOFF_S
    for number in range(retries):
        ceiling_s = min(BACKOFF_MAX_S, BACKOFF_S * 2**number)
        match jitter:
            case "none":
                wait_s = ceiling_s
            case "full":
                wait_s = rng.uniform(0, ceiling_s)
            case "equal":
                wait_s = ceiling_s / 2 + rng.uniform(0, ceiling_s / 2)
            case _:
                wait_s = min(BACKOFF_MAX_S, rng.uniform(BACKOFF_S, max(BACKOFF_S, 3 * last_s)))
        last_s = wait_s
        waits.append(wait_s)
    return waits


def retry_times_s(jitter: str, herd: int, retries: int, rng: random.Random) -> list[float]:
    """When a herd that failed at time 0 comes back, and back again."""
    times: list[float] = []
    for _ in range(herd):
        at_s = 0.0
        for wait_s in backoffs_s(jitter, retries, rng):
            at_s += wait_s
            times.append(at_s)
    return times


def peak_in_window(times_s: Sequence[float], window_s: float) -> int:
    """The most that fall into any stretch of this length."""
    ranked = sorted(times_s)
    first = peak = 0
    for number, at_s in enumerate(ranked):
        while at_s - ranked[first] > window_s:
            first += 1
        peak = max(peak, number - first + 1)
    return peak


def predict(jitter: str, pace: Pace) -> Prediction:
    """The peak of simulated herds: the middle one, and from the lowest to the highest, less the smear."""
    rng = random.Random(f"{MODEL_SEED}/{jitter}")
    herd, retries = HERD[pace], ATTEMPTS[pace] - 1
    peaks = sorted(
        peak_in_window(retry_times_s(jitter, herd, retries, rng), WINDOW_S) / herd for _ in range(MODEL_RUNS)
    )
    return Prediction(
        key=jitter,
        what=f"busiest {WINDOW_S * 1000:.0f} ms of retries, {_named(jitter)}",
        unit="%",
        expected=peaks[len(peaks) // 2],
        interval=Interval(peaks[0] * (1 - SMEAR), min(1.0, peaks[-1] * (1 + SMEAR / 2))),
        because=_BECAUSE[jitter],
    )


_BECAUSE = {
    "none": "all wait the same time, so all of the herd comes back at once",
    "equal": "half of the wait is drawn, so the herd spreads over half of it",
    "full": "all of the wait is drawn, so the herd spreads over all of it",
    "decorrelated": "the wait is drawn between the first wait and three times the last one, up to the "
    "longest",
}


_TINTS = {"none": Tint.BAD, "equal": Tint.SHED, "full": Tint.GOOD, "decorrelated": Tint.LOAD}


def design(pace: Pace) -> Design:
    """The same herd for each kind of jitter; every attempt fails, so all that is seen is when they come."""
    arms = tuple(
        Arm(
            name=jitter,
            title=f"a herd of {HERD[pace]}, {_named(jitter)}",
            policy=policy(retries=Retries(ATTEMPTS[pace], BACKOFF_S, BACKOFF_MAX_S, jitter=jitter)),
            downstream=failing(),
            profile=Profile((Step(HERD[pace] / BURST_S, 2 * BURST_S),), Arrivals.CONSTANT, HERD[pace]),
            timeout_s=20.0,
            sample_every_s=0.02,
        )
        for jitter in JITTERS[pace]
    )
    return Design(arms, tuple(predict(jitter, pace) for jitter in JITTERS[pace]))


def arrived_after_herd(evidence: Evidence) -> tuple[list[float], list[float]]:
    """Edges (seconds since the herd failed) and the retries that arrived in each window between them."""
    begin_s = _herd_failed_at_s(evidence)
    slices = slices_between(begin_s, evidence.end_s, WINDOW_S / 4)
    counted = [0.0 if math.isnan(value) else value for value in arrivals(evidence.loads, slices)]
    return [edge - begin_s for edge in slices.edges()], counted


def _herd_failed_at_s(evidence: Evidence) -> float:
    """When all first attempts had arrived: before any retry that is due much later."""
    all_in = evidence.arrived_before + len(evidence.calls)
    return next((each.at_s for each in evidence.loads if each.calls >= all_in), evidence.begin_s)


def measured_peak(evidence: Evidence) -> float | None:
    """The share of the herd in the busiest window of retries."""
    if not evidence.sound or len(evidence.loads) < 3:
        return None
    _, counted = arrived_after_herd(evidence)
    width = 4
    sums = [sum(counted[number : number + width]) for number in range(max(1, len(counted) - width + 1))]
    return max(sums) / len(evidence.calls)


def conclude(design_: Design, results: Results) -> Conclusion:
    """Compare the peaks."""
    measured = {arm.name: measured_peak(results[arm.name]) for arm in design_.arms}
    spans = {arm.name: _return_span_s(results[arm.name]) for arm in design_.arms}

    def drawing(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[2.1, 1])
        for arm in design_.arms:
            edges, counted = arrived_after_herd(results[arm.name])
            tint = _TINTS[arm.name]
            left.stairs(
                counted, edges, color=tint.value, linewidth=1.3, label=_named(arm.name), baseline=None
            )
        draw.titled(left, "Retries arriving after all failed at once")
        left.set_xlabel("seconds since they failed")
        left.set_ylabel(f"retries per {WINDOW_S * 250:.0f} ms")
        left.set_xlim(left=0)
        left.set_ylim(bottom=0)
        draw.legend(left, 4)
        values = [measured[arm.name] for arm in design_.arms]
        names = [arm.name.replace("decorrelated", "decorr.") for arm in design_.arms]
        places = draw.settings(right, names, "jitter")
        draw.bars(right, places, values, Tint.LOAD, "measured")
        theory = [prediction.expected for prediction in design_.predictions]
        draw.predicted(right, places, theory)
        draw.labelled(right, places, values, "{:.0%}".format, theory)
        draw.percent(right)
        draw.titled(right, f"Share of the herd in its busiest {WINDOW_S * 1000:.0f} ms")
        draw.legend(right)

    return Conclusion(
        measured=measured,
        advice=_advice(measured),
        figure=draw.picture("Retries over time with and without jitter", _advice(measured), drawing),
        caption="Left: when the retries of one herd reach the downstream. Right: how much of the herd comes "
        "within the busiest tenth of a second.",
        observed=tuple(
            Measure(f"from first to last retry, {_named(name)}", "s", round(span_s, 2))
            for name, span_s in spans.items()
        ),
    )


def _return_span_s(evidence: Evidence) -> float:
    edges, counted = arrived_after_herd(evidence)
    busy = [number for number, value in enumerate(counted) if value > 0.5]
    return edges[busy[-1] + 1] - edges[busy[0]] if busy else 0.0


def _advice(measured: dict[str, float | None]) -> str:
    none, full = measured.get("none"), measured.get("full")
    if not none or not full:
        return "Too little was measured to advise on jitter; run it again on a quieter machine."
    best = min((value, name) for name, value in measured.items() if value is not None)
    others = "" if best[1] == "full" else f" ({best[1]} came lowest here, at {best[0]:.0%})"
    return (
        f"Choose full jitter. Without jitter {none:.0%} of the herd came back within one tenth of a "
        "second, so "
        f"whatever it knocked over would be knocked over again; with full jitter it was {full:.0%}, a peak "
        f"{none / full:.1f} times lower{others}. It costs nothing: the number of retries is the same, and on "
        "average each waits half as long."
    )


def _named(jitter: str) -> str:
    return "no jitter" if jitter == "none" else f"{jitter} jitter"


JITTER = Experiment(
    name="jitter",
    title="Jitter: does it spread a herd?",
    question="Many calls fail in the same moment, as in any outage. Each waits and tries again. When do they "
    "arrive, with the wait as computed, and with the wait drawn at random?",
    scaled="",
    design=design,
    conclude=conclude,
)
