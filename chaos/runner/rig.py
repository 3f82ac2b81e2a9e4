"""The stack of a scenario, put up: processes, both links, the front relays of a row, collector and clock."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from chaos.collector import Collector
from chaos.downstream import Downstream
from chaos.faults.board import Board
from chaos.faults.clock import ShiftedClock
from chaos.faults.inject import Rig
from chaos.faults.kinds import Link
from chaos.history import HistoryWriter
from chaos.processes import ManagedProcess
from chaos.runner.plan import RunConfig
from chaos.stack import FREE_PORT, PROXY_NAME, Stack, StackConfig
from chaos.toxiproxy.client import Proxy, ToxiproxyClient
from chaos.toxiproxy.errors import ToxiproxyError

POLICY_FILE = "policy.json"
FRONT_PROXY = "relay"
"""The proxy between clients and relay."""
BASELINE_CAPACITY = "capacity"


def stack_config(config: RunConfig, collector: Collector | None, clock: ShiftedClock | None) -> StackConfig:
    """What is started for a run. Writes the policy file that it names."""
    policy_path = config.out_dir / POLICY_FILE
    policy_path.parent.mkdir(parents=True, exist_ok=True)
    policy_path.write_text(json.dumps(config.policy, indent=2) + "\n", encoding="utf-8")
    program = config.change.program or (sys.executable, "-m", "relay_service")
    return StackConfig(
        config.out_dir,
        policy=str(policy_path),
        seed=config.seed,
        relay_program=program,
        relay_env={} if clock is None else clock.env,
        relay_args=() if collector is None else ("--otlp-endpoint", f"http://{collector.address}"),
    )


@contextlib.asynccontextmanager
async def put_up(
    config: RunConfig,
    stack: Stack,
    history: HistoryWriter,
    collector: Collector | None,
    clock: ShiftedClock | None,
) -> AsyncIterator[Rig]:
    """The rig on a running stack, warm and healthy; taken down in the reverse order."""
    shape = config.scenario.stack
    async with contextlib.AsyncExitStack() as down:
        front = await down.enter_async_context(_front_relays(config, stack))
        links = {
            Link.RELAY_DOWNSTREAM: await stack.proxy(),
            Link.CLIENT_RELAY: await down.enter_async_context(_front_proxy(stack, front)),
        }
        downstream = await down.enter_async_context(Downstream(stack.addresses.downstream))
        board = Board(downstream, config.seed)
        if shape.capacity is not None:
            board.put(BASELINE_CAPACITY, shape.capacity)
        await board.tell()
        yield Rig(stack, links, board, history, collector, clock)


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
