"""How long may the queue be? The same spike at queues of 10, 100 and 1000, and at no limit of workers."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from chaos.experiments import draw
from chaos.experiments.arm import Arm, Evidence
from chaos.experiments.downstreams import limited
from chaos.experiments.experiment import Conclusion, Design, Experiment, Pace, Results
from chaos.experiments.policies import PLENTY, policy
from chaos.experiments.prediction import Prediction, within
from chaos.model import Interval
from chaos.plan import Arrivals, Profile, Step
from chaos.report import Measure
from chaos.report.svg import Tint

SPIKE_RATE_PER_S = 600.0
SERVICE_S = 0.04
RELAY_SPARE_WORKERS = 3
"""Beyond the downstream's own: so the downstream is never idle while a call is on its way to it."""
TIMEOUT_S = 30.0
"""So long that every accepted call is served and its wait is seen whole."""
UNLIMITED = "no-workers"
UNLIMITED_QUEUE = 10
TOLERANCE = 0.15
SHED_POINTS = 0.05


@dataclass(frozen=True, slots=True)
class Spike:
    """More than the downstream can do, for a while; then nothing."""

    duration_s: float
    downstream_workers: int
    queues: tuple[int, ...]

    @property
    def calls(self) -> int:
        """How many are offered."""
        return round(SPIKE_RATE_PER_S * self.duration_s)

    @property
    def capacity_per_s(self) -> float:
        """What the downstream can do."""
        return self.downstream_workers / SERVICE_S

    @property
    def relay_workers(self) -> int:
        """Calls that the relay lets out at once."""
        return self.downstream_workers + RELAY_SPARE_WORKERS

    def accepted(self, queue: int) -> float:
        """Fluid limit: what is served during the spike, and what waits or is under way at its end."""
        return min(self.calls, self.capacity_per_s * self.duration_s + queue + self.relay_workers)

    def longest_wait_s(self, queue: int) -> float:
        """Little's law: as many as are ahead, at the rate they are served."""
        excess = self.calls - self.capacity_per_s * self.duration_s
        return min(queue + self.relay_workers, excess) / self.capacity_per_s


SPIKES = {
    Pace.FULL: Spike(duration_s=1.8, downstream_workers=5, queues=(10, 100, 1000)),
    Pace.QUICK: Spike(duration_s=0.5, downstream_workers=10, queues=(10,)),
}


def design(pace: Pace) -> Design:
    """One arm for each queue, then one with a queue and no limit of workers."""
    spike = SPIKES[pace]
    arms = [
        _arm(
            f"queue-{queue}",
            f"a queue of {queue:,}, {spike.relay_workers} workers",
            queue,
            spike.relay_workers,
            spike,
        )
        for queue in spike.queues
    ]
    predictions: list[Prediction] = []
    for queue, arm in zip(spike.queues, arms, strict=True):
        shed = 1 - spike.accepted(queue) / spike.calls
        longest_ms = spike.longest_wait_s(queue) * 1000
        predictions += [
            Prediction(
                f"{arm.name}/shed",
                f"shed, queue of {queue:,}",
                "%",
                shed,
                Interval(max(0.0, shed - SHED_POINTS), min(1.0, shed + SHED_POINTS)),
                "what exceeds the service rate for the length of the spike, less the places to wait",
            ),
            Prediction(
                f"{arm.name}/p99",
                f"p99 latency, queue of {queue:,}",
                "ms",
                longest_ms,
                within(TOLERANCE, longest_ms, floor=2000 * SERVICE_S),
                "(queue + workers) / service rate: the last one in waits for all ahead of it",
            ),
        ]
    arms.append(
        _arm(
            UNLIMITED, f"a queue of {UNLIMITED_QUEUE}, workers without limit", UNLIMITED_QUEUE, PLENTY, spike
        )
    )
    unlimited_ms = spike.longest_wait_s(spike.calls) * 1000
    predictions += [
        Prediction(
            f"{UNLIMITED}/queue",
            "longest queue, workers without limit",
            "calls",
            0,
            Interval(0, 0),
            "a call waits only while no worker is free, so without a limit of workers the queue never fills",
        ),
        Prediction(
            f"{UNLIMITED}/p99",
            "p99 latency, workers without limit",
            "ms",
            unlimited_ms,
            within(TOLERANCE, unlimited_ms, floor=2000 * SERVICE_S),
            "all of the excess waits, in the downstream, where nobody refuses it: excess / service rate",
        ),
    ]
    return Design(tuple(arms), tuple(predictions))


def _arm(name: str, title: str, queue: int, workers: int, spike: Spike) -> Arm:
    return Arm(
        name=name,
        title=title,
        policy=policy(workers=workers, queue=queue),
        downstream=limited(spike.downstream_workers, SERVICE_S, queue=10_000),
        profile=Profile((Step(SPIKE_RATE_PER_S, spike.duration_s),), Arrivals.CONSTANT, spike.calls),
        timeout_s=TIMEOUT_S,
        sample_every_s=0.05,
    )


