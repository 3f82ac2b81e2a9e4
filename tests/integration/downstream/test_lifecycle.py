"""Starting, refusing to start, draining, ending; and the command line that looks after faults."""

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from typer.testing import CliRunner, Result

from downstream_service.cli import app
from protos.downstream.v1 import payment_pb2

TIMEOUT_S = 20.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
FRAME_SETTINGS, FRAME_PING, FRAME_GOAWAY = 4, 6, 7
FLAG_ACK = 1


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command line in this process, which saves a second each; the log goes back to pytest after."""
    monkeypatch.setattr(logging.root, "handlers", [])

    def run(*words: str, text: str = "", **environment: str) -> Result:
        return CliRunner().invoke(app, words, input=text, env=environment)

    yield run
    structlog.reset_defaults()


@pytest.mark.parametrize(
    "service_name",
    ["", "downstream.v1.PaymentService", "downstream.v1.FaultService"],
    ids=["all", "payment", "fault"],
)
async def test_health_says_serving_and_reflection_knows_the_services(
    shared_service: Any, connect: Any, service_name: str
) -> None:
    async with connect(shared_service) as stubs:
        health = health_pb2_grpc.HealthStub(stubs.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service_name), timeout=TIMEOUT_S)
        assert answer.status == SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
        info = reflection.ServerReflectionInfo(timeout=TIMEOUT_S)
        await info.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {each.name for each in (await info.read()).list_services_response.service}
        assert {service_name} - {""} <= names
        # Clients can show our errors' details only if reflection describes them.
        await info.write(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="google.rpc.ErrorInfo")
        )
        assert (await info.read()).HasField("file_descriptor_response")
        await info.done_writing()


async def test_sigterm_lets_calls_end_stops_streams_and_health_watchers_and_keeps_the_ledger(
    start_service: Any, connect: Any, purchase: Any, tmp_path: Path
) -> None:
    ledger = str(tmp_path / "ledger.db")
    service = start_service("--ledger", ledger)
    async with connect(service) as stubs:
        health = health_pb2_grpc.HealthStub(stubs.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        watch = stubs.payments.WatchCharges(payment_pb2.WatchChargesRequest(), timeout=TIMEOUT_S)
        hung = stubs.payments.Charge(purchase(), metadata=[("fault", '{"hang": {}}')], timeout=TIMEOUT_S)
        slow = stubs.payments.Charge(
            purchase("slow"), metadata=[("fault", '{"latency": {"fixed": "1s"}}')], timeout=TIMEOUT_S
        )
        await stubs.counters_when(lambda counters: counters.in_flight == 3)
        start_s = time.monotonic()
        service.process.terminate()
        assert (await health.read()).status == NOT_SERVING
        assert await watch.code() is grpc.StatusCode.UNAVAILABLE
        assert await hung.code() is grpc.StatusCode.UNAVAILABLE
        assert (await slow).charge.account == "slow"
        assert await asyncio.to_thread(service.process.wait, TIMEOUT_S) == 0
        # Below the grace of ten seconds, which neither a hang nor a health watch may use up.
        assert time.monotonic() - start_s < 8.0
    async with connect(start_service("--ledger", ledger)) as stubs:
        assert [charge.account for charge in await stubs.all_charges()] == ["slow"]


async def test_the_grace_is_bounded(start_service: Any, connect: Any, purchase: Any) -> None:
    service = start_service("--grace", "0.5")
    async with connect(service) as stubs:
        slow = stubs.payments.Charge(purchase(), metadata=[("fault", '{"latency": {"fixed": "60s"}}')])
        await stubs.counters_when(lambda counters: counters.in_flight == 1)
        assert await asyncio.to_thread(service.terminate) == 0
        assert await slow.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_a_second_signal_ends_it_at_once(start_service: Any, connect: Any, purchase: Any) -> None:
    service = start_service("--grace", "60")
    async with connect(service) as stubs:
        health = health_pb2_grpc.HealthStub(stubs.channel).Watch(health_pb2.HealthCheckRequest())
        await health.read()
        slow = stubs.payments.Charge(purchase(), metadata=[("fault", '{"latency": {"fixed": "60s"}}')])
        await stubs.counters_when(lambda counters: counters.in_flight == 1)
        service.process.terminate()
        assert (await health.read()).status == NOT_SERVING
        service.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(service.process.wait, TIMEOUT_S) == 128 + signal.SIGINT
        slow.cancel()


async def test_frequent_pings_do_not_cost_the_connection(shared_service: Any) -> None:
    # Frames by hand, since gRPC's own clients send no more than one ping a second.
    settings = bytes([0, 0, 0, FRAME_SETTINGS, 0, 0, 0, 0, 0])
    ping = bytes([0, 0, 8, FRAME_PING, 0, 0, 0, 0, 0]) + bytes(8)
    host, port = shared_service.address.split(":")
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + ping)
        acknowledged = 0
        while acknowledged < 20:
            header = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(header[:3], "big"))
            kind, flags = header[3], header[4]
            # By default a server answers the fifth with GOAWAY too_many_pings.
            assert kind != FRAME_GOAWAY
            if kind == FRAME_PING and flags == FLAG_ACK:
                acknowledged += 1
                writer.write(ping)
        writer.close()
        await writer.wait_closed()


def test_the_port_of_another_service_is_one_clear_line_and_status_2(shared_service: Any) -> None:
    words = [sys.executable, "-m", "downstream_service", "serve", "--listen", shared_service.address]
    run = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith(f"relay-downstream: cannot listen on {shared_service.address}: ")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ledger", "/nowhere/ledger.db"], "cannot use /nowhere/ledger.db as the ledger: unable to open"),
        (["--ledger", "/"], "cannot use / as the ledger: "),
        (["--trace-file", "/nowhere/t"], "cannot write the trace file /nowhere/t: No such file"),
        (["--faults", "/nowhere/f"], "/nowhere/f: cannot be read: "),
        (["--listen", "nonsense"], "--listen: must be HOST:PORT, not 'nonsense'"),
        (["--log-level", "loud"], "--log-level: must be one of"),
    ],
)
def test_what_cannot_be_started_is_one_clear_line_and_status_2(
    command: Any, options: list[str], message: str
) -> None:
    run = command("serve", "--listen", "127.0.0.1:0", *options)
    assert run.exit_code == 2
    assert run.stderr.startswith(f"relay-downstream: {message}")
    assert len(run.stderr.splitlines()) == 1


def test_a_bad_faults_file_is_named_with_the_path_inside(command: Any, tmp_path: Path) -> None:
    source = tmp_path / "faults.json"
    source.write_text('{"faults": [{"hang": {}, "probability": 2}]}')
    run = command("serve", "--listen", "127.0.0.1:0", "--faults", str(source))
    assert run.exit_code == 2
    assert run.stderr.startswith(f"relay-downstream: {source}: faults[0].probability: must be from 0 to 1")


def test_settings_come_from_the_environment(start_service: Any, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    environment = {"RELAY_DOWNSTREAM_LEDGER": str(ledger), "RELAY_DOWNSTREAM_SEED": "31"}
    service = start_service(environment=environment)
    assert service.terminate() == 0
    (serving,) = [line for line in service.log() if line["event"] == "serving"]
    assert (serving["ledger"], serving["seed"]) == (str(ledger), 31)
    assert ledger.exists()


def test_faults_are_set_shown_and_cleared_from_the_command_line(
    command: Any, shared_service: Any, tmp_path: Path
) -> None:
    address = shared_service.address
    source = tmp_path / "faults.json"
    source.write_text(
        '{"faults": [{"name": "down", "failure": {"code": 14}, "probability": 0.5}], "seed": "8"}'
    )
    shown = command("faults", "set", str(source), "--address", address, "--json")
    assert shown.exit_code == 0, shown.stderr
    state = json.loads(shown.stdout)["faults"]
    assert (state["faults"][0]["fault"]["name"], state["seed"]) == ("down", "8")
    assert "down" in command("faults", "show", RELAY_DOWNSTREAM_ADDRESS=address).stdout
    cleared = command("faults", "clear", "--address", address, "--json")
    assert json.loads(cleared.stdout)["faults"]["faults"] == []
    refused = command("faults", "set", "-", "--address", address, text='{"faults": [{}]}')
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("relay-downstream: stdin: faults[0]: one of failure")


def test_a_service_that_is_not_there_is_one_clear_line_and_status_2(command: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    run = command("faults", "show", "--address", address)
    assert run.exit_code == 2
    assert run.stderr.startswith(f"relay-downstream: {address}: UNAVAILABLE: ")
    assert len(run.stderr.splitlines()) == 1
