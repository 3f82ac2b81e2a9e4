"""All keyed calls of this relay: one flight a key, bounded lists of those who wait, the leases."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Protocol

from relay_service.core.idempotency import Scope
from relay_service.core.key_policy import InFlight, KeyLimits
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.reason import Reason
from relay_service.fault_points import FaultPoint, nowhere
from relay_service.idempotency.books import Books
from relay_service.idempotency.caller import KeyedCall
from relay_service.idempotency.counters import KeyCounters, KeysState, StoreTimes, untimed
from relay_service.idempotency.flight import Flight, FlightHost, Ground
from relay_service.idempotency.leases import Leases
from relay_service.idempotency.outcome import refused
from relay_service.stores.interface import Store, StoreError
from relay_service.workers import Workers

SWEEP_EVERY_S = 10.0
SWEEP_ROWS = 500
SWEEP_PAUSE_S = 0.05
"""Between two batches of a sweep that has much to do, so that it holds nobody up."""

log = logging.getLogger(__name__)


class KeysHost(FlightHost, Protocol):
    """What the keys need of the relay."""

    workers: Workers


@dataclass(frozen=True, slots=True)
class KeysSetup:
    """What the composition root gives the keys."""

    store: Store
    owner: str
    """This relay's instance id: new for each process."""
    reached: FaultPoint = nowhere
    store_took: StoreTimes = untimed


class Keys:
    """State: the flights by scope, their tasks, how many callers wait, the leases, and the sweep."""

    def __init__(self, host: KeysHost, setup: KeysSetup, limits: KeyLimits, letters: LetterPolicy) -> None:
        self._host = host
        self._limits = limits
        self.store = setup.store
        self._leases = Leases(setup.store, setup.owner, limits.lease_s)
        self.counters = KeyCounters()
        self._flights: dict[Scope, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._waiting = 0
        self._ground = Ground(
            host,
            Books(setup.store, letters, self.counters, setup.store_took, host.now),
            self._leases,
            setup.reached,
            self._landed,
        )

    @property
    def waiting(self) -> int:
        """Callers that are there and for whom no work counts."""
        return self._waiting

    @property
    def settling(self) -> int:
        """Flights whose work is over while its end is being stored, or looked at once more."""
        return sum(flight.settling for flight in self._flights.values())

    def state(self) -> KeysState:
        """What is going on."""
        return KeysState(len(self._flights), self._waiting, len(self._leases), self.counters)

    def came(self) -> None:
        """See `relay_service.idempotency.caller.Desk`."""
        self._waiting += 1

    def went(self) -> None:
        """See `relay_service.idempotency.caller.Desk`."""
        self._waiting -= 1

    def board(self, caller: KeyedCall, scope: Scope, fingerprint: bytes, framed: bytes) -> Flight | None:
        """Put a caller on the flight of its key; None when it was answered at once."""
        flight = self._flights.get(scope)
        reason = self._full(framed) if flight is None else self._no_seat(flight, fingerprint, caller)
        if reason is not None:
            pushback_s = self._host.workers.pushback_s(reason, self._host.now())
            crowded = reason is Reason.QUEUE_FULL
            caller.settle(refused(reason, scope.method, pushback_s=pushback_s if crowded else None))
            return None
        if flight is None:
            flight = self._flights[scope] = Flight(
                self._ground, scope, fingerprint, framed, caller.intent.repeatable
            )
            flight.take(caller)
            task = asyncio.get_running_loop().create_task(flight.run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            flight.take(caller)
        return flight

    def _full(self, framed: bytes) -> Reason | None:
        if self._waiting > self._limits.waiters or not self._host.workers.hold_request(len(framed)):
            return Reason.QUEUE_FULL
        return None

    def _no_seat(self, flight: Flight, fingerprint: bytes, caller: KeyedCall) -> Reason | None:
        if flight.fingerprint != fingerprint:
            return Reason.IDEMPOTENCY_KEY_REUSED
        abort = flight.under_way and caller.intent.keys.in_flight is InFlight.ABORT
        crowded = flight.callers >= self._limits.waiters_per_key or self._waiting > self._limits.waiters
        return Reason.IDEMPOTENCY_IN_PROGRESS if abort or crowded else None

    def _landed(self, flight: Flight) -> None:
        del self._flights[flight.scope]
        self._host.workers.let_go_of_request(flight.size_bytes)

    def open(self) -> None:
        """Begin to forget what has expired; the store is open."""
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep(), name="expired keys are swept")

    async def idle(self, timeout_s: float) -> None:
        """Wait until every flight has landed, those without a caller too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Abandon what is left: its leases run out, and its outcomes are unknown."""
        self._leases.close()
        tasks = [*self._tasks, *([self._sweeping] if self._sweeping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _sweep(self) -> None:
        tombstone_s, pause_s = self._limits.tombstone_s, SWEEP_EVERY_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = SWEEP_EVERY_S
            try:
                if await self.store.sweep_keys(tombstone_s=tombstone_s, limit=SWEEP_ROWS) == SWEEP_ROWS:
                    pause_s = SWEEP_PAUSE_S
            except StoreError as error:
                log.warning("expired keys could not be swept: %s", error)
