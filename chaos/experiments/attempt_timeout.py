"""How long may an attempt take? Timeouts of 1, 5 and 10 s (here a tenth) on a service with a long tail."""

import math
import random
from dataclasses import dataclass
from statistics import NormalDist

from matplotlib.figure import Figure

from chaos.experiments import draw
from chaos.experiments.arm import Arm
from chaos.experiments.downstreams import duration
from chaos.experiments.experiment import Conclusion, Design, Experiment, Pace, Results
from chaos.experiments.policies import Retries, policy
from chaos.experiments.prediction import Prediction, within
from chaos.model import (
    attempts_mean,
    attempts_variance,
    binomial_interval,
    mean_interval,
    success_probability,
)
from chaos.percentile import percentile_of
from chaos.plan import Arrivals, Profile, Step
from chaos.report.svg import Tint
from protos.downstream.v1 import fault_pb2

SCALE = 10
"""How much shorter all times are than in the system this stands for."""
TIMEOUTS_S = {Pace.FULL: (0.1, 0.5, 1.0), Pace.QUICK: (0.1, 0.5)}
ATTEMPTS = 3
BACKOFF_S = 0.05
CALL_TIMEOUT_S = 5.0
"""Longer than all attempts together, so that the deadline never cuts one short."""
LATENCY_MEDIAN_S = 0.06
LATENCY_SIGMA = 0.8
HANG_SHARE = 0.05
"""Attempts that are never answered."""
RATE_PER_S = 120.0
DURATION_S = {Pace.FULL: 6.0, Pace.QUICK: 1.2}
HOP_S = 0.004
"""What relay, proxy and loopback add to an attempt, about: an answer due so shortly before its timeout is
late. It enters the tolerance, not the prediction."""
MODEL_CALLS = 20_000
MODEL_SEED = 1
LATENCY_TOLERANCE = 0.25


@dataclass(frozen=True, slots=True)
class Modelled:
    """What theory says of one timeout."""

    success: float
    load: float
    p50_ms: float
    p99_ms: float


def answered_within(timeout_s: float) -> float:
    """The chance that an attempt is answered in time: their latency's distribution, less the silent."""
    return (1 - HANG_SHARE) * NormalDist().cdf(math.log(timeout_s / LATENCY_MEDIAN_S) / LATENCY_SIGMA)


def modelled(timeout_s: float) -> Modelled:
    """Success and load exactly, latency from many drawn calls."""
    failure = 1 - answered_within(timeout_s)
    rng = random.Random(f"{MODEL_SEED}/{timeout_s}")
    latencies_ms = [latency for _ in range(MODEL_CALLS) if (latency := _drawn_latency_ms(timeout_s, rng))]
    return Modelled(
        success=success_probability(failure, ATTEMPTS),
        load=attempts_mean(failure, ATTEMPTS),
        p50_ms=percentile_of(latencies_ms, 50),
        p99_ms=percentile_of(latencies_ms, 99),
    )


def _drawn_latency_ms(timeout_s: float, rng: random.Random) -> float | None:
    """The latency of one call with full jitter between its attempts; None when all of them timed out."""
    spent_s = 0.0
    for number in range(ATTEMPTS):
        hangs = rng.random() < HANG_SHARE
        took_s = math.inf if hangs else rng.lognormvariate(math.log(LATENCY_MEDIAN_S), LATENCY_SIGMA)
        if took_s <= timeout_s:
            return (spent_s + took_s) * 1000
        spent_s += timeout_s + rng.uniform(0, BACKOFF_S * 2**number)
    return None


def slow_and_silent() -> fault_pb2.SetFaultsRequest:
    """Long tails, and now and then no answer at all."""
    hang = fault_pb2.Fault(
        name="silent",
        probability=HANG_SHARE,
        hang=fault_pb2.Hang(when=fault_pb2.Failure.WHEN_BEFORE_EFFECT),
    )
    tail = fault_pb2.LogNormal(median=duration(LATENCY_MEDIAN_S), sigma=LATENCY_SIGMA)
    slow = fault_pb2.Fault(name="slow", probability=1.0, latency=fault_pb2.Latency(log_normal=tail))
    return fault_pb2.SetFaultsRequest(faults=[slow, hang])


def design(pace: Pace) -> Design:
    """One arm for each timeout."""
    count = round(RATE_PER_S * DURATION_S[pace])
    arms = tuple(
        Arm(
            name=_name(timeout_s),
            title=f"attempt timeout {_shown(timeout_s)}",
            policy=policy(retries=Retries(ATTEMPTS, BACKOFF_S, 1.0), attempt_timeout_s=timeout_s),
            downstream=slow_and_silent(),
            profile=Profile((Step(RATE_PER_S, DURATION_S[pace]),), Arrivals.CONSTANT, count),
            timeout_s=CALL_TIMEOUT_S,
        )
        for timeout_s in TIMEOUTS_S[pace]
    )
    predictions = [each for timeout_s in TIMEOUTS_S[pace] for each in _predict(timeout_s, count)]
    return Design(arms, tuple(predictions))


