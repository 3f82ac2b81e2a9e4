"""Relays that work on jobs over one store, with an upstream that fails; a seed kills and stalls them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from job_store import MemoryJobs

from relay_service.core.evidence import Delivery, Evidence, Safety
from relay_service.core.job import Job, Work
from relay_service.core.job_policy import JobPolicy, JobRetryPolicy
from relay_service.core.job_step import Run
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.fault_points import nowhere
from relay_service.jobs.counters import JobCounters
from relay_service.jobs.workers import MethodRules, Workers
from relay_service.ports import Headers

LEASE_S = 3.0
PROGRESS_S = 10.0
POLICY = JobPolicy(
    workers=4,
    lease_s=LEASE_S,
    progress_s=PROGRESS_S,
    poison_after=5,
    retry=JobRetryPolicy(max_attempts=12, initial_backoff_s=0.5, max_backoff_s=4.0),
)


class Gate:
    """What a stalled relay waits before; every request and every answer of it passes here."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    async def stall(self, seconds: float) -> None:
        self._open.clear()
        await asyncio.sleep(seconds)
        self._open.set()

    async def passed(self) -> None:
        await self._open.wait()


class GatedStore:
    """The store as one relay reaches it."""

    def __init__(self, store: MemoryJobs, gate: Gate, draw: Random) -> None:
        self._store, self._gate, self._draw = store, gate, draw

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in ("work_arrived", "now"):
            return method

        async def gated(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(self._draw.uniform(0, 0.02))
            await self._gate.passed()
            result = await method(*args, **kwargs)
            await self._gate.passed()
            return result

        return gated


class Upstream:
    """Executes, answers, fails; remembers keys unless ``honours_keys`` is False.

    State: the effects by key, their order, and the runs begun under each key.
    """

    def __init__(self, draw: Random, *, honours_keys: bool, failures: float, slow: float) -> None:
        self._draw, self._honours_keys, self._failures, self._slow = draw, honours_keys, failures, slow
        self.effects: Counter[bytes] = Counter()
        self.order: list[bytes] = []
        self.longest_s = 0.0

    async def call(self, key: bytes, gate: Gate) -> Run:
        await gate.passed()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await self._call(key, gate)
        finally:
            self.longest_s = max(self.longest_s, loop.time() - began)

    async def _call(self, key: bytes, gate: Gate) -> Run:
        await asyncio.sleep(self._draw.uniform(0.01, 0.3))
        fate = self._draw.random()
        if fate < self._failures:
            return _end(Code.UNAVAILABLE, Evidence.REFUSED, Delivery.ANSWERED)
        if not (self._honours_keys and key in self.effects):
            self.effects[key] += 1
            self.order.append(key)
        if self._draw.random() < self._slow:
            await asyncio.sleep(2 * PROGRESS_S)
        await gate.passed()
        if fate < 2 * self._failures:
            return _end(Code.UNAVAILABLE, Evidence.AMBIGUOUS, Delivery.UNANSWERED)
        return _end(Code.OK, Evidence.DEFINITE, Delivery.ANSWERED)


def _end(code: Code, evidence: Evidence, delivery: Delivery) -> Run:
    fate = Fate.OK if code is Code.OK else Fate.ERROR
    return Run(Verdict(code, "", Origin.UPSTREAM, fate, evidence=evidence, attempts=1), delivery, b"answer")


class ModelCarrier:
    """One relay's way to the upstream."""

    def __init__(self, upstream: Upstream, gate: Gate, safety: Safety) -> None:
        self._upstream, self._gate, self._safety = upstream, gate, safety

    def is_repeatable(self, work: Work) -> bool:
        return self._safety.allows_repeat(has_key=True)

    async def carry(self, job: Job) -> Run:
        return await self._upstream.call(job.work.key, self._gate)

    async def call(self, method: str, metadata: Headers, request: bytes, jobs: Sequence[Job]) -> Run:
        raise AssertionError("no batches here")


class Node:
    """A relay; `kill` is kill -9: nothing it had in hand is settled."""

    def __init__(
        self, name: str, store: MemoryJobs, upstream: Upstream, safety: Safety, draw: Random
    ) -> None:
        self.gate = Gate()
        loop = asyncio.get_running_loop()
        numbers = iter(range(10**9))
        self.workers = Workers(
            GatedStore(store, self.gate, draw),
            ModelCarrier(upstream, self.gate, safety),
            MethodRules(batch=lambda _: None, retryable=lambda _: frozenset(), policy_text=lambda _: ""),
            jobs=POLICY,
            letters=LetterPolicy(),
            worker=name,
            clock=store.now,
            now=loop.time,
            new_id=lambda: f"{name}-{next(numbers)}",
            rng=draw,
            fault_point=nowhere,
            counters=JobCounters(),
        )
        before = asyncio.all_tasks()
        self.workers.start()
        self._first = sorted(asyncio.all_tasks() - before, key=asyncio.Task.get_name)

    async def kill(self) -> None:
        tasks = [*self._first, *self.workers._runs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


MakeStore = Callable[[Callable[[], float]], MemoryJobs]
