"""The composition root: builds the parts, starts them, and stops them in the order that loses nothing."""

import asyncio
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import structlog

from downstream_service.book import IN_MEMORY, KeyPolicy
from downstream_service.calls import Calls, FaultReader
from downstream_service.capacity import Capacity
from downstream_service.effects import Effects
from downstream_service.fault_board import FaultBoard
from downstream_service.fault_input import faults_of_call, read_request
from downstream_service.fault_service import FaultService
from downstream_service.handler import PaymentService
from downstream_service.ledger import Ledger
from downstream_service.server import Health, bind, build_server
from downstream_service.telemetry import Telemetry, exporters_for
from protos.downstream.v1 import fault_pb2

GRACE_S: Final = 10.0
# What a call that has ended needs to leave the process; streams of health watchers end after it.
FLUSH_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run the service; ``grace_s`` bounds the calls in flight once a stop is asked for."""

    host: str = "127.0.0.1"
    port: int = 50052
    ledger: str = IN_MEMORY
    faults_file: Path | None = None
    seed: int | None = None
    trace_file: Path | None = None
    key_policy: KeyPolicy = KeyPolicy.ENFORCE
    own_faults: FaultReader = faults_of_call
    grace_s: float = GRACE_S


async def serve(
    settings: Settings,
    log: structlog.typing.FilteringBoundLogger,
    announce: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    ``announce`` is told the address once calls are served. Raises ``InvalidInputError``, ``LedgerError``,
    ``TelemetryError`` or ``BindError`` when the service cannot start.
    """
    first_faults = fault_pb2.SetFaultsRequest()
    if settings.faults_file is not None:
        first_faults = read_request(settings.faults_file)
    own_seed = secrets.randbits(31) + 1 if settings.seed is None else settings.seed
    telemetry = Telemetry(exporters_for(settings.trace_file))
    ledger = Ledger(settings.ledger, settings.key_policy)
    try:
        capacity = Capacity()
        board = FaultBoard(first_faults, own_seed, capacity)
        calls = Calls(board, telemetry, log, die=os._exit, own_faults=settings.own_faults)
        payments = PaymentService(calls, Effects(ledger, capacity), ledger)
        health = Health()
        server = build_server(payments, FaultService(board, calls, capacity, ledger, log), health)
        address = f"{settings.host}:{bind(server, settings.host, settings.port)}"
        stop_asked = _stop_on_signals()
        await server.start()
        await health.serving()
        log.info(
            "serving",
            listen=address,
            ledger=settings.ledger,
            seed=board.seed,
            idempotency=settings.key_policy.value,
        )
        announce(address)
        await stop_asked.wait()
        log.info("draining", in_flight=calls.in_flight, grace_s=settings.grace_s)
        await health.draining()
        payments.drain()
        board.shut_down()
        await _stop_server(server, calls, settings.grace_s)
    finally:
        await ledger.close()
        await asyncio.to_thread(telemetry.shut_down)
    log.info("stopped", calls=calls.seen, effects=ledger.effects)


async def _stop_server(server: grpc.aio.Server, calls: Calls, grace_s: float) -> None:
    """Refuse new calls, let those in flight end, for at most ``grace_s``."""
    stopping = asyncio.create_task(server.stop(grace_s))
    idle = asyncio.create_task(calls.wait_idle())
    await asyncio.wait([stopping, idle], return_when=asyncio.FIRST_COMPLETED)
    # Streams that never end by themselves, such as health watches, would use up the whole grace.
    await server.stop(FLUSH_S)
    await stopping
    # stop() returns before the handlers it aborted have ended.
    await asyncio.wait([idle], timeout=FLUSH_S)
    idle.cancel()


def _stop_on_signals() -> asyncio.Event:
    stop_asked = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop_asked.is_set():
            os._exit(128 + number)
        stop_asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop_asked
