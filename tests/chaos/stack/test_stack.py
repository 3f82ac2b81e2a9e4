"""The whole stack as processes: up, broken one member at a time, down."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import pytest_asyncio

from chaos.client import Client, Errand
from chaos.downstream import Downstream
from chaos.findings import Verdict
from chaos.history import HistoryWriter, new_run
from chaos.plan import CHARGE_KEYED, Profile, Step, make_plan
from chaos.stack import Addresses, Member, PortBusyError, Stack, StackConfig
from chaos.traces import read_traces, traces_are_whole
from chaos.tracing import ClientTracing
from chaos.traffic import NaiveRetry, run_closed_loop


def planned_calls(count):
    return list(make_plan("stack", Profile((Step(100, 60),), calls_max=count), (CHARGE_KEYED,), seed=7))


async def call_through(stack, history, tracing, planned):
    async with Client(stack.addresses.relay, history, tracing, channels=1) as client:
        return await client.call(Errand(planned, "stack", history.now(), timeout_s=10))


async def passes_again(stack, history, tracing, planned):
    """Try one operation until it succeeds, for at most 20 s."""
    history.take()
    async with Client(stack.addresses.relay, history, tracing, channels=1) as client:
        retry = NaiveRetry(tries_max=400, pause_s=0.05)
        async with asyncio.timeout(20):
            await run_closed_loop(client, [planned], "again", workers=1, for_s=1, timeout_s=5, retry=retry)
    return history.recent[-1].ok


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    """One for the tests that put back what they break: starting four programs takes seconds."""
    async with Stack(StackConfig(tmp_path_factory.mktemp("stack"), policy="payments-demo")) as running:
        yield running


@pytest.fixture
def history(tmp_path):
    with HistoryWriter(tmp_path / "history.jsonl", new_run("test", 7, "test")) as writer:
        yield writer


@pytest.fixture
def tracing(tmp_path):
    with ClientTracing(tmp_path / "client.jsonl", 7) as client_tracing:
        yield client_tracing


async def test_a_call_goes_through_and_its_trace_is_whole(tmp_path, history):
    config = StackConfig(tmp_path)
    with ClientTracing(tmp_path / "client.jsonl", 7) as tracing:
        async with Stack(config) as stack:
            record = await call_through(stack, history, tracing, planned_calls(1)[0])
            async with Downstream(stack.addresses.downstream) as downstream:
                (entry,) = await downstream.ledger()
    assert record.code == "OK"
    assert record.attempts == 1
    assert entry.operation == record.operation
    traces = read_traces([tmp_path / "client.jsonl", *config.trace_files])
    finding = traces_are_whole([record], traces)
    assert finding.verdict is Verdict.HELD, finding


@pytest.mark.parametrize("member", [Member.DOWNSTREAM, Member.TOXIPROXY, Member.RELAY])
@pytest.mark.asyncio(loop_scope="module")
async def test_after_kill_and_restart_of_any_member_calls_pass_again_at_the_same_addresses(
    stack, history, tracing, member
):
    before = stack.addresses
    first, second = planned_calls(2)
    assert (await call_through(stack, history, tracing, first)).ok
    await stack.kill(member)
    await stack.restart(member)
    assert stack.addresses == before
    assert await passes_again(stack, history, tracing, second)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_paused_downstream_answers_nothing_until_it_is_resumed(stack, history, tracing):
    first, second = planned_calls(2)
    stack.pause(Member.DOWNSTREAM)
    async with Client(stack.addresses.relay, history, tracing, channels=1) as client:
        record = await client.call(Errand(first, "stack", history.now(), timeout_s=0.5))
    assert record.code == "DEADLINE_EXCEEDED"
    stack.resume(Member.DOWNSTREAM)
    assert await passes_again(stack, history, tracing, second)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_watch_names_the_member_that_died(stack):
    watching = asyncio.create_task(stack.watch())
    os.kill(stack.pids()["downstream"], signal.SIGKILL)
    async with asyncio.timeout(10):
        error = await watching
    assert error.member is Member.DOWNSTREAM
    assert "downstream was killed by SIGKILL" in str(error)
    await stack.restart(Member.DOWNSTREAM)


async def test_a_busy_port_is_named_and_nothing_is_started(tmp_path, is_alive):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        stack = Stack(StackConfig(tmp_path, Addresses(relay_http=address)))
        with pytest.raises(PortBusyError, match=rf"port {taken.getsockname()[1]} \(relay http\)"):
            await stack.start()
    assert not (tmp_path / "logs").exists()


async def test_a_member_that_cannot_start_takes_the_others_down_with_it(tmp_path, is_alive):
    stack = Stack(StackConfig(tmp_path, policy="no-such-policy"))
    with pytest.raises(RuntimeError, match="no-such-policy"):
        await stack.start()
    log = (tmp_path / "logs" / "downstream.log").read_text()
    (ready,) = (json.loads(line) for line in log.splitlines() if '"pid"' in line)
    assert not is_alive(ready["pid"])


class Up:
    """`relay-chaos up --json` as a child."""

    def __init__(self, out):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chaos", "up", "--free-ports", "--json", "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready = json.loads(self.process.stdout.readline() or "{}")

    @property
    def pids(self):
        return [pid for pid in self.ready["pids"].values() if pid]


@pytest.fixture
def up(tmp_path):
    child = Up(tmp_path / "up")
    with child.process:
        yield child
        if child.process.poll() is None:
            child.process.terminate()


def test_up_prints_one_line_of_json_and_ends_cleanly_on_sigterm(up, is_alive):
    assert set(up.ready) == {"relay", "relay_http", "relay_admin", "downstream", "toxiproxy", "pids"}
    assert up.ready["toxiproxy"]["kind"] in ("real", "embedded")
    assert all(is_alive(pid) for pid in up.pids)
    up.process.terminate()
    rest, errors = up.process.communicate(timeout=20)
    assert (up.process.returncode, rest, errors) == (0, "", "")
    assert not any(is_alive(pid) for pid in up.pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_nothing_is_left_when_up_is_killed_with_minus_nine(up, is_alive, until):
    assert len(up.pids) >= 2
    up.process.kill()
    until(lambda: not any(is_alive(pid) for pid in up.pids), "every member is gone")


def test_up_says_which_member_died_and_ends_with_one(up, is_alive):
    os.kill(up.ready["pids"]["relay"], signal.SIGKILL)
    _, errors = up.process.communicate(timeout=20)
    assert up.process.returncode == 1
    assert "relay was killed by SIGKILL" in errors
    assert not any(is_alive(pid) for pid in up.pids)
