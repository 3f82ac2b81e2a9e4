"""The demo's kind of traffic into a real Jaeger, read back through its API (`make check-jaeger`).

Jaeger's releases come as container images and archives. Where Go and its module proxy are, one commit of
it can be built: it has no replace directives, and serves a placeholder instead of the UI.
"""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from chaos.processes import guarded
from chaos.stack import Stack, StackConfig
from protos.downstream.v1 import payment_pb2, payment_pb2_grpc
from tests.ports import free_port

pytestmark = [pytest.mark.jaeger, pytest.mark.timeout(1800)]

MODULE = "github.com/jaegertracing/jaeger/cmd/jaeger@8498073ff809"
CACHE = Path(__file__).parents[3] / ".cache" / "jaeger"
BUILD_TIMEOUT_S = 1500
READY_TIMEOUT_S = 30
CALLS = 50


def find_jaeger() -> str:
    """JAEGER_BIN, else `jaeger` on PATH or in the cache, else built with Go; skips with the reason."""
    found = os.environ.get("JAEGER_BIN") or shutil.which(
        "jaeger", path=f"{CACHE}{os.pathsep}{os.environ['PATH']}"
    )
    if found:
        return found
    go = shutil.which("go")
    if go is None:
        pytest.skip("no `jaeger` on PATH and no Go to build one: install either, or set JAEGER_BIN")
    CACHE.mkdir(parents=True, exist_ok=True)
    built = subprocess.run(
        [go, "install", MODULE],
        env=os.environ | {"GOBIN": str(CACHE)},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if built.returncode:
        # Not a skip: whoever runs this check asked for it, and must hear that it did not take place.
        pytest.fail(f"`go install {MODULE}` failed: {built.stderr.strip()[-2000:]}")
    return str(CACHE / "jaeger")


class Jaeger:
    """A Jaeger with all its ports on loopback and free."""

    def __init__(self, binary: str, directory: Path) -> None:
        self.otlp = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        config = directory / "jaeger.json"  # YAML reads JSON
        config.write_text(json.dumps(self._config()))
        self.log = (directory / "jaeger.log").open("wb")
        command = guarded([binary, "--config", f"file:{config}"])
        self._process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def _config(self) -> dict[str, Any]:
        return {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": self.http},
                    "grpc": {"endpoint": f"127.0.0.1:{free_port()}"},
                },
            },
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": self.otlp}}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
        }

    def get(self, path: str, **query: str) -> Any:
        """One request to the query API; None when it answers 404."""
        url = f"http://{self.http}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return [json.loads(line) for line in answer.read().decode().splitlines() if line.strip()]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                self.get("/api/v3/services")
                return
            except OSError:
                assert self._process.poll() is None, f"Jaeger ended: see {self.log.name}"
                assert time.monotonic() < deadline, f"Jaeger was not ready: see {self.log.name}"
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self.log.close()


@pytest.fixture(scope="module")
def jaeger() -> Iterator[Jaeger]:
    binary = find_jaeger()
    with tempfile.TemporaryDirectory() as directory:
        server = Jaeger(binary, Path(directory))
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()


@pytest_asyncio.fixture
async def stack(jaeger: Jaeger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{jaeger.otlp}")
    async with Stack(StackConfig(tmp_path, policy="payments-demo")) as running:
        yield running


async def test_jaeger_shows_every_call_whole(jaeger: Jaeger, stack: Stack) -> None:
    started = datetime.now(UTC) - timedelta(minutes=1)
    async with grpc.aio.insecure_channel(stack.addresses.relay) as channel:
        payments = payment_pb2_grpc.PaymentServiceStub(channel)
        fault = json.dumps({"failure": {"code": 14}, "probability": 0.5})
        for number in range(CALLS):
            request = payment_pb2.ChargeRequest(account="jaeger", amount_minor=1 + number, currency="EUR")
            try:
                await payments.Charge(request, metadata=[("fault", fault)], timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
    await stack.stop()  # flushes what the exporters hold
    traces = await asyncio.to_thread(read_back, jaeger, started)
    assert len(traces) == CALLS
    for trace_id, spans in traces.items():
        assert_whole(trace_id, spans)


def read_back(jaeger: Jaeger, started: datetime) -> dict[str, list[dict[str, Any]]]:
    """All traces of the relay's since ``started``, by id."""
    answers = jaeger.get(
        "/api/v3/traces",
        **{
            "query.service_name": "relay",
            "query.operation_name": "downstream.v1.PaymentService/Charge",
            "query.start_time_min": started.isoformat().replace("+00:00", "Z"),
            "query.start_time_max": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "query.search_depth": str(10 * CALLS),
        },
    )
    traces: dict[str, list[dict[str, Any]]] = {}
    for answer in answers or []:
        for resource in answer["result"]["resourceSpans"]:
            names = {a["key"]: a["value"].get("stringValue") for a in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    traces.setdefault(span["traceId"], []).append(span | {"service": names["service.name"]})
    return traces


def assert_whole(trace_id: str, spans: list[dict[str, Any]]) -> None:
    """One root, no missing parent, and the downstream under one of the relay's attempts."""
    by_id = {span["spanId"]: span for span in spans}
    roots = [span for span in spans if span.get("parentSpanId", "") not in by_id]
    assert len(roots) == 1, (trace_id, [span["name"] for span in roots])
    below = [span for span in spans if span["service"] == "downstream"]
    assert below, (trace_id, "the downstream's spans are missing")
    assert all(by_id[span["parentSpanId"]]["service"] == "relay" for span in below), trace_id
