"""More calls than the upstream can serve: what is still answered in time, and what a refusal costs.

The upstream serves `WORKERS` calls at once, each for `SERVICE_US`, and lets the others wait in a long line,
as most services do. Its capacity is measured in each round, without anything before it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tests.bench import envoy
from tests.bench.cores import Cores
from tests.bench.processes import CouldNotStartError, Process, run_once
from tests.bench.stats import Estimate, estimate
from tests.bench.subjects import (
    Running,
    Start,
    start_bare,
    start_direct,
    start_echo,
    start_protected_envoy,
    start_relay,
)
from tests.bench.toolchain import Tools
from tests.bench.workload import CONNECTIONS

WORKERS = 10
SERVICE_US = 5_000
WAITING_MAX = 100_000
DEADLINE_MS = 200
FACTORS = (3, 10)
"""Offered load in multiples of the capacity."""
RESOURCE_EXHAUSTED = "8"
_SLOW = ("--service-us", str(SERVICE_US), "--workers", str(WORKERS), "--queue", str(WAITING_MAX))
_CAPACITY_CALLERS = 64
_DRAIN_S = 15.0

SUBJECTS: Mapping[str, Start] = {
    "relay": start_relay,
    "direct": start_direct,
    "bare": start_bare,
    "envoy breaker": partial(start_protected_envoy, envoy.Protection.BREAKER),
    "envoy adaptive": partial(start_protected_envoy, envoy.Protection.ADAPTIVE),
}


@dataclass(frozen=True, slots=True)
class Flood:
    """One subject under one multiple of the capacity, in one round. Shares are of the capacity."""

    subject: str
    factor: int
    round: int
    goodput: float
    """Answered OK within the deadline."""
    offered: float
    ok_p99_ms: float | None
    refused: int
    refused_properly: int
    """With RESOURCE_EXHAUSTED."""
    refusal_p99_ms: float | None
    expired: int
    """Not answered at all by their deadline."""
    cpu_us_per_call: float | None
    """CPU of the subject per call offered."""
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FloodRow:
    """Medians over the rounds."""

    subject: str
    factor: int
    goodput: Estimate
    refusal_p99_ms: Estimate | None
    ok_p99_ms: Estimate | None
    cpu_us_per_call: Estimate | None
    typed_share: float
    """Of the refusals, those that said RESOURCE_EXHAUSTED."""
    expired_share: float
    """Of the calls, those that heard nothing."""


@dataclass(frozen=True, slots=True)
class FloodPlan:
    """How often and how long."""

    rounds: int
    warmup_s: float
    duration_s: float


FULL = FloodPlan(rounds=5, warmup_s=2.0, duration_s=3.0)
QUICK = FloodPlan(rounds=1, warmup_s=1.0, duration_s=1.0)


@dataclass(frozen=True, slots=True)
class Floods:
    """The run of a plan: every subject at every multiple, interleaved, each in front of a fresh upstream."""

    plan: FloodPlan
    tools: Tools
    cores: Cores
    directory: Path
    subjects: Mapping[str, Start] = field(default_factory=lambda: SUBJECTS)

    def measure(self, say: Callable[[str], None]) -> tuple[list[Flood], list[str]]:
        """What was measured, and what could not be."""
        floods: list[Flood] = []
        problems: list[str] = []
        names = list(self.subjects)
        for number in range(self.plan.rounds):
            say(f"overload: round {number + 1} of {self.plan.rounds}")
            first = number % len(names)
            for name, factor in product([*names[first:], *names[:first]], FACTORS):
                try:
                    floods.append(self._flood(name, factor, number))
                except CouldNotStartError as error:
                    problems.append(f"overload of {name}: {error}")
        return floods, list(dict.fromkeys(problems))

    def _flood(self, name: str, factor: int, number: int) -> Flood:
        with ExitStack() as stack:
            # A line of calls left over from before would be served first.
            address, echo = start_echo(self.tools, self.directory, self.cores.load, *_SLOW, name="slow-echo")
            stack.callback(echo.stop)
            capacity = self._capacity(address)
            subject = self.subjects[name](address, self.directory, self.cores.subject)
            stack.callback(subject.stop)
            result = self._offer(subject, echo, round(factor * capacity), seed=number + 1)
        return interpret(result, subject, factor, number, capacity)

    def _capacity(self, address: str) -> float:
        """Calls per second that the upstream serves with always somebody waiting."""
        command = [
            *self.tools.loadgen,
            *("--port", address.rpartition(":")[2], "--connections", str(CONNECTIONS)),
            *("--concurrency", str(_CAPACITY_CALLERS), "--warmup-s", "0.2", "--duration-s", "0.8"),
            *("--deadline-ms", "5000"),
        ]
        result = run_once("generator", command, self.cores.load, timeout_s=30)
        return float(result["ok"] / result["window_s"])

    def _offer(self, subject: Running, echo: Process, rate: int, seed: int) -> Mapping[str, Any]:
        plan = self.plan
        watched = [echo.pid] if subject.process is None else [echo.pid, subject.process.pid]
        command = [
            *self.tools.loadgen,
            *("--port", str(subject.port), "--connections", str(CONNECTIONS)),
            *("--rate", str(rate), "--deadline-ms", str(DEADLINE_MS), "--seed", str(seed)),
            *("--warmup-s", str(plan.warmup_s), "--duration-s", str(plan.duration_s)),
            *(part for pid in watched for part in ("--watch", str(pid))),
        ]
        timeout_s = plan.warmup_s + plan.duration_s + _DRAIN_S
        return run_once("generator", command, self.cores.load, timeout_s)


def interpret(
    result: Mapping[str, Any], subject: Running, factor: int, number: int, capacity: float
) -> Flood:
    """Turn the generator's counts into a `Flood`."""
    window_s = result["window_s"]
    refused = {code: count for code, count in result["status"].items() if code != "0"}
    ok, refusals = result["latency_ms"], result["refusal_ms"]
    cpu_s = None if subject.process is None else result["cpu_s"][str(subject.process.pid)]
    return Flood(
        subject=subject.name,
        factor=factor,
        round=number,
        goodput=result["ok"] / window_s / capacity,
        offered=result["offered"] / window_s / capacity,
        ok_p99_ms=ok["p99"] if ok else None,
        refused=sum(refused.values()),
        refused_properly=refused.get(RESOURCE_EXHAUSTED, 0),
        refusal_p99_ms=refusals["p99"] if refusals else None,
        expired=result["expired"] + result["lost"] + result["unsent"],
        cpu_us_per_call=None if cpu_s is None else 1e6 * cpu_s / max(result["offered"], 1),
        raw=result,
    )


def flood_rows(floods: list[Flood]) -> list[FloodRow]:
    """Per subject and multiple, in the order of `SUBJECTS`."""
    rows = []
    for factor in FACTORS:
        for name in SUBJECTS:
            found = [flood for flood in floods if (flood.subject, flood.factor) == (name, factor)]
            if found:
                rows.append(_row(name, factor, found))
    return rows


def _row(name: str, factor: int, found: list[Flood]) -> FloodRow:
    refused = sum(flood.refused for flood in found)
    offered = sum(flood.raw["offered"] for flood in found)
    return FloodRow(
        subject=name,
        factor=factor,
        goodput=estimate([flood.goodput for flood in found]),
        refusal_p99_ms=_estimate(flood.refusal_p99_ms for flood in found),
        ok_p99_ms=_estimate(flood.ok_p99_ms for flood in found),
        cpu_us_per_call=_estimate(flood.cpu_us_per_call for flood in found),
        typed_share=sum(flood.refused_properly for flood in found) / max(refused, 1),
        expired_share=sum(flood.expired for flood in found) / max(offered, 1),
    )


def _estimate(values: Iterable[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    return estimate(known) if known else None
