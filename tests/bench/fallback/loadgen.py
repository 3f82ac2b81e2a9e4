"""The load generator on grpc.aio, for machines without a C compiler: as ``native/loadgen.c`` outside.

It uses more CPU per call than any subject, so it is the bottleneck itself and its rows are marked
generator-bound. CPU per call of the subject is right all the same.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from tests.bench.proc import cpu_s

_CONNECT_TIMEOUT_S = 1.5
_DRAIN_EXTRA_S = 0.5
_LATE_START_S = 0.005


@dataclass
class _Window:
    """What was seen between the two readings of the clock; see ``native/loadgen.c`` for what counts where."""

    opened: float = float("inf")
    closed: float = float("inf")
    offered: int = 0
    answered: int = 0
    expired: int = 0
    unsent: int = 0
    corrupt: int = 0
    in_flight: int = 0
    in_flight_peak: int = 0
    status: Counter[int] = field(default_factory=Counter)
    ok_ms: list[float] = field(default_factory=list)
    refusal_ms: list[float] = field(default_factory=list)
    send_lag_ms: list[float] = field(default_factory=list)

    def holds(self, moment: float) -> bool:
        return self.opened <= moment < self.closed


class LoadGenerator:
    """One run: warm up, measure, drain."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._deadline_s = arguments.deadline_ms / 1000
        self._payload = b"x" * arguments.payload_bytes
        self._window = _Window()
        self._random = random.Random(arguments.seed)
        self._generating = True

    async def run(self) -> dict[str, Any]:
        """The same object that the native generator prints."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        target = f"127.0.0.1:{self._arguments.port}"
        channels = [
            grpc.aio.insecure_channel(target, options=options) for _ in range(self._arguments.connections)
        ]
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await asyncio.gather(*(channel.channel_ready() for channel in channels))
        except TimeoutError:
            sys.stderr.write(f"connecting to {target}: not within {_CONNECT_TIMEOUT_S:g} s\n")
            raise SystemExit(2) from None
        methods = [channel.unary_unary(self._arguments.path) for channel in channels]
        source = asyncio.create_task(
            self._open_loop(methods) if self._arguments.rate else self._closed_loop(methods)
        )
        try:
            await asyncio.sleep(self._arguments.warmup_s)
            before = self._read_cpu()
            self._window.opened = time.monotonic()
            await asyncio.sleep(self._arguments.duration_s)
            self._window.closed = time.monotonic()
            after = self._read_cpu()
            self._generating = False
            await asyncio.wait([source], timeout=self._deadline_s + _DRAIN_EXTRA_S)
        finally:
            source.cancel()
            for channel in channels:
                await channel.close()
        if source.done() and not source.cancelled() and source.exception():
            raise source.exception()  # type: ignore[misc]  # it is not None here
        return self._result({pid: after[pid] - before[pid] for pid in after})

    async def _closed_loop(self, methods: list[Any]) -> None:
        async def caller(method: Any) -> None:
            while self._generating:
                now = time.monotonic()
                await self._call(method, now, now)

        callers = range(self._arguments.concurrency)
        await asyncio.gather(*(caller(methods[i % len(methods)]) for i in callers))

    async def _open_loop(self, methods: list[Any]) -> None:
        calls: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while self._generating:
            now = time.monotonic()
            if due > now:
                await asyncio.sleep(due - now)
                continue
            if len(calls) < self._arguments.in_flight_max:
                task = asyncio.create_task(self._call(self._random.choice(methods), due, now))
                calls.add(task)
                task.add_done_callback(calls.discard)
            elif self._window.holds(due):
                self._window.offered += 1
                self._window.unsent += 1
            due += self._random.expovariate(self._arguments.rate)
            if now - due > _LATE_START_S:
                await asyncio.sleep(0)  # far behind: let the answers in
        if calls:
            await asyncio.wait(calls)

    async def _call(self, method: Any, due: float, now: float) -> None:
        window = self._window
        if window.holds(due):
            window.offered += 1
            window.send_lag_ms.append((now - due) * 1000)
        window.in_flight += 1
        window.in_flight_peak = max(window.in_flight_peak, window.in_flight)
        status, whole = 0, True
        try:
            reply = await method(self._payload, timeout=max(self._deadline_s - (now - due), 1e-6))
            whole = len(reply) == len(self._payload)
        except grpc.aio.AioRpcError as error:
            status = error.code().value[0]
        finally:
            window.in_flight -= 1
        self._count(due, status, whole=whole)

    def _count(self, due: float, status: int, *, whole: bool) -> None:
        window, now = self._window, time.monotonic()
        if status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0] and now - due >= self._deadline_s:
            window.expired += window.holds(due)
            return
        window.answered += window.holds(now)
        if not window.holds(due if self._arguments.rate else now):
            return
        window.status[status] += 1
        window.corrupt += not whole
        (window.refusal_ms if status else window.ok_ms).append((now - due) * 1000)

    def _read_cpu(self) -> dict[int, float]:
        return {pid: cpu_s(pid) for pid in (os.getpid(), *self._arguments.watch)}

    def _result(self, used_s: dict[int, float]) -> dict[str, Any]:
        window = self._window
        return {
            "window_s": window.closed - window.opened,
            "offered": window.offered,
            "answered": window.answered,
            "ok": window.status[0],
            "expired": window.expired,
            "unsent": window.unsent,
            "lost": 0,
            "corrupt": window.corrupt,
            "reconnects": 0,
            "in_flight_peak": window.in_flight_peak,
            "left_in_flight": window.in_flight,
            "latency_ms": _quantiles(window.ok_ms),
            "refusal_ms": _quantiles(window.refusal_ms),
            "send_lag_ms": _quantiles(window.send_lag_ms),
            "status": {str(code): count for code, count in sorted(window.status.items()) if count},
            "generator_cpu_s": used_s.pop(os.getpid()),
            "cpu_s": {str(pid): seconds for pid, seconds in used_s.items()},
        }


def _quantiles(values_ms: list[float]) -> dict[str, float] | None:
    if not values_ms:
        return None
    ordered = sorted(values_ms)
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: ordered[min(int(q * len(ordered)), len(ordered) - 1)] for name, q in ranks.items()}


def main() -> None:
    """Measure once and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fallback.loadgen", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/bench.Echo/Call")
    parser.add_argument("--connections", type=int, default=4)
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--concurrency", type=int, default=0)
    load.add_argument("--rate", type=float, default=0)
    parser.add_argument("--payload-bytes", type=int, default=100)
    parser.add_argument("--deadline-ms", type=int, default=5000)
    parser.add_argument("--in-flight-max", type=int, default=20_000)
    parser.add_argument("--warmup-s", type=float, default=0.5)
    parser.add_argument("--duration-s", type=float, default=2.0)
    parser.add_argument("--watch", type=int, action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    print(json.dumps(asyncio.run(LoadGenerator(parser.parse_args()).run())))


if __name__ == "__main__":
    main()
