"""Ports for programs that cannot be told to take a free one by themselves, and ports nobody listens at."""

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago. All are held until the last is found, so none comes twice."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def free_port() -> int:
    """One such port."""
    (port,) = free_ports(1)
    return port
