"""The stack, left running for people and programs until they end it."""

from collections.abc import Callable
from typing import Any

from chaos.stack import Stack, StackConfig


async def run_up(config: StackConfig, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Start the stack, tell where everything is, and keep it until cancelled.

    Raises `PortBusyError` and `ProcessError` when it cannot start, `MemberDiedError` when a member ends
    later; nothing is left running in any case.
    """
    async with Stack(config) as stack:
        on_ready(describe(stack))
        raise await stack.watch()


def describe(stack: Stack) -> dict[str, Any]:
    """Addresses and process ids of a running stack."""
    addresses, server = stack.addresses, stack.toxiproxy.server
    return {
        "relay": addresses.relay,
        "relay_http": addresses.relay_http,
        "relay_admin": addresses.relay_admin,
        "downstream": addresses.downstream,
        "toxiproxy": {"api": addresses.toxiproxy, "kind": server.kind, "proxy": addresses.proxy},
        "pids": stack.pids(),
    }
