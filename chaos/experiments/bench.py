"""Runs arms on a stack of real processes: each with a relay of its own, all with the same downstream."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from chaos.client import CHANNEL_OPTIONS, Client
from chaos.downstream import Downstream
from chaos.experiments.arm import Arm, Evidence, Gauge, Outage
from chaos.experiments.experiment import Results
from chaos.faults import network_fault
from chaos.history import HistoryWriter, LoadSample, Phase, read_entries
from chaos.memory import memory_mb
from chaos.observe import sampling
from chaos.plan import LIST, make_plan
from chaos.stack import Member, Stack
from chaos.tracing import ClientTracing
from chaos.traffic import Limits, run_open_loop
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

GAUGE_BEAT_S = 0.05
GAUGE_TIMEOUT_S = 1.0
LIMITS = Limits(in_flight_max=4000)


@dataclass(frozen=True, slots=True)
class Bench:
    """A running stack with what is needed to load it and to look at it."""

    stack: Stack
    history: HistoryWriter
    tracing: ClientTracing
    downstream: Downstream
    seed: int
    policies: Path
    """A folder for the arms' policy files."""

    async def measure(self, arm: Arm) -> Evidence:
        """Run one arm to its last answer; the downstream is healthy again afterwards."""
        policy = write_policy(arm, self.policies)
        if self.stack.policy != policy:
            await self.stack.restart(Member.RELAY, policy=policy)
        relay_pid = self.stack.pids()[Member.RELAY.value]
        await self.downstream.set_faults(arm.downstream)
        before = await self.downstream.counters()
        plan = make_plan(arm.name, arm.profile, (LIST,), self.seed, traced_share=0.0)
        gauges: list[Gauge] = []
        self.history.take()
        async with Client(self.stack.addresses.relay, self.history, self.tracing) as client:
            memory_before_mb = memory_mb(relay_pid, "VmRSS")
            begin_s = self.history.now()
            async with (
                sampling(self.downstream, self.history, arm.sample_every_s),
                self._gauging(gauges),
                self._outage(arm.outage),
            ):
                await run_open_loop(client, plan, arm.name, timeout_s=arm.timeout_s, limits=LIMITS)
        after = await self.downstream.counters()
        await self.downstream.clear_faults()
        end_s = self.history.now()
        self.history.add(Phase(arm.name, arm.title, begin_s, end_s))
        return Evidence(
            begin_s=begin_s,
            end_s=end_s,
            calls=self.history.take(),
            loads=(),
            gauges=tuple(gauges),
            arrived_before=before.calls,
            arrived=after.calls - before.calls,
            memory_before_mb=memory_before_mb,
            memory_peak_mb=memory_mb(relay_pid, "VmHWM"),
        )

    @contextlib.asynccontextmanager
    async def _gauging(self, gauges: list[Gauge]) -> AsyncIterator[None]:
        task = asyncio.create_task(self._gauge_for_ever(gauges))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _gauge_for_ever(self, gauges: list[Gauge]) -> None:
        async with grpc.aio.insecure_channel(
            self.stack.addresses.relay_admin, options=CHANNEL_OPTIONS
        ) as channel:
            admin: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(channel)
            while True:
                asked_s = self.history.now()
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await admin.GetStats(admin_pb2.GetStatsRequest(), timeout=GAUGE_TIMEOUT_S)
                    queue = answer.stats.queue
                    now_s = self.history.now()
                    gauges.append(Gauge(now_s, queue.length, queue.workers_busy, now_s - asked_s))
                await asyncio.sleep(GAUGE_BEAT_S)

    @contextlib.asynccontextmanager
    async def _outage(self, outage: Outage | None) -> AsyncIterator[None]:
        task = asyncio.create_task(self._break_and_heal(outage)) if outage else None
        try:
            yield
            if task is not None:
                await task
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _break_and_heal(self, outage: Outage) -> None:
        proxy = await self.stack.proxy()
        await asyncio.sleep(outage.after_s)
        async with network_fault(proxy, outage.fault, self.history):
            await asyncio.sleep(outage.for_s)


def write_policy(arm: Arm, folder: Path) -> str:
    """The arm's policy as a file; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{arm.name}.json"
    path.write_text(json.dumps(arm.policy, indent=2) + "\n", encoding="utf-8")
    return str(path)


def with_loads(results: Results, history: Path) -> Results:
    """The evidence of each arm with what was seen of the downstream meanwhile, from the run's history."""
    samples = [entry for entry in read_entries(history) if isinstance(entry, LoadSample)]
    return {
        name: replace(
            evidence,
            loads=tuple(each for each in samples if evidence.begin_s <= each.at_s <= evidence.end_s),
        )
        for name, evidence in results.items()
    }
