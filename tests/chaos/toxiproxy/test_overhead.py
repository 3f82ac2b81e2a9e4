"""What the embedded server adds to a round trip, beside what the real one adds, in one run."""

from __future__ import annotations

import socket
import socketserver
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.chaos.toxiproxy.conftest import launch_kind

ROUNDS = 15
ROUND_TRIPS = 120
PAYLOAD = b"x" * 100
RATIO_MAX = 3.0


@pytest.mark.timeout(60)
def test_the_embedded_server_adds_at_most_three_times_what_the_real_one_adds(tmp_path: Path) -> None:
    """Direct, real and embedded take turns, so that a noisy machine is noisy for all of them."""
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(launch_kind(kind, tmp_path)) for kind in ("real", "embedded")}
        echo = stack.enter_context(echo_server())
        paths = {"direct": stack.enter_context(socket.create_connection(echo))}
        for kind, toxiproxy in servers.items():
            proxy = toxiproxy.client().create("echo", "127.0.0.1:0", f"{echo[0]}:{echo[1]}")
            host, _, port = proxy.listen.rpartition(":")
            paths[kind] = stack.enter_context(socket.create_connection((host, int(port))))
        for connection in paths.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(10)
        rounds = [{name: median_round_trip_us(sock) for name, sock in paths.items()} for _ in range(ROUNDS)]

    # Compared within each round: what drifts between rounds drifts for both.
    added_us = {
        kind: statistics.median(each[kind] - each["direct"] for each in rounds)
        for kind in ("real", "embedded")
    }
    ratio = statistics.median(
        (each["embedded"] - each["direct"]) / max(each["real"] - each["direct"], 1.0) for each in rounds
    )
    direct_us = statistics.median(each["direct"] for each in rounds)
    real_us, embedded_us = added_us["real"], added_us["embedded"]
    print(f"direct {direct_us:.0f} us; the real one adds {real_us:.0f}, the embedded {embedded_us:.0f} us")
    print(f"median of the paired ratios {ratio:.2f}")
    assert ratio <= RATIO_MAX


def median_round_trip_us(connection: socket.socket) -> float:
    took_s = []
    for _ in range(ROUND_TRIPS):
        started_s = time.perf_counter()
        connection.sendall(PAYLOAD)
        received = 0
        while received < len(PAYLOAD):
            received += len(connection.recv(len(PAYLOAD)))
        took_s.append(time.perf_counter() - started_s)
    return statistics.median(took_s) * 1e6


class Echo(socketserver.BaseRequestHandler):
    """Echoes on a thread per connection: as little as can stand behind a proxy."""

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := self.request.recv(65536):
            self.request.sendall(data)


@contextmanager
def echo_server() -> Iterator[tuple[str, int]]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as listener:
        serving = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield listener.server_address
        finally:
            listener.shutdown()
            serving.join(5)
