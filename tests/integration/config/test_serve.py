"""`relay serve` as a process: ready, in use, told to stop, unable to start."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from relay_service.cli.app import app

ANY_PORTS = ("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")


@contextmanager
def relay_process(*flags: str) -> Iterator[subprocess.Popen[str]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "OTEL_"))}
    command = [sys.executable, "-m", "relay_service", "serve", *ANY_PORTS, *flags]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=clean) as process:
        try:
            yield process
        finally:
            process.kill()


def test_one_line_of_json_tells_the_real_addresses_and_sigterm_ends_cleanly(
    cli: CliRunner, server: str
) -> None:
    with relay_process("--ready-json", "--upstream", server) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["pid"] == process.pid
        charge = '{"account": "a", "amountMinor": "5", "currency": "EUR"}'
        call = cli.invoke(app, ["call", "downstream.v1.PaymentService/Charge", charge, "-a", ready["relay"]])
        assert (call.exit_code, json.loads(call.stdout)["charge"]["account"]) == (0, "a"), call.stderr
        stats = cli.invoke(app, ["stats", "--json", "-a", ready["admin"]])
        assert json.loads(stats.stdout)["upstreams"][0]["target"] == server
        with socket.create_connection(("127.0.0.1", int(ready["http"].rpartition(":")[2])), timeout=5):
            pass
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
        assert (process.returncode, rest) == (0, "")


@pytest.mark.parametrize("flag", ["--listen", "--admin-listen", "--http-listen"])
def test_a_busy_port_is_told_in_one_line_and_is_2(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with relay_process("--ready-json", flag, address, "--log-level", "error") as process:
            out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: cannot start: ")
    assert address in last
    assert "Traceback" not in err


def test_a_trace_file_that_cannot_be_written_is_told_and_is_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trace_file = str(tmp_path / "file" / "spans.jsonl")
    with relay_process("--trace-file", trace_file, "--log-level", "error") as process:
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, "")
    assert trace_file in err.splitlines()[-1]
    assert "Traceback" not in err
