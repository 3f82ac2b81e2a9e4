"""What do retries do to a service that is down? Attempts 1 to 5, with and without a budget."""

from matplotlib.figure import Figure

from chaos.experiments import draw
from chaos.experiments.arm import Arm
from chaos.experiments.downstreams import failing
from chaos.experiments.experiment import Conclusion, Design, Experiment, Pace, Results
from chaos.experiments.policies import Budget, Retries, policy
from chaos.experiments.prediction import Prediction, within
from chaos.model import Interval, attempts_mean, success_probability
from chaos.plan import Arrivals, Profile, Step
from chaos.report.svg import Tint

RATE_PER_S = 150.0
DURATION_S = {Pace.FULL: 1.6, Pace.QUICK: 0.8}
ATTEMPTS = {Pace.FULL: (1, 2, 3, 4, 5), Pace.QUICK: (4,)}
BACKOFF_S = 0.02
BUDGET = Budget(ratio=0.2, burst=10)
TOLERANCE = 0.02
SHOWN_PROBABILITIES = (0.3, 0.8)


def calls_count(pace: Pace) -> int:
    """How many calls each arm makes."""
    return round(RATE_PER_S * DURATION_S[pace])


def budgeted(attempts_max: int, count: int) -> float:
    """The load factor with a budget: the retries wanted, or those that it lets through, whichever is less."""
    wanted = count * (attempts_max - 1)
    return 1 + min(wanted, BUDGET.ratio * count + BUDGET.burst) / count


def design(pace: Pace) -> Design:
    """A total outage: every attempt fails, so every call makes all the attempts it may."""
    count = calls_count(pace)
    arms: list[Arm] = []
    predictions: list[Prediction] = []
    for attempts_max in ATTEMPTS[pace]:
        arms.append(
            _arm(
                f"attempts-{attempts_max}",
                f"{attempts_max} attempt{'s' if attempts_max > 1 else ''}, no budget",
                attempts_max,
                None,
                pace,
            )
        )
        predictions.append(
            Prediction(
                key=arms[-1].name,
                what=f"load, {arms[-1].title}",
                unit="x",
                expected=float(attempts_max),
                interval=within(TOLERANCE, attempts_max),
                because="when all fails every call uses every attempt: 1 + p + ... + p^(n-1) with p = 1",
            )
        )
        if attempts_max == 1:
            continue
        arms.append(
            _arm(
                f"budget-{attempts_max}",
                f"{attempts_max} attempts, {BUDGET.ratio:.0%} budget",
                attempts_max,
                BUDGET,
                pace,
            )
        )
        expected = budgeted(attempts_max, count)
        predictions.append(
            Prediction(
                key=arms[-1].name,
                what=f"load, {arms[-1].title}",
                unit="x",
                expected=expected,
                # The budget is a promise from above; from below, a little of it may be left unspent.
                interval=Interval(1 + 0.8 * (expected - 1), expected + 1e-9),
                because="retries are at most ratio x calls + burst, however many attempts a call may make",
            )
        )
    return Design(tuple(arms), tuple(predictions))


def _arm(name: str, title: str, attempts_max: int, budget: Budget | None, pace: Pace) -> Arm:
    return Arm(
        name=name,
        title=title,
        policy=policy(retries=Retries(attempts_max, BACKOFF_S, BACKOFF_S, 1.0), budget=budget),
        downstream=failing(),
        profile=Profile((Step(RATE_PER_S, DURATION_S[pace]),), Arrivals.CONSTANT, calls_count(pace)),
        timeout_s=10.0,
    )


def conclude(design_: Design, results: Results) -> Conclusion:
    """Compare the load factors."""
    measured = {arm.name: results[arm.name].amplification for arm in design_.arms}
    without = {name: value for name, value in measured.items() if name.startswith("attempts-")}
    bounded = {name: value for name, value in measured.items() if name.startswith("budget-")}

    def drawing(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
        settings = [int(name.rpartition("-")[2]) for name in without]
        left.plot(settings, _known(without), "o", color=Tint.BAD.value, label="no budget")
        left.plot(
            [int(name.rpartition("-")[2]) for name in bounded],
            _known(bounded),
            "s",
            color=Tint.GOOD.value,
            label=f"{BUDGET.ratio:.0%} budget",
        )
        numbers = list(range(1, 6))
        left.plot(numbers, numbers, color=Tint.INK.value, linewidth=1.2, label="predicted")
        count = max(1, len(next(iter(results.values())).calls))
        left.plot(
            numbers,
            [budgeted(number, count) for number in numbers],
            color=Tint.INK.value,
            linewidth=1.2,
            linestyle=":",
            label="predicted, budget",
        )
        left.set_xticks(numbers)
        left.set_ylim(0, 5.6)
        left.set_xlabel("attempts a call may make")
        left.set_ylabel("attempts per call")
        draw.titled(left, "Load on a downstream that is down", rows=2)
        draw.legend(left, 2)
        for probability, tint in zip(SHOWN_PROBABILITIES, (Tint.GOOD, Tint.BAD), strict=True):
            right.plot(
                numbers,
                [success_probability(probability, number) for number in numbers],
                "o-",
                color=tint.value,
                markersize=3.5,
                linewidth=1.2,
                label=f"{probability:.0%} of attempts fail",
            )
        draw.percent(right)
        right.set_xticks(numbers)
        right.set_xlabel("attempts a call may make")
        right.set_ylabel("calls that succeed")
        draw.titled(right, "What they buy when only some fail (theory)", rows=2)
        draw.legend(right, 1)

    advice = _advice(without, bounded)
    return Conclusion(
        measured=measured,
        advice=advice,
        figure=draw.picture("Load by number of attempts, with and without a budget", advice, drawing),
        caption="Left: attempts that reached the downstream for each call while all of them failed. Right: "
        "success 1 - p^n, for weighing: the gain shrinks with every attempt, the load in an outage does not.",
    )


def _known(values: dict[str, float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values.values()]


def _advice(without: dict[str, float | None], bounded: dict[str, float | None]) -> str:
    worst = max((value for value in without.values() if value is not None), default=None)
    held = max((value for value in bounded.values() if value is not None), default=None)
    if worst is None or held is None:
        return "Too little was measured to advise on retries; run it again on a quieter machine."
    p = SHOWN_PROBABILITIES[0]
    return (
        f"Choose 3 or 4 attempts, and always a budget. While everything failed, retries without a budget "
        f"multiplied the load by {worst:.2f}; with a {BUDGET.ratio:.0%} budget it never rose above "
        f"x{held:.2f}, "
        f"whatever number of attempts was allowed. More attempts buy little: with {p:.0%} of attempts "
        "failing "
        f"the third takes success from {success_probability(p, 2):.1%} to "
        f"{success_probability(p, 3):.1%}, the "
        f"fifth from {success_probability(p, 4):.2%} to {success_probability(p, 5):.2%}, while a layer of "
        f"callers that each make n attempts multiplies an outage by n (x{attempts_mean(1.0, 5):.0f} for 5), "
        "and two such layers by n squared."
    )


STORM = Experiment(
    name="storm",
    title="Retry storm: what do retries do to a service that is down?",
    question="Every attempt fails. How much load does the failing service get for each call, by the "
    "number of "
    "attempts a call may make, with and without a retry budget?",
    scaled="",
    design=design,
    conclude=conclude,
)