def _predict(timeout_s: float, count: int) -> tuple[Prediction, ...]:
    name, theory = _name(timeout_s), modelled(timeout_s)
    failure = 1 - answered_within(timeout_s)
    # The hop eats into the timeout, which makes an attempt fail a little more often than the service's own
    # distribution says: the intervals reach from the one chance to the other.
    slower = 1 - answered_within(timeout_s - 2 * HOP_S)
    success = binomial_interval(count, theory.success)
    slower_success = binomial_interval(count, success_probability(slower, ATTEMPTS))
    load = mean_interval(count, theory.load, attempts_variance(failure, ATTEMPTS))
    slower_load = mean_interval(count, attempts_mean(slower, ATTEMPTS), attempts_variance(slower, ATTEMPTS))
    shown = _shown(timeout_s)
    return (
        Prediction(
            f"{name}/success",
            f"success, timeout {shown}",
            "%",
            theory.success,
            type(success)(slower_success.low, success.high),
            "1 - (1 - F(t))^n, F the share of attempts answered within t",
        ),
        Prediction(
            f"{name}/load",
            f"load, timeout {shown}",
            "x",
            theory.load,
            type(load)(load.low, slower_load.high),
            "each attempt that is cut off brings the next: the sum of (1 - F(t))^k",
        ),
        Prediction(
            f"{name}/p99",
            f"p99 latency, timeout {shown}",
            "ms",
            theory.p99_ms,
            within(LATENCY_TOLERANCE, theory.p99_ms, floor=60),
            "attempts cut off at t, the waits between them and the last attempt's own time, drawn many times",
        ),
    )


def conclude(design_: Design, results: Results) -> Conclusion:
    """Success, load and tail latency against each other."""
    measured: dict[str, float | None] = {}
    for arm in design_.arms:
        evidence = results[arm.name]
        measured[f"{arm.name}/success"] = evidence.success
        measured[f"{arm.name}/load"] = evidence.amplification
        measured[f"{arm.name}/p99"] = evidence.latency_ms(99)
    advice = _advice(design_, measured)

    def drawing(figure: Figure) -> None:
        panels = figure.subplots(1, 3)
        labels = [_shown(_timeout_s(arm.name)) for arm in design_.arms]
        expected = {prediction.key: prediction.expected for prediction in design_.predictions}
        rows = (
            ("success", "Calls that succeed", Tint.GOOD, "{:.1%}".format, 1.0),
            ("load", "Attempts per call", Tint.LOAD, "{:.2f}".format, 1.0),
            ("p99", "p99 latency of those", Tint.SHED, "{:.2g} s".format, 1000.0),
        )
        for axes, (key, title, tint, show, per) in zip(panels, rows, strict=True):
            values = [
                value / per if (value := measured[f"{arm.name}/{key}"]) is not None else None
                for arm in design_.arms
            ]
            theory = [expected[f"{arm.name}/{key}"] / per for arm in design_.arms]
            places = draw.settings(axes, labels, "attempt timeout")
            draw.bars(axes, places, values, tint, "measured")
            draw.predicted(axes, places, theory)
            draw.labelled(axes, places, values, show, theory)
            draw.headroom(axes, [*values, *theory])
            draw.titled(axes, title)
            draw.legend(axes)
        draw.percent(panels[0])
        panels[2].set_ylabel("seconds")

    return Conclusion(
        measured=measured,
        advice=advice,
        figure=draw.picture("Success, load and latency by attempt timeout", advice, drawing),
        caption=f"A service with a median of {LATENCY_MEDIAN_S * 1000:.0f} ms, a long tail (log-normal, "
        "sigma "
        f"{LATENCY_SIGMA:g}) and {HANG_SHARE:.0%} of attempts never answered; {ATTEMPTS} attempts.",
    )


def _advice(design_: Design, measured: dict[str, float | None]) -> str:
    known = [
        (success, latency, load, arm)
        for arm in design_.arms
        if (success := measured[f"{arm.name}/success"]) is not None
        and (latency := measured[f"{arm.name}/p99"]) is not None
        and (load := measured[f"{arm.name}/load"]) is not None
    ]
    if len(known) < len(design_.arms):
        return "Too little was measured to advise on the timeout; run it again on a quieter machine."
    best_success = max(success for success, *_ in known)
    enough = [row for row in known if row[0] >= best_success - 0.005]
    success, latency, load, best = min(enough, key=lambda row: row[1])
    short, long = known[0], known[-1]
    timeout_s = _timeout_s(best.name)
    shorter = (
        f" Shorter cuts off answers that were on their way ({_shown(_timeout_s(short[3].name))}: "
        f"{short[0]:.2%} at "
        f"x{short[2]:.2f})."
        if short[3] is not best
        else ""
    )
    longer = (
        f" Longer only waits longer for the answers that never come ({_shown(_timeout_s(long[3].name))}: p99 "
        f"{long[1]:.0f} ms)."
        if long[3] is not best
        else ""
    )
    return (
        f"Of these choose {_shown(timeout_s)}, which {answered_within(timeout_s):.0%} of attempts meet: "
        f"{success:.2%} succeeded at x{load:.2f} the load, p99 {latency:.0f} ms.{shorter}{longer} Take "
        "the latency "
        "of your service's slowest useful answers, a little above its p99, and leave the deadline room "
        "for one "
        "more attempt."
    )


def _name(timeout_s: float) -> str:
    return f"timeout-{timeout_s * 1000:.0f}ms"


def _timeout_s(name: str) -> float:
    return float(name.removeprefix("timeout-").removesuffix("ms")) / 1000


def _shown(timeout_s: float) -> str:
    return f"{timeout_s:g} s"


TIMEOUT = Experiment(
    name="timeout",
    title="Attempt timeout: how long may an attempt take?",
    question="A service is slow now and then, and sometimes never answers. What does the time given to an "
    "attempt do to success, to the load, and to the slowest calls?",
    scaled=f"All times are a {SCALE}th of those they stand for: 0.1, 0.5 and 1 s for 1, 5 and 10 s.",
    design=design,
    conclude=conclude,
)
