"""Watching while it runs: the load that really arrives at the downstream, and what the relay says of itself.

Attempts are counted where they arrive and not where they are claimed, so a retry storm cannot hide.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from chaos.client import CHANNEL_OPTIONS
from chaos.downstream import Downstream
from chaos.history import HistoryWriter, LoadSample, RelaySample
from protos.relay.v1 import admin_pb2, admin_pb2_grpc

BEAT_S = 0.1
SAMPLE_TIMEOUT_S = 1.0
CPU_PRESSURE = Path("/proc/pressure/cpu")
BREAKER_STATES = ("CLOSED", "HALF_OPEN", "OPEN")
"""From well to ill; of several breakers the worst is shown."""


@contextlib.asynccontextmanager
async def sampling(
    downstream: Downstream, history: HistoryWriter, beat_s: float = BEAT_S
) -> AsyncIterator[None]:
    """Add a `LoadSample` to the history every ``beat_s`` while inside; an unanswered one is left out."""
    task = asyncio.create_task(_sample_for_ever(downstream, history, beat_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _sample_for_ever(downstream: Downstream, history: HistoryWriter, beat_s: float) -> None:
    due_s = history.now()
    while True:
        asked_s = history.now()
        with contextlib.suppress(grpc.aio.AioRpcError):
            counters = await downstream.counters(SAMPLE_TIMEOUT_S)
            history.add(
                LoadSample(
                    at_s=history.now(),
                    calls=counters.calls,
                    effects=counters.effects,
                    refused=counters.refused,
                    in_flight=counters.in_flight,
                    queued=counters.queued,
                    wasted=counters.wasted,
                    took_s=round(history.now() - asked_s, 6),
                    cpu_waited_s=cpu_waited_s(),
                )
            )
        due_s = max(due_s + beat_s, history.now())
        await asyncio.sleep(due_s - history.now())


def cpu_waited_s(pressure: Path = CPU_PRESSURE) -> float:
    """Linux's pressure stall information (kernel documentation, accounting/psi); 0 where there is none."""
    try:
        return int(pressure.read_text(encoding="ascii").split("total=")[1].split()[0]) / 1e6
    except (OSError, IndexError, ValueError):
        return 0.0


@contextlib.asynccontextmanager
async def watching_relay(
    admin_address: str, history: HistoryWriter, beat_s: float = BEAT_S
) -> AsyncIterator[None]:
    """Add a `RelaySample` to the history every ``beat_s`` (0.1 s or more) while inside.

    A relay that is away is watched again as soon as it is back at its address.
    """
    async with grpc.aio.insecure_channel(admin_address, options=CHANNEL_OPTIONS) as channel:
        stub: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(channel)
        task = asyncio.create_task(_watch_for_ever(stub, history, beat_s))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _watch_for_ever(
    stub: "admin_pb2_grpc.AdminServiceAsyncStub", history: HistoryWriter, beat_s: float
) -> None:
    request = admin_pb2.WatchStatsRequest()
    request.interval.FromMilliseconds(round(beat_s * 1000))
    while True:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for message in stub.WatchStats(request):
                history.add(relay_sample(message.stats, history.now()))
        await asyncio.sleep(beat_s)


async def look_at_relay(admin_address: str, history: HistoryWriter) -> RelaySample | None:
    """One `RelaySample` now, also added to the history; None when the relay does not answer."""
    async with grpc.aio.insecure_channel(admin_address, options=CHANNEL_OPTIONS) as channel:
        stub: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(channel)
        try:
            answer = await stub.GetStats(admin_pb2.GetStatsRequest(), timeout=SAMPLE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
    sample = relay_sample(answer.stats, history.now())
    history.add(sample)
    return sample


def relay_sample(stats: admin_pb2.Stats, at_s: float) -> RelaySample:
    """What the history keeps of the relay's statistics."""
    calls = stats.calls
    bulkheads = (bulkhead.queue for upstream in stats.upstreams for bulkhead in upstream.bulkheads)
    queues = (stats.queue, *bulkheads)
    breakers = [breaker for upstream in stats.upstreams for breaker in upstream.breakers]
    return RelaySample(
        at_s=at_s,
        uptime_s=stats.uptime.ToTimedelta().total_seconds(),
        received=calls.received,
        ok=calls.ok,
        errors=calls.errors,
        refused=calls.refused,
        cancelled=calls.cancelled,
        in_flight=calls.in_flight,
        queue_length=sum(queue.length for queue in queues),
        workers_busy=sum(queue.workers_busy for queue in queues),
        workers=sum(queue.workers for queue in queues),
        attempts=sum(method.attempts for method in stats.methods),
        retries=sum(method.retries for method in stats.methods),
        breaker=max((breaker.state for breaker in breakers), key=BREAKER_STATES.index, default=""),
        breakers_refused=sum(breaker.refused for breaker in breakers),
        budget_tokens=round(sum(upstream.retry_budget.tokens for upstream in stats.upstreams), 3),
        spans_dropped=stats.telemetry.spans_dropped,
        hedges=sum(upstream.hedging.started for upstream in stats.upstreams),
        hedges_won=sum(upstream.hedging.won for upstream in stats.upstreams),
        hedges_unpaid=sum(upstream.hedging.held_back.get("BUDGET", 0) for upstream in stats.upstreams),
        spans_suppressed=stats.telemetry.spans_afterwards_suppressed,
    )
