"""gRPC's own interop suite (the Go client and server) with the relay between: every case that needs no cloud.

The cases: https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md.
"""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.processes import CouldNotStartError
from tests.conformance.go_tools import INTEROP_CLIENT, INTEROP_SERVER
from tests.conformance.peers import Peer, start_relay

READY_TIMEOUT_S = 20.0
CASE_TIMEOUT_S = 60.0
CASES = (
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "orca_per_rpc",
    "orca_oob",
    "rpc_soak",
    "channel_soak",
)
"""All but those that need credentials, and pick_first_unary: for that one a server must tell its name, which
the Go server does not."""
ORCA_BALANCING = '{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}'
"""What the descriptions of the orca cases ask the client to be started with."""
UNARY_KNOWN = {
    "relay": {
        "preset": "default",
        "methods": [
            {"name": [{"service": "grpc.testing.TestService", "method": method}], "unary": True}
            for method in ("EmptyCall", "UnaryCall", "UnimplementedCall")
        ],
    }
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The interop server's address. It has no ready line and does not say which port it took."""
    binary = INTEROP_SERVER.find_or_skip()
    log_path = tmp_path_factory.mktemp("interop") / "server.log"
    for _ in range(3):  # the port may be lost before the server has it
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with log_path.open("wb") as log:
            process = subprocess.Popen([binary, "-port", str(port)], stdout=log, stderr=log)
        if accepts(port, process):
            break
    else:
        raise CouldNotStartError(f"the interop server did not start: {log_path.read_text()[-500:]}")
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


def accepts(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module", params=["passthrough", "default-with-unary-methods"])
def relay(
    server: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peer]:
    """Once with all methods carried as streams, once with the unary ones known, so with retries."""
    directory: Path = tmp_path_factory.mktemp("relay")
    policy = request.param
    if policy != "passthrough":
        path = directory / f"{policy}.json"
        path.write_text(json.dumps(UNARY_KNOWN))
        policy = str(path)
    peer = start_relay(server, directory, policy)
    yield peer
    peer.stop()


@pytest.mark.parametrize("case", CASES)
def test_an_interop_case_passes_through_the_relay(relay: Peer, case: str) -> None:
    binary = INTEROP_CLIENT.find_or_skip()
    host, _, port = relay.address.rpartition(":")
    command = [binary, "-server_host", host, "-server_port", port, "-test_case", case]
    if case.startswith("orca"):
        command += ["-service_config_json", ORCA_BALANCING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
