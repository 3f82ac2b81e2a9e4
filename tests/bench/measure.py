"""One measurement: the generator run once against one subject, and what its figures mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.bench.processes import run_once
from tests.bench.subjects import Running
from tests.bench.toolchain import Tools
from tests.bench.workload import CONNECTIONS, ClosedLoop, OpenLoop, Workload

_SATURATED = 0.9
"""Share of its core from which a side counts as the bottleneck."""

_LATE_MS = 1.0
_DRAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one subject did with one workload in one round. Latencies are of answered-OK calls, in ms."""

    subject: str
    workload: str
    round: int
    calls_per_s: float
    """OK answers per second of the window."""
    p50_ms: float
    p99_ms: float
    cpu_us_per_call: float | None
    """CPU of the subject's process per answered call; None for `direct`."""
    subject_share: float
    """CPU of the subject as a share of one core."""
    load_share: float
    """CPU of generator and echo together as a share of one core."""
    failed_share: float
    """Calls that ended otherwise than OK."""
    send_lag_p99_ms: float
    """Open loop: how late the generator itself was."""
    generator_bound: bool
    raw: Mapping[str, Any]
    """The generator's own words."""


class NoCallSucceededError(Exception):
    """A measurement without one OK answer; the text has the statuses that came."""


def measure(
    tools: Tools,
    subject: Running,
    workload: Workload,
    round_number: int,
    *,
    echo_pid: int,
    cores: frozenset[int],
    warmup_s: float,
    duration_s: float,
) -> Measurement:
    """Run the generator once.

    Raises `CouldNotStartError` when it could not run and `NoCallSucceededError` when nothing came back.
    """
    watched = [echo_pid] if subject.process is None else [echo_pid, subject.process.pid]
    command = [
        *tools.loadgen,
        *_arguments(subject, workload, seed=round_number),
        *("--warmup-s", str(warmup_s), "--duration-s", str(duration_s)),
        *(part for pid in watched for part in ("--watch", str(pid))),
    ]
    timeout_s = warmup_s + duration_s + workload.deadline_ms / 1000 + _DRAIN_S
    result = run_once("generator", command, cores, timeout_s)
    return interpret(
        result,
        subject=subject.name,
        workload=workload,
        round_number=round_number,
        subject_pid=None if subject.process is None else subject.process.pid,
        echo_pid=echo_pid,
        native=tools.native,
    )


def interpret(
    result: Mapping[str, Any],
    *,
    subject: str,
    workload: Workload,
    round_number: int,
    subject_pid: int | None,
    echo_pid: int,
    native: bool,
) -> Measurement:
    """Turn the generator's counts into a `Measurement`. Raises `NoCallSucceededError`."""
    latency = result["latency_ms"]
    if not result["ok"] or latency is None:
        raise NoCallSucceededError(
            f"{subject}, {workload}: no call succeeded; statuses {dict(result['status'])}"
        )
    window_s = result["window_s"]
    subject_cpu_s = 0.0 if subject_pid is None else result["cpu_s"][str(subject_pid)]
    load_share = (result["generator_cpu_s"] + result["cpu_s"][str(echo_pid)]) / window_s
    subject_share = subject_cpu_s / window_s
    lag = result["send_lag_ms"]
    send_lag_p99_ms = lag["p99"] if lag and isinstance(workload.arrivals, OpenLoop) else 0.0
    return Measurement(
        subject=subject,
        workload=str(workload),
        round=round_number,
        calls_per_s=result["ok"] / window_s,
        p50_ms=latency["p50"],
        p99_ms=latency["p99"],
        cpu_us_per_call=None if subject_pid is None else 1e6 * subject_cpu_s / max(result["answered"], 1),
        subject_share=subject_share,
        load_share=load_share,
        failed_share=_failed(result) / max(result["ok"] + _failed(result), 1),
        send_lag_p99_ms=send_lag_p99_ms,
        generator_bound=not native or _load_was_the_limit(subject_share, load_share, send_lag_p99_ms),
        raw=result,
    )


def _load_was_the_limit(subject_share: float, load_share: float, send_lag_p99_ms: float) -> bool:
    """The load's core was full while the subject's was not, or the generator could not keep its own times."""
    return (load_share >= _SATURATED > subject_share) or send_lag_p99_ms > _LATE_MS


def _failed(result: Mapping[str, Any]) -> int:
    refused = sum(count for code, count in result["status"].items() if code != "0")
    return int(refused + result["expired"] + result["lost"] + result["unsent"] + result["corrupt"])


def _arguments(subject: Running, workload: Workload, seed: int) -> list[str]:
    match workload.arrivals:
        case ClosedLoop(callers):
            load = ["--concurrency", str(callers), "--connections", str(min(callers, CONNECTIONS))]
        case OpenLoop(rate_per_s):
            load = ["--rate", str(rate_per_s), "--connections", str(CONNECTIONS)]
    return [
        *("--port", str(subject.port), *load),
        *("--payload-bytes", str(workload.payload_bytes), "--deadline-ms", str(workload.deadline_ms)),
        *("--seed", str(seed)),
    ]
