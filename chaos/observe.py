"""Watching the load that really arrives: the downstream's counters, read at a steady beat.

Attempts are counted where they arrive and not where they are claimed, so a retry storm cannot hide.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc

from chaos.downstream import Downstream
from chaos.history import HistoryWriter, LoadSample

BEAT_S = 0.1
SAMPLE_TIMEOUT_S = 1.0


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
                )
            )
        due_s = max(due_s + beat_s, history.now())
        await asyncio.sleep(due_s - history.now())
