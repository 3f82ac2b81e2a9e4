"""The stack of a scenario, put up: processes, both links, the front relays of a row, collector and clock."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from chaos.collector import Collector
from chaos.downstream import Downstream
from chaos.faults.board import Board
from chaos.faults.clock import ShiftedClock, shifted_clock
from chaos.faults.disk import FaultyDisk, faulty_disk
from chaos.faults.inject import Rig
from chaos.faults.kinds import Link
from chaos.faults.preload import joined_env
from chaos.history import HistoryWriter
from chaos.processes import ManagedProcess
from chaos.runner.plan import RunConfig
from chaos.stack import FREE_PORT, PROXY_NAME, Stack, StackConfig
from chaos.store import SQLITE_FILE, StoreEngine
from chaos.toxiproxy.client import Proxy, ToxiproxyClient
from chaos.toxiproxy.errors import ToxiproxyError

POLICY_FILE = "policy.json"
FRONT_PROXY = "relay"
"""The proxy between clients and relay."""
BASELINE_CAPACITY = "capacity"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a relay is put into besides network and processes; None where the scenario has no use for it."""

    collector: Collector | None = None
    clock: ShiftedClock | None = None
    disk: FaultyDisk | None = None


@contextlib.asynccontextmanager
async def surroundings(config: RunConfig) -> AsyncIterator[Surroundings]:
    """What the scenario's stack asks for. Raises `FaultError` where it cannot be had."""
    shape = config.scenario.stack
    config.out_dir.mkdir(parents=True, exist_ok=True)
    clock = shifted_clock(config.out_dir) if shape.own_clock else None
    on_file = shape.store is StoreEngine.SQLITE
    disk = faulty_disk(config.out_dir, config.out_dir / SQLITE_FILE) if on_file else None
    if not shape.collector:
        yield Surroundings(None, clock, disk)
        return
    async with Collector() as collector:
        yield Surroundings(collector, clock, disk)


def stack_config(config: RunConfig, around: Surroundings) -> StackConfig:
    """What is started for a run. Writes the policy file that it names."""
    policy_path = config.out_dir / POLICY_FILE
    policy_path.parent.mkdir(parents=True, exist_ok=True)
    policy_path.write_text(json.dumps(config.policy, indent=2) + "\n", encoding="utf-8")
    program = config.change.program or (sys.executable, "-m", "relay_service")
    collector = around.collector
    return StackConfig(
        config.out_dir,
        policy=str(policy_path),
        seed=config.seed,
        relay_program=program,
        relay_env=joined_env(each for each in (around.clock, around.disk) if each is not None),
        relay_args=() if collector is None else ("--otlp-endpoint", f"http://{collector.address}"),
        store=config.scenario.stack.store,
    )


@contextlib.asynccontextmanager
async def put_up(
    config: RunConfig,
    stack: Stack,
    history: HistoryWriter,
    around: Surroundings,
) -> AsyncIterator[Rig]:
    """The rig on a running stack, warm and healthy; taken down in the reverse order."""
    shape = config.scenario.stack
    async with contextlib.AsyncExitStack() as down:
        front = await down.enter_async_context(_front_relays(config, stack))
        links = {
            Link.RELAY_DOWNSTREAM: await stack.proxy(),
            Link.CLIENT_RELAY: await down.enter_async_context(_front_proxy(stack, front)),
        }
        if stack.store_proxy is not None:
            links[Link.RELAY_STORE] = stack.store_proxy
        downstream = await down.enter_async_context(Downstream(stack.addresses.downstream))
        board = Board(downstream, config.seed)
        if shape.capacity is not None:
            board.put(BASELINE_CAPACITY, shape.capacity)
        await board.tell()
        yield Rig(stack, links, board, history, around.collector, around.clock, around.disk)


@contextlib.asynccontextmanager
async def _front_proxy(stack: Stack, upstream: str) -> AsyncIterator[Proxy]:
    client: ToxiproxyClient = stack.toxiproxy.client
    name = f"{FRONT_PROXY}-of-{PROXY_NAME}"
    proxy = await asyncio.to_thread(client.create, name, FREE_PORT, upstream)
    try:
        yield proxy
    finally:
        # A Toxiproxy of somebody else must be left as it was found; ours may be gone already.
        with contextlib.suppress(ToxiproxyError):
            await asyncio.to_thread(client.delete, name)


@contextlib.asynccontextmanager
async def _front_relays(config: RunConfig, stack: Stack) -> AsyncIterator[str]:
    """The relays before the stack's own; gives the address that callers use."""
    address = stack.addresses.relay
    async with contextlib.AsyncExitStack() as down:
        for number in range(2, config.scenario.stack.relays + 1):
            process = ManagedProcess(f"relay-{number}", config.out_dir / "logs" / f"relay-{number}.log")
            down.push_async_callback(process.stop)
            ready = await process.start(_front_command(config, stack, number, address))
            address = ready["relay"]
        yield address


def front_trace_files(config: RunConfig) -> list[Path]:
    """Where the relays before the stack's own write their spans."""
    return [config.out_dir / f"relay-{number}.jsonl" for number in range(2, config.scenario.stack.relays + 1)]


def _front_command(config: RunConfig, stack: Stack, number: int, upstream: str) -> list[str]:
    return [
        *(*stack.config.relay_program, "serve", "--ready-json"),
        *("--listen", FREE_PORT, "--admin-listen", FREE_PORT, "--http-listen", FREE_PORT),
        *("--upstream", upstream),
        *("--policy", stack.config.policy),
        *("--trace-file", str(config.out_dir / f"relay-{number}.jsonl")),
        *("--seed", str(config.seed + number)),
    ]
