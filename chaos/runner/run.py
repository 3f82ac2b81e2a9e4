"""One run from start to finish: processes up, steady, fault, recovery, drain, processes down, verdict, files.

Whatever happens inside (an error, Ctrl-C), the faults are undone and no process is left.
"""

import asyncio
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import grpc

from chaos.client import Client
from chaos.evidence import PHASES, Evidence
from chaos.faults.inject import Rig, play
from chaos.faults.kinds import FaultError, Link
from chaos.findings import Finding, Verdict, worst
from chaos.history import HistoryWriter, Phase, new_run, read_history
from chaos.jobs import jobs_in_the_end
from chaos.observe import look_at_relay, sampling, watching_relay
from chaos.plan import SUBMIT_METHOD, PlannedCall
from chaos.processes import ProcessError
from chaos.runner import output
from chaos.runner.judge import JOBS_END_S, judge_run, measures_of
from chaos.runner.plan import SCHEDULE_FILE, RunConfig
from chaos.runner.rig import front_trace_files, put_up, stack_config, surroundings
from chaos.scenarios.model import OVERTIME_S
from chaos.stack import MemberDiedError, PortBusyError, Stack
from chaos.toxiproxy.errors import ToxiproxyError
from chaos.traces import read_traces, share_to_read
from chaos.tracing import ClientTracing
from chaos.traffic import Limits, run_open_loop

HISTORY_FILE = "history.jsonl"
CLIENT_SPANS_FILE = "client.jsonl"
PLAN_FILE = "plan.json"
IDLE_TIMEOUT_S = 3.0
"""How long the relay may take to be idle once every caller has its answer."""
IDLE_BEAT_S = 0.1
LATE_S = 5.0
"""How much longer than its timeout a call may be waited for at the end."""
_CAN_GO_WRONG = (
    *(ProcessError, PortBusyError, MemberDiedError, ToxiproxyError, FaultError),
    *(grpc.aio.AioRpcError, TimeoutError, OSError),
)


class RunFailedError(RuntimeError):
    """The lab could not do what the run asked for, so nothing can be told; the message says why."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run concluded; its files are in the run's folder."""

    config: RunConfig
    findings: tuple[Finding, ...]
    evidence: Evidence
    summary: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        """The worst of all findings."""
        return worst(self.findings)


async def run_scenario(config: RunConfig, pictures: output.Pictures = output.Pictures.ALWAYS) -> RunResult:
    """Run, judge, and write everything into ``config.out_dir``.

    Raises `RunFailedError` when the lab itself fails; the folder then holds what there was until then.
    """
    try:
        toxiproxy, facts = await _make_history(config)
    except* _CAN_GO_WRONG as group:
        raise RunFailedError("; ".join(_messages(group))) from group
    # The processes wrote their last spans as they ended, so everything is read only now.
    evidence = _evidence(config, *facts)
    findings = judge_run(config, evidence)
    summary = output.summarize(config, toxiproxy, findings, measures_of(evidence))
    output.write_all(config, findings, evidence, summary, pictures)
    return RunResult(config, findings, evidence, summary)


