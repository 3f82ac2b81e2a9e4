"""Where an act plays: the running stack, and phases of load whose evidence is kept."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from chaos.client import Client
from chaos.demo.narrator import Narrator
from chaos.downstream import Downstream
from chaos.history import CallRecord, FaultWindow, HistoryWriter, LedgerEntry, Phase
from chaos.observe import sampling
from chaos.stack import Member, Stack
from chaos.tracing import ClientTracing
from protos.downstream.v1 import fault_pb2

Drive = Callable[[Client], Awaitable[int]]
"""Makes the calls of a phase and returns how many were planned."""


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """What a phase needs besides its load."""

    name: str
    title: str
    policy: str
    """The relay's preset during this phase."""
    downstream: fault_pb2.SetFaultsRequest
    fault_title: str | None = None
    """How the downstream's trouble is called in the history; None when it is healthy."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a phase left behind for its judges."""

    name: str
    planned_count: int
    calls: tuple[CallRecord, ...]
    ledger: tuple[LedgerEntry, ...]
    """What this phase added."""
    arrived: int
    """Attempts that reached the downstream."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything an act may touch."""

    stack: Stack
    history: HistoryWriter
    tracing: ClientTracing
    downstream: Downstream
    narrator: Narrator
    seed: int

    async def phase(self, plan: PhasePlan, drive: Drive, planned_about: int) -> Evidence:
        """Set the stack up as planned, make the calls, heal the downstream, and collect the evidence."""
        if self.stack.policy != plan.policy:
            await self.stack.restart(Member.RELAY, policy=plan.policy)
        sequence = await self.downstream.last_sequence()
        await self.downstream.set_faults(plan.downstream)
        before = await self.downstream.counters()
        begin_s = self.history.now()
        async with (
            Client(self.stack.addresses.relay, self.history, self.tracing) as client,
            sampling(self.downstream, self.history),
            self.narrator.watching(plan.title, planned_about, self.history),
        ):
            planned_count = await drive(client)
        end_s = self.history.now()
        after = await self.downstream.counters()
        await self.downstream.clear_faults()
        self.history.add(Phase(plan.name, plan.title, begin_s, end_s))
        if plan.fault_title is not None:
            self.history.add(FaultWindow(plan.name, plan.fault_title, begin_s, end_s))
        ledger = await self.downstream.ledger(after_sequence=sequence)
        for entry in ledger:
            self.history.add(entry)
        return Evidence(plan.name, planned_count, self.history.take(), ledger, after.calls - before.calls)


@contextlib.asynccontextmanager
async def open_stage(
    stack: Stack, history: HistoryWriter, tracing: ClientTracing, narrator: Narrator, seed: int
) -> AsyncIterator[Stage]:
    """The stage on a running stack."""
    async with Downstream(stack.addresses.downstream) as downstream:
        yield Stage(stack, history, tracing, downstream, narrator, seed)
