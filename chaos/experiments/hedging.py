"""When to send a second attempt beside the first? Delays from none to at once, on a service with a slow "
"tail."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from chaos.experiments import draw
from chaos.experiments.arm import Arm
from chaos.experiments.downstreams import duration
from chaos.experiments.experiment import Conclusion, Design, Experiment, Pace, Results
from chaos.experiments.policies import ALL_METHODS, policy, seconds
from chaos.experiments.prediction import Prediction, within
from chaos.model import Interval, binomial_interval
from chaos.plan import Arrivals, Profile, Step
from chaos.report.svg import Tint
from protos.downstream.v1 import fault_pb2

FAST_S = 0.02
SLOW_S = 0.5
"""What the slow attempts take."""
SLOW_SHARE = 0.05
"""Each attempt for itself, so a second one is slow as seldom as the first."""
TAIL = 97
"""The percentile looked at: a slow call without a hedge, and not yet one of a busy machine's own hiccups."""
RATE_PER_S = 100.0
DURATION_S = {Pace.FULL: 6.0, Pace.QUICK: 2.5}
TIMEOUT_S = 5.0
HOP_S = 0.03
"""What relay, proxy and a busy machine may add to an attempt; a tolerance, no prediction."""


@dataclass(frozen=True, slots=True)
class Hedge:
    """One setting of the knob."""

    name: str
    title: str
    label: str
    delay_s: float | None
    """None hedges nothing."""

    @property
    def load(self) -> float:
        """Attempts per call: a second one for each call that is not answered within the delay."""
        if self.delay_s is None:
            return 1.0
        return 1.0 + (1.0 if self.delay_s < FAST_S else SLOW_SHARE)

    @property
    def slow(self) -> float:
        """The share of calls that stay slow: all of their attempts are."""
        return SLOW_SHARE if self.delay_s is None else SLOW_SHARE**2

    @property
    def tail_s(self) -> float:
        """The delay and a fast answer, as long as fewer than 3 % of the calls stay slow."""
        return SLOW_S if self.delay_s is None else self.delay_s + FAST_S


HEDGES = (
    Hedge("none", "no hedge", "none", None),
    Hedge("late", "hedged after 0.25 s", "0.25 s", 0.25),
    Hedge("p95", "hedged after 0.1 s", "0.1 s", 0.1),
    Hedge("at-once", "two at once", "at once", 0.0),
)
SHOWN = {Pace.FULL: HEDGES, Pace.QUICK: (HEDGES[0], HEDGES[2])}


def slow_tail() -> fault_pb2.SetFaultsRequest:
    """Every attempt is fast, and some wait long besides."""

    def latency(name: str, wait_s: float, probability: float) -> fault_pb2.Fault:
        fixed = fault_pb2.Latency(fixed=duration(wait_s))
        return fault_pb2.Fault(name=name, probability=probability, latency=fixed)

    faults = [latency("work", FAST_S, 1.0), latency("slow", SLOW_S - FAST_S, SLOW_SHARE)]
    return fault_pb2.SetFaultsRequest(faults=faults)


def design(pace: Pace) -> Design:
    """One arm for each delay."""
    count = round(RATE_PER_S * DURATION_S[pace])
    arms: list[Arm] = []
    predictions: list[Prediction] = []
    for hedge in SHOWN[pace]:
        document = policy()
        if hedge.delay_s is not None:
            document["methodConfig"] = [
                {
                    "name": ALL_METHODS,
                    "hedgingPolicy": {"maxAttempts": 2, "hedgingDelay": seconds(hedge.delay_s)},
                }
            ]
        arms.append(
            Arm(
                name=hedge.name,
                title=hedge.title,
                policy=document,
                downstream=slow_tail(),
                profile=Profile((Step(RATE_PER_S, DURATION_S[pace]),), Arrivals.CONSTANT, count),
                timeout_s=TIMEOUT_S,
            )
        )
        predictions += _predict(hedge, count)
    return Design(tuple(arms), tuple(predictions))


def _predict(hedge: Hedge, count: int) -> tuple[Prediction, ...]:
    hedged = binomial_interval(count, hedge.load - 1)
    slow = binomial_interval(count, hedge.slow)
    # An attempt that the machine itself delays beyond the wait is hedged too; of two at once, the second is
    # not always out when the first is answered.
    load = Interval(1 + 0.9 * hedged.low, min(2.0, 1 + hedged.high * 1.5))
    return (
        Prediction(
            f"{hedge.name}/load",
            f"load, {hedge.title}",
            "x",
            hedge.load,
            load,
            "one attempt more for each call that is not answered within the delay",
        ),
        Prediction(
            f"{hedge.name}/slow",
            f"slow calls, {hedge.title}",
            "%",
            hedge.slow,
            slow,
            "slow only when all attempts are: p without a hedge, p squared with one",
        ),
        Prediction(
            f"{hedge.name}/p97",
            f"p97 latency, {hedge.title}",
            "ms",
            hedge.tail_s * 1000,
            within(0.15, hedge.tail_s * 1000, floor=HOP_S * 1000),
            "the delay and a fast answer: fewer than three in a hundred stay slow",
        ),
    )


