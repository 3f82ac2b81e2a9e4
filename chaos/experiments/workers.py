"""How many calls at once? Workers 1, 5, 10 and 20 before a downstream that can do 8 at a time."""

from matplotlib.figure import Figure

from chaos.experiments import draw
from chaos.experiments.arm import Arm
from chaos.experiments.downstreams import limited
from chaos.experiments.experiment import Conclusion, Design, Experiment, Pace, Results
from chaos.experiments.policies import policy
from chaos.experiments.prediction import Prediction, within
from chaos.plan import Arrivals, Profile, Step
from chaos.report.svg import Tint

WORKERS = {Pace.FULL: (1, 5, 10, 20), Pace.QUICK: (5, 20)}
DOWNSTREAM_WORKERS = 8
SERVICE_S = 0.05
OFFERED_PER_S = 200.0
QUEUE = 20
DURATION_S = {Pace.FULL: 6.0, Pace.QUICK: 1.6}
SETTLE_S = 0.5
"""Until queue and workers are full; nothing is counted before."""
TIMEOUT_S = 10.0
TOLERANCE = 0.2
"""The hop costs a few ms of the 50, and a busy machine some more."""


def throughput_per_s(workers: int) -> float:
    """min(offered, workers / service time, the downstream's own capacity)."""
    return min(OFFERED_PER_S, min(workers, DOWNSTREAM_WORKERS) / SERVICE_S)


def latency_s(workers: int) -> float:
    """Little's law with all places taken: (queue + workers) / throughput."""
    return (QUEUE + workers) / throughput_per_s(workers)


def design(pace: Pace) -> Design:
    """One arm for each number of workers, each offered more than it can do."""
    arms: list[Arm] = []
    predictions: list[Prediction] = []
    for workers in WORKERS[pace]:
        name, title = f"workers-{workers}", f"{workers} worker{'s' if workers > 1 else ''}"
        count = round(OFFERED_PER_S * DURATION_S[pace])
        arms.append(
            Arm(
                name=name,
                title=title,
                policy=policy(workers=workers, queue=QUEUE),
                downstream=limited(DOWNSTREAM_WORKERS, SERVICE_S, queue=1000),
                profile=Profile((Step(OFFERED_PER_S, DURATION_S[pace]),), Arrivals.CONSTANT, count),
                timeout_s=TIMEOUT_S,
            )
        )
        predictions += [
            Prediction(
                f"{name}/throughput",
                f"throughput, {title}",
                "calls/s",
                throughput_per_s(workers),
                within(TOLERANCE, throughput_per_s(workers)),
                "min(offered, workers / service time, the downstream's capacity)",
            ),
            Prediction(
                f"{name}/p50",
                f"median latency, {title}",
                "ms",
                latency_s(workers) * 1000,
                within(TOLERANCE + 0.05, latency_s(workers) * 1000),
                "Little's law: (queue + workers) / throughput",
            ),
        ]
    return Design(tuple(arms), tuple(predictions))


def conclude(design_: Design, results: Results) -> Conclusion:
    """Throughput and latency by the number of workers."""
    measured: dict[str, float | None] = {}
    for arm in design_.arms:
        evidence, end_s = results[arm.name], arm.profile.duration_s
        settled = [call for call in evidence.calls if call.intended_s >= evidence.begin_s + SETTLE_S + 0.3]
        latencies_ms = sorted(call.latency_s * 1000 for call in settled if call.ok)
        measured[f"{arm.name}/throughput"] = evidence.goodput_per_s(SETTLE_S, end_s)
        measured[f"{arm.name}/p50"] = (
            latencies_ms[len(latencies_ms) // 2] if latencies_ms and evidence.sound else None
        )
        waiting = [sample.queued for sample in evidence.loads if sample.at_s >= evidence.begin_s + SETTLE_S]
        loaded = [count for count in waiting if count > 0]
        measured[f"{arm.name}/waiting"] = sum(waiting) / len(waiting) if loaded else 0.0
    advice = _advice(design_, measured)

    def drawing(figure: Figure) -> None:
        panels = figure.subplots(1, 3)
        labels = [arm.name.rpartition("-")[2] for arm in design_.arms]
        counts = [int(label) for label in labels]
        rows = (
            ("throughput", "Throughput", "calls/s", Tint.GOOD, [throughput_per_s(count) for count in counts]),
            ("p50", "Median latency", "ms", Tint.SHED, [latency_s(count) * 1000 for count in counts]),
            (
                "waiting",
                "Waiting in the downstream",
                "calls, mean",
                Tint.LOAD,
                [max(0.0, count - DOWNSTREAM_WORKERS) for count in counts],
            ),
        )
        for axes, (key, title, unit, tint, theory) in zip(panels, rows, strict=True):
            values = [measured[f"{arm.name}/{key}"] for arm in design_.arms]
            places = draw.settings(axes, labels, "workers")
            draw.bars(axes, places, values, tint, "measured")
            draw.predicted(axes, places, theory)
            draw.labelled(axes, places, values, _short, theory)
            draw.headroom(axes, [*values, *theory])
            axes.set_ylabel(unit)
            draw.titled(axes, title)
            draw.legend(axes)

    return Conclusion(
        measured=measured,
        advice=advice,
        figure=draw.picture("Throughput and latency by the number of workers", advice, drawing),
        caption=f"{OFFERED_PER_S:.0f} calls/s are offered to a downstream that does {DOWNSTREAM_WORKERS} "
        "at a time, "
        f"{SERVICE_S * 1000:.0f} ms each: {DOWNSTREAM_WORKERS / SERVICE_S:.0f} calls/s. The relay's "
        f"queue holds {QUEUE}.",
    )


def _short(value: float) -> str:
    """Three digits, and none after the point where they mean nothing."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _advice(design_: Design, measured: dict[str, float | None]) -> str:
    rows = [
        (throughput, latency, int(arm.name.rpartition("-")[2]))
        for arm in design_.arms
        if (throughput := measured[f"{arm.name}/throughput"]) is not None
        and (latency := measured[f"{arm.name}/p50"]) is not None
    ]
    if len(rows) < len(design_.arms):
        return "Too little was measured to advise on workers; run it again on a quieter machine."
    most = max(throughput for throughput, *_ in rows)
    throughput, latency, enough = next(row for row in rows if row[0] >= 0.95 * most)
    few = rows[0]
    many = rows[-1]
    useless = (
        f" {many[2]} workers gave {many[0]:.0f} calls/s with a median of {many[1]:.0f} ms: what is "
        "beyond the "
        "downstream's capacity waits there, where the relay can no longer shed it or let a more critical "
        "call past."
        if many[2] > enough
        else ""
    )
    return (
        f"Of these choose {enough} workers: {throughput:.0f} calls/s, median {latency:.0f} ms. {few[2]} gave "
        f"{few[0]:.0f} calls/s ({few[1]:.0f} ms) because a worker does one call per service "
        f"time.{useless} Set "
        "workers a little above what the upstream does at a time (throughput x service time), or let "
        "`relay.admission.limit` find it."
    )


WORKERS_EXPERIMENT = Experiment(
    name="workers",
    title="Workers: how many calls at once?",
    question="More is offered than the downstream can do. How do throughput and latency follow the number of "
    "calls that the relay lets out at once?",
    scaled="",
    design=design,
    conclude=conclude,
)