def _messages(group: BaseExceptionGroup[BaseException]) -> list[str]:
    told: list[str] = []
    for error in group.exceptions:
        told += _messages(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return told


Facts = tuple[int, float, float | None]
"""How many operations were planned, when the last caller had its answer, the relay's peak memory in MB."""


async def _make_history(config: RunConfig) -> tuple[str, Facts]:
    """Everything that happens while processes run; leaves the history in its file."""
    config.out_dir.mkdir(parents=True, exist_ok=True)
    (config.out_dir / PLAN_FILE).write_text(config.plan.text(), encoding="utf-8")
    (config.out_dir / SCHEDULE_FILE).write_text(config.plan.schedule.text(), encoding="utf-8")
    for path in front_trace_files(config):
        path.unlink(missing_ok=True)
    async with surroundings(config) as around, Stack(stack_config(config, around)) as stack:
        kind = stack.toxiproxy.server.kind
        head = new_run(config.scenario.name, config.seed, kind)
        with (
            HistoryWriter(config.out_dir / HISTORY_FILE, head, recent_max=0) as history,
            ClientTracing(config.out_dir / CLIENT_SPANS_FILE, config.seed) as tracing,
        ):
            async with put_up(config, stack, history, around) as rig:
                facts = await _phases(config, rig, tracing)
                if any(kind.method == SUBMIT_METHOD for kind in config.scenario.traffic.mix):
                    for job in await jobs_in_the_end(stack.addresses.relay, JOBS_END_S):
                        history.add(job)
                for entry in await rig.board.downstream.ledger():
                    history.add(entry)
    return kind, facts


async def _phases(config: RunConfig, rig: Rig, tracing: ClientTracing) -> Facts:
    """Traffic through steady state, faults and recovery, then the drain."""
    timing, traffic, history = config.timing, config.scenario.traffic, rig.history
    front = rig.links[Link.CLIENT_RELAY].listen
    admin = rig.stack.addresses.relay_admin
    async with (
        Client(front, history, tracing, channels=2) as client,
        sampling(rig.board.downstream, history),
        watching_relay(admin, history),
    ):
        began_s = history.now()
        async with asyncio.TaskGroup() as group:
            breaking = group.create_task(play(config.plan.schedule, rig, began_s + timing.steady_s))
            course = _Course(config, began_s, breaking, history)
            driving = group.create_task(
                run_open_loop(
                    client,
                    takewhile(course.goes_on, config.plan.calls()),
                    timing.phase_at,
                    timeout_s=traffic.timeout_s,
                    limits=Limits(drain_s=traffic.timeout_s * traffic.retry.tries_max + LATE_S),
                    retry=traffic.retry,
                )
            )
        drained_s = history.now()
        await _until_idle(rig)
    for phase in course.phases():
        history.add(phase)
    rig.weigh_relay()
    return driving.result(), drained_s, rig.relay_memory_peak_mb


class _Course:
    """How long the traffic goes on: until everything has been whole again for the length of the recovery.

    Mending can take longer than planned (a process starts slowly on a busy machine), and a recovery that
    nobody calls in cannot be judged. State: when the last fault was mended.
    """

    def __init__(
        self, config: RunConfig, began_s: float, breaking: asyncio.Task[None], history: HistoryWriter
    ) -> None:
        self._timing = config.timing
        self._began_s = began_s
        self._mended_at_s: float | None = None
        breaking.add_done_callback(lambda _: self._mended(history.now() - began_s))

    def goes_on(self, call: PlannedCall) -> bool:
        """Whether this call of the plan is still wanted."""
        return call.at_s < self._end_s()

    def phases(self) -> tuple[Phase, ...]:
        """The phases as they were."""
        timing = self._timing
        ends = (timing.steady_s, timing.steady_s + timing.fault_s, self._end_s())
        spans = zip(PHASES, (0.0, *ends[:-1]), ends, strict=True)
        return tuple(
            Phase(name, name, self._began_s + low, self._began_s + high) for name, low, high in spans
        )

    def _mended(self, at_s: float) -> None:
        self._mended_at_s = at_s

    def _end_s(self) -> float:
        if self._mended_at_s is None:
            return self._timing.total_s + OVERTIME_S
        return max(self._timing.total_s, self._mended_at_s + self._timing.recovery_s)


async def _until_idle(rig: Rig) -> None:
    """Give work that outlives its callers a moment to end, and record how the relay looks then."""
    give_up_s = rig.history.now() + IDLE_TIMEOUT_S
    while rig.history.now() < give_up_s:
        look = await look_at_relay(rig.stack.addresses.relay_admin, rig.history)
        if look is not None and not (look.in_flight or look.queue_length or look.workers_busy):
            return
        await asyncio.sleep(IDLE_BEAT_S)


def _evidence(
    config: RunConfig, planned_count: int, drained_s: float, relay_memory_peak_mb: float | None
) -> Evidence:
    spans = [
        config.out_dir / CLIENT_SPANS_FILE,
        *(config.out_dir / name for name in ("relay.jsonl", "downstream.jsonl")),
        *front_trace_files(config),
    ]
    one_in = share_to_read(spans)
    return Evidence(
        history=read_history(config.out_dir / HISTORY_FILE),
        traces=read_traces(spans, one_in),
        planned_count=planned_count,
        faults_planned=len(config.plan.schedule.faults),
        drained_s=drained_s,
        traces_one_in=one_in,
        relay_memory_peak_mb=relay_memory_peak_mb,
    )