def conclude(design_: Design, results: Results) -> Conclusion:
    """What each delay buys, and what it costs."""
    measured: dict[str, float | None] = {}
    for arm in design_.arms:
        evidence = results[arm.name]
        slow = sum(call.latency_s >= SLOW_S - FAST_S for call in evidence.calls)
        measured[f"{arm.name}/load"] = evidence.amplification
        measured[f"{arm.name}/slow"] = slow / len(evidence.calls) if evidence.sound else None
        measured[f"{arm.name}/p97"] = evidence.latency_ms(TAIL)
    advice = _advice(design_, measured)
    hedges = {hedge.name: hedge for hedge in HEDGES}

    def drawing(figure: Figure) -> None:
        panels = figure.subplots(1, 3)
        expected = {prediction.key: prediction.expected for prediction in design_.predictions}
        rows = (
            ("p97", "p97 latency", "ms", Tint.SHED, "{:,.0f}".format),
            ("slow", "Calls that stay slow", "", Tint.BAD, "{:.1%}".format),
            ("load", "Attempts per call", "", Tint.LOAD, "{:.2f}".format),
        )
        for axes, (key, title, unit, tint, show) in zip(panels, rows, strict=True):
            values = [measured[f"{arm.name}/{key}"] for arm in design_.arms]
            theory = [expected[f"{arm.name}/{key}"] for arm in design_.arms]
            places = draw.settings(axes, [hedges[arm.name].label for arm in design_.arms], "hedged after")
            draw.bars(axes, places, values, tint, "measured")
            draw.predicted(axes, places, theory)
            draw.labelled(axes, places, values, show, theory)
            draw.headroom(axes, [*values, *theory])
            axes.set_ylabel(unit)
            draw.titled(axes, title)
            draw.legend(axes)
        panels[1].yaxis.set_major_formatter("{x:.0%}")

    return Conclusion(
        measured=measured,
        advice=advice,
        figure=draw.picture("Latency, slow calls and load by hedging delay", advice, drawing),
        caption=f"An attempt takes {FAST_S * 1000:.0f} ms, and {SLOW_SHARE:.0%} of them "
        f"{SLOW_S * 1000:.0f} ms.",
    )


def _advice(design_: Design, measured: dict[str, float | None]) -> str:
    known = {key: value for key, value in measured.items() if value is not None}
    if len(known) < len(measured):
        return "Too little was measured to advise on hedging; run it again on a quieter machine."
    none = design_.arms[0].name
    # At the same tail the cheaper one: twice the load is a price, and in an outage it is the wrong one.
    hedged = [arm.name for arm in design_.arms[1:] if known[f"{arm.name}/load"] < 1.5]
    best = min(hedged, key=lambda name: known[f"{name}/p97"], default=None)
    if best is None or known[f"{best}/p97"] >= known[f"{none}/p97"]:
        return (
            "Here hedging did not pay: no delay lowered p97 without half as much load again. Leave it "
            "off, and look "
            "for what makes attempts slow."
        )
    title = next(arm.title for arm in design_.arms if arm.name == best)
    eager = (
        f" Two at once brought p97 to {known['at-once/p97']:.0f} ms for x{known['at-once/load']:.2f} the "
        "load: twice "
        "the work for everybody, when most calls were fast anyway."
        if "at-once/load" in known
        else ""
    )
    return (
        "Hedge calls that are safe to repeat, after about the time that 95 % of attempts need. Of these "
        "settings, "
        f"{title}: p97 fell from {known[f'{none}/p97']:.0f} to {known[f'{best}/p97']:.0f} ms, slow calls "
        "from "
        f"{known[f'{none}/slow']:.1%} to {known[f'{best}/slow']:.1%}, for x{known[f'{best}/load']:.2f} "
        f"the load.{eager} It "
        "helps against attempts that are slow each for itself; when the service as a whole is slow it "
        "only adds load, "
        "so keep a budget on it."
    )


HEDGING = Experiment(
    name="hedging",
    title="Hedging: when to send a second attempt?",
    question="Most attempts are fast, some are very slow. A second one, sent beside the first after a "
    "while, is "
    "probably fast. How long should it wait?",
    scaled="",
    design=design,
    conclude=conclude,
)