def conclude(design_: Design, results: Results) -> Conclusion:
    """Shed share against latency."""
    measured: dict[str, float | None] = {}
    for arm in design_.arms:
        evidence = results[arm.name]
        measured[f"{arm.name}/shed"] = evidence.shed
        measured[f"{arm.name}/p99"] = evidence.latency_ms(99)
        measured[f"{arm.name}/queue"] = evidence.queue_peak if evidence.sound else None
    observed = [
        Measure(f"memory that {arm.title} added", "MB", round(grown_mb, 1))
        for arm in design_.arms
        if (grown_mb := memory_grown_mb(results[arm.name])) is not None
    ]
    advice = _advice(design_, measured)

    def drawing(figure: Figure) -> None:
        shed, latency, memory = figure.subplots(1, 3)
        labels = [_label(arm) for arm in design_.arms]
        expected = {prediction.key: prediction.expected for prediction in design_.predictions}
        values = [measured[f"{arm.name}/shed"] for arm in design_.arms]
        places = draw.settings(shed, labels, "queue")
        draw.bars(shed, places, values, Tint.SHED, "measured")
        theory = [expected.get(f"{arm.name}/shed", 0.0) for arm in design_.arms]
        draw.predicted(shed, places, theory)
        draw.labelled(shed, places, values, "{:.0%}".format, theory)
        draw.percent(shed)
        draw.titled(shed, "Shed of the spike")
        draw.legend(shed)
        values = [measured[f"{arm.name}/p99"] for arm in design_.arms]
        draw.settings(latency, labels, "queue")
        in_s = [value / 1000 if value is not None else None for value in values]
        draw.bars(latency, places, in_s, Tint.GOOD, "measured")
        theory = [expected[f"{arm.name}/p99"] / 1000 for arm in design_.arms]
        draw.predicted(latency, places, theory)
        draw.labelled(latency, places, in_s, "{:.2g} s".format, theory)
        draw.headroom(latency, in_s)
        latency.set_ylabel("seconds")
        draw.titled(latency, "p99 latency of what was served")
        draw.legend(latency)
        peaks = [measured[f"{arm.name}/queue"] for arm in design_.arms]
        draw.settings(memory, labels, "queue")
        draw.bars(memory, places, peaks, Tint.LOAD, "measured")
        draw.labelled(memory, places, peaks, "{:,.0f}".format)
        draw.headroom(memory, peaks)
        memory.set_ylabel("calls")
        draw.titled(memory, "Longest queue in the relay")

    return Conclusion(
        measured=measured,
        advice=advice,
        figure=draw.picture("Shed, latency and queue by queue size", advice, drawing),
        caption="The same spike at each setting. The last setting limits nothing: its queue stays empty, and "
        "all the waiting is done in the downstream.",
        observed=tuple(observed),
    )


def memory_grown_mb(evidence: Evidence) -> float | None:
    """What the relay's memory rose by, at most; None where the system does not tell."""
    if evidence.memory_peak_mb is None or evidence.memory_before_mb is None:
        return None
    return max(0.0, evidence.memory_peak_mb - evidence.memory_before_mb)


def _label(arm: Arm) -> str:
    return (
        f"{UNLIMITED_QUEUE},\nno limit\nof workers" if arm.name == UNLIMITED else arm.name.rpartition("-")[2]
    )


def _advice(design_: Design, measured: dict[str, float | None]) -> str:
    first, last = design_.arms[0].name, design_.arms[-2].name
    known = {key: value for key, value in measured.items() if value is not None}
    if len(known) < len(measured):
        return "Too little was measured to advise on the queue; run it again on a quieter machine."
    longest = (
        f" At the other end, a queue of {_label(design_.arms[-2])} shed {known[f'{last}/shed']:.0%} and one "
        f"caller in a hundred waited {known[f'{last}/p99'] / 1000:.1f} s."
        if last != first
        else ""
    )
    return (
        "Choose the queue from the wait your callers accept: service rate x accepted wait, and no more. "
        f"A queue of {_label(design_.arms[0])} shed {known[f'{first}/shed']:.0%} of the spike and "
        "answered the "
        f"rest within {known[f'{first}/p99']:.0f} ms (p99).{longest} A queue absorbs a spike; it adds no "
        "capacity, so what it does not shed it delays. And limit the workers: without a limit the queue held "
        f"at most {known[f'{UNLIMITED}/queue']:.0f} calls, nothing was refused, and one caller in a hundred "
        f"waited {known[f'{UNLIMITED}/p99'] / 1000:.1f} s all the same, in the downstream."
    )


QUEUE = Experiment(
    name="queue",
    title="Queue: how long may it be?",
    question="A spike offers several times what the downstream can do. How much is shed, how long does "
    "the rest "
    "wait, and what does the queue do when the number of workers has no limit?",
    scaled="",
    design=design,
    conclude=conclude,
)
