"""The commands, environments and health checks of the compose file, run without containers.

Names of services become the loopback, ports become free ones, paths of the image become paths here; all
else is run word by word as it stands in the file.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chaos.toxiproxy.launcher import launch
from protos.downstream.v1 import payment_pb2, payment_pb2_grpc
from tests.ports import free_ports

ROOT = Path(__file__).parents[3]
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
PORTS = (50051, 50052, 50053, 50055, 9464, 4317)
_ENDPOINT = re.compile(r"\b(?:0\.0\.0\.0|127\.0\.0\.1|relay|downstream|toxiproxy|jaeger):(\d+)")


class Outside:
    """Runs services of the compose file as processes. State: the ports that stand for the file's."""

    def __init__(self, compose: dict[str, Any], directory: Path) -> None:
        self._services = compose["services"]
        self._directory = directory
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))

    def translate(self, text: str) -> str:
        """What stands in the file, as it must be said out here."""
        text = text.replace("/var/lib/relay", str(self._directory))
        text = text.replace("/opt/relay/healthcheck.py", str(ROOT / "deploy" / "healthcheck.py"))
        return _ENDPOINT.sub(lambda match: f"127.0.0.1:{self._ports[int(match[1])]}", text)

    def port(self, of_the_file: int) -> int:
        return self._ports[of_the_file]

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a service as the engine would; SIGTERM at the end."""
        service = self._services[name]
        with (self._directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self._argv(service["command"]),
                cwd=self._directory,
                env=self._environment(service.get("environment", {})),
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(STOP_TIMEOUT_S)

    def healthy(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the service's own health check once."""
        _, *command = self._services[name]["healthcheck"]["test"]
        return subprocess.run(
            self._argv(command),
            env=self._environment({}),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def wait_until_healthy(self, name: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (check := self.healthy(name)).returncode != 0:
            log = (self._directory / f"{name}.log").read_text(errors="replace")
            assert process.poll() is None, f"{name} ended with {process.returncode}: {log[-3000:]}"
            assert time.monotonic() < deadline, f"{name}: {check.stderr}\n{log[-3000:]}"

    def _argv(self, words: list[str]) -> list[str]:
        program, *rest = (self.translate(word) for word in words)
        # The image has them on PATH; here they stand beside the Python that runs the tests.
        return [str(Path(sys.executable).parent / program), *rest]

    def _environment(self, given: dict[str, str]) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RELAY_", "OTEL_"))}
        return inherited | {name: self.translate(value) for name, value in given.items()}


@pytest.fixture
def outside(compose: dict[str, Any], tmp_path: Path) -> Outside:
    return Outside(compose, tmp_path)


def test_the_stack_comes_up_carries_a_call_and_goes_down(outside, tmp_path):
    """With Jaeger's address leading nowhere: a collector that is away must not matter."""
    (proxy,) = json.loads((ROOT / "deploy" / "toxiproxy.json").read_text())
    with outside.running("downstream") as downstream:
        outside.wait_until_healthy("downstream", downstream)
        with launch(log_dir=tmp_path) as toxiproxy:
            client = toxiproxy.client()
            client.create(
                proxy["name"], outside.translate(proxy["listen"]), outside.translate(proxy["upstream"])
            )
            with outside.running("relay") as relay:
                outside.wait_until_healthy("relay", relay)
                _charge(outside.port(50051))
                client.get("downstream").disable()
                with pytest.raises(grpc.RpcError):
                    _charge(outside.port(50051), timeout_s=2)
        assert relay.returncode == 0
    assert downstream.returncode == 0
    assert (tmp_path / "ledger.db").stat().st_size > 0


@pytest.mark.parametrize("name", ["relay", "downstream"])
def test_a_health_check_fails_where_nothing_listens(outside, name):
    check = outside.healthy(name)
    assert check.returncode == 1
    assert "127.0.0.1" in check.stderr


def _charge(port: int, timeout_s: float = 10) -> None:
    request = payment_pb2.ChargeRequest(account="a", amount_minor=100, currency="EUR")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        payment_pb2_grpc.PaymentServiceStub(channel).Charge(request, timeout=timeout_s)
