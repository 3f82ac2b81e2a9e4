"""Does service return when the fault has gone? 70 % load, an outage, and what retries make of it after."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chaos.experiments import draw
from chaos.experiments.arm import Arm, Evidence, Outage
from chaos.experiments.downstreams import limited
from chaos.experiments.experiment import Conclusion, Design, Experiment, Pace, Results
from chaos.experiments.policies import Budget, Retries, policy, seconds
from chaos.experiments.prediction import Prediction
from chaos.faults import NetworkFault
from chaos.model import Interval
from chaos.plan import Profile, Step
from chaos.report.series import arrivals, slices_between
from chaos.report.svg import Tint

SCALE = 4
DOWNSTREAM_WORKERS = 2
SERVICE_S = 0.02
CAPACITY_PER_S = DOWNSTREAM_WORKERS / SERVICE_S
LOAD_SHARE = 0.7
LOAD_PER_S = LOAD_SHARE * CAPACITY_PER_S
RELIEF_SHARE = 0.15
"""Below 1 / attempts, so that even with every retry the downstream could keep up."""
ATTEMPTS = 4
ATTEMPT_TIMEOUT_S = 0.25
BACKOFF_S = 0.05
CALL_TIMEOUT_S = 2.5
BUDGET = Budget(ratio=0.2, burst=10)
BREAKER_OPEN_S = 0.25
SLICE_S = 0.2
STUCK_MAX = 0.3
"""A service of which more succeeds than this has not stayed down."""
OUTAGE_LATENCY_MS = 400
"""Longer than an attempt may take, so for the callers nothing answers; the downstream does all the work."""
SLOW_NETWORK = NetworkFault(
    "outage", "every answer comes too late", "latency", {"latency": OUTAGE_LATENCY_MS}
)
BARE, PROTECTED = "bare", "protected"
TITLES = {BARE: "4 attempts and nothing else", PROTECTED: "with budget and breaker"}


@dataclass(frozen=True, slots=True)
class Course:
    """How long each stretch lasts."""

    steady_s: float
    outage_s: float
    after_s: float
    judged_s: tuple[float, float]
    """From when to when after the outage calls are judged: past the backlog's draining, and early enough that
    all their attempts are made while the load is the same."""
    relief_s: float
    again_s: float

    @property
    def healed_s(self) -> float:
        """When the outage ends."""
        return self.steady_s + self.outage_s

    @property
    def relief_from_s(self) -> float:
        """When the load falls."""
        return self.healed_s + self.after_s

    @property
    def again_from_s(self) -> float:
        """When it rises again."""
        return self.relief_from_s + self.relief_s

    @property
    def end_s(self) -> float:
        """When the last call is due."""
        return self.again_from_s + self.again_s

    @property
    def steps(self) -> tuple[Step, ...]:
        """The load over time."""
        steps = [Step(LOAD_PER_S, self.relief_from_s)]
        if self.relief_s:
            steps += [Step(RELIEF_SHARE * CAPACITY_PER_S, self.relief_s), Step(LOAD_PER_S, self.again_s)]
        return tuple(steps)


COURSES = {
    Pace.FULL: Course(
        steady_s=2.5, outage_s=10 / SCALE, after_s=6.0, judged_s=(3.0, 4.8), relief_s=4.0, again_s=3.0
    ),
    Pace.QUICK: Course(
        steady_s=0.4, outage_s=1.3, after_s=2.2, judged_s=(0.7, 1.2), relief_s=0.0, again_s=0.0
    ),
}


def design(pace: Pace) -> Design:
    """The same course with retries alone, and with what bounds them."""
    course = COURSES[pace]
    retries = Retries(ATTEMPTS, BACKOFF_S, 4 * BACKOFF_S)
    bare = policy(retries=retries, attempt_timeout_s=ATTEMPT_TIMEOUT_S)
    protected = policy(
        retries=retries,
        attempt_timeout_s=ATTEMPT_TIMEOUT_S,
        budget=BUDGET,
        breaker={
            "failureRatio": 0.8,
            "window": "2s",
            "minCalls": 20,
            "openTime": seconds(BREAKER_OPEN_S),
            "probeSuccesses": 3,
            "probeTimeout": seconds(4 * ATTEMPT_TIMEOUT_S),
            "rampTime": "0.4s",
        },
    )
    arms = tuple(
        Arm(
            name=name,
            title=TITLES[name],
            policy=document,
            downstream=limited(DOWNSTREAM_WORKERS, SERVICE_S, queue=10_000),
            profile=Profile(course.steps),
            timeout_s=CALL_TIMEOUT_S,
            outage=Outage(SLOW_NETWORK, course.steady_s, course.outage_s),
        )
        for name, document in ((BARE, bare), (PROTECTED, protected))
    )
    return Design(arms, _predict(course))


def _predict(course: Course) -> tuple[Prediction, ...]:
    stuck = (
        f"each call makes {ATTEMPTS} attempts that all come too late: {LOAD_SHARE:.0%} x {ATTEMPTS} > 100 %"
    )
    bounded = f"retries are bounded: {LOAD_SHARE:.0%} x {1 + BUDGET.ratio:g} < 100 %, so the backlog drains"
    predictions = [
        Prediction(
            f"{name}/before",
            f"success before the outage, {TITLES[name]}",
            "%",
            1.0,
            Interval(0.97, 1.0),
            "the load is below capacity",
        )
        for name in (BARE, PROTECTED)
    ]
    predictions += [
        Prediction(
            f"{BARE}/after",
            f"success long after the outage, {TITLES[BARE]}",
            "%",
            0.0,
            Interval(0.0, STUCK_MAX),
            stuck,
        ),
        Prediction(
            f"{PROTECTED}/after",
            f"success long after the outage, {TITLES[PROTECTED]}",
            "%",
            1.0,
            Interval(0.9, 1.0),
            bounded,
        ),
    ]
    if course.relief_s:
        relief = f"only less load frees it: {RELIEF_SHARE:.0%} x {ATTEMPTS} < 100 %, and it stays free after"
        predictions.append(
            Prediction(
                f"{BARE}/again",
                f"success at {LOAD_SHARE:.0%} load again, {TITLES[BARE]}",
                "%",
                1.0,
                Interval(0.9, 1.0),
                relief,
            )
        )
    return tuple(predictions)


def conclude(design_: Design, results: Results) -> Conclusion:
    """Whether service returned, and when."""
    course = _course_of(design_)
    measured: dict[str, float | None] = {}
    for name, evidence in results.items():
        measured[f"{name}/before"] = evidence.success_between(0, course.steady_s - ATTEMPT_TIMEOUT_S)
        from_s, to_s = (course.healed_s + moment_s for moment_s in course.judged_s)
        measured[f"{name}/after"] = evidence.success_between(from_s, to_s)
        if course.relief_s:
            measured[f"{name}/again"] = evidence.success_between(course.again_from_s, course.end_s)
    back_s = _back_after_s(results[PROTECTED], course)
    advice = _advice(measured, back_s)

    def drawing(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, sharey=True)
        for axes, name in ((top, BARE), (bottom, PROTECTED)):
            _draw_course(axes, results[name], course, TITLES[name])
        bottom.set_xlabel("seconds")

    return Conclusion(
        measured=measured,
        advice=advice,
        figure=draw.picture("Goodput before, in and after an outage", advice, drawing, height_in=5.4),
        caption=f"The load is {LOAD_SHARE:.0%} of capacity"
        + (
            f", falls to {RELIEF_SHARE:.0%} at {course.relief_from_s:g} s and rises again"
            if course.relief_s
            else ""
        )
        + ". Shaded: the outage. Attempts above the line of capacity are the state that keeps itself alive.",
    )


def _course_of(design_: Design) -> Course:
    return next(course for course in COURSES.values() if Profile(course.steps) == design_.arms[0].profile)


def _draw_course(axes: Axes, evidence: Evidence, course: Course, title: str) -> None:
    slices = slices_between(evidence.begin_s, evidence.begin_s + course.end_s, SLICE_S)
    edges = [edge - evidence.begin_s for edge in slices.edges()]
    good = [0.0] * slices.count
    for call in evidence.calls:
        if call.ok and (number := slices.index(call.done_s)) is not None:
            good[number] += 1 / slices.width_s
    attempts = [value / slices.width_s for value in arrivals(evidence.loads, slices)]
    axes.axvspan(course.steady_s, course.healed_s, color=Tint.FAULT.value, alpha=0.1, linewidth=0, zorder=-2)
    axes.axhline(CAPACITY_PER_S, color=Tint.MUTED.value, linewidth=1, linestyle="--", label="capacity")
    axes.stairs(good, edges, fill=True, color=Tint.GOOD.value, alpha=0.75, linewidth=0, label="answered OK")
    axes.stairs(
        attempts, edges, color=Tint.BAD.value, linewidth=1.2, baseline=None, label="attempts arriving"
    )
    moments, rates = [0.0], [course.steps[0].rate_per_s]
    for step in course.steps:
        moments.append(moments[-1] + step.duration_s)
        rates.append(step.rate_per_s)
    axes.step(moments, rates, color=Tint.INK.value, linewidth=1.1, label="calls offered")
    axes.set_xlim(0, course.end_s)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("per second")
    draw.titled(axes, title[0].upper() + title[1:])
    draw.legend(axes, 4)


def _back_after_s(evidence: Evidence, course: Course) -> float | None:
    """How long after the outage goodput was the load again, for half a second."""
    for number in range(int((course.after_s - 0.5) / 0.1)):
        from_s = course.healed_s + number * 0.1
        if (share := evidence.success_between(from_s, from_s + 0.5)) is not None and share >= 0.95:
            return number * 0.1
    return None


def _advice(measured: dict[str, float | None], back_s: float | None) -> str:
    stuck, returned = measured[f"{BARE}/after"], measured[f"{PROTECTED}/after"]
    if stuck is None or returned is None:
        return "Too little was measured to advise on recovery; run it again on a quieter machine."
    sum_of_it = (
        f"load x (1 + budget ratio) must stay below capacity, here {LOAD_SHARE:.0%} x {1 + BUDGET.ratio:g}"
    )
    soon = f", {back_s:.1f} s after the network had healed" if back_s is not None else ""
    protected = f"With a {BUDGET.ratio:.0%} budget and a breaker {returned:.0%} succeeded again{soon}."
    if stuck > STUCK_MAX:
        return (
            f"This time {ATTEMPTS} attempts without a budget recovered by themselves ({stuck:.0%} "
            "succeeded): the "
            f"backlog was too short to keep itself alive. Do not count on it: {sum_of_it}. {protected}"
        )
    again = measured.get(f"{BARE}/again")
    relief = (
        f" It came back only when the load fell to {RELIEF_SHARE:.0%} of capacity, and then served "
        f"{again:.0%} of "
        "the very load that had kept it down: the present load does not decide it, the past does."
        if again is not None
        else ""
    )
    return (
        f"Bound the retries: {sum_of_it}, or an outage may outlive its cause. With {ATTEMPTS} attempts "
        "and no "
        f"budget {stuck:.0%} of the calls succeeded long after the network had healed: nothing was "
        "broken any "
        f"more, and it stayed down.{relief} {protected}"
    )


METASTABLE = Experiment(
    name="metastable",
    title="Metastable failure: does service return when the fault has gone?",
    question="At 70 % load the network fails for a while and heals. Retries made meanwhile are more than the "
    "downstream can do. Does it come back by itself?",
    scaled=f"Times are a quarter of those they stand for: an outage of {10 / SCALE:g} s for one of 10 s.",
    design=design,
    conclude=conclude,
)
