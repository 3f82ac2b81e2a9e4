"""What a test gets from the lab: faults that act and go, processes that end, calls that are recorded."""

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path

import grpc
import pytest

from chaos.history import read_history
from chaos.plugin import ServiceError, open_lab
from chaos.plugin.recorder import Recorder

LISTENER = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    while True:
        server.accept()[0].close()
"""
PRACTICE_SERVICE = [sys.executable, "-m", "downstream_service", "serve", "--listen", "127.0.0.1:{port}"]
LIST = "/downstream.v1.PaymentService/ListCharges"


def listener(*rest):
    return [sys.executable, "-c", LISTENER, "{port}", *rest]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def exchange(address, payload=b"x" * 10, timeout_s=5.0):
    """Send and receive the same; how long it took, or the error."""
    host, _, port = address.rpartition(":")
    began_s = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        connection.sendall(payload)
        received = b""
        while len(received) < len(payload):
            chunk = connection.recv(4096)
            if not chunk:
                raise ConnectionError("closed before all was answered")
            received += chunk
    return time.monotonic() - began_s


FAULTS = {
    "latency": lambda way, direction: way.latency(50, 5, direction=direction),
    "bandwidth": lambda way, direction: way.bandwidth(100, direction=direction),
    "slow_close": lambda way, direction: way.slow_close(20, direction=direction),
    "timeout": lambda way, direction: way.timeout(50, direction=direction),
    "reset_peer": lambda way, direction: way.reset_peer(10, direction=direction),
    "slicer": lambda way, direction: way.slicer(5, 2, 100, direction=direction),
    "limit_data": lambda way, direction: way.limit_data(4, direction=direction),
}


@pytest.mark.parametrize("direction", ["upstream", "downstream", "both"])
@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_every_toxic_is_there_inside_its_block_and_gone_after(lab, echo, kind, direction):
    way = lab.proxied(echo)
    with FAULTS[kind](way, direction):
        seen = {(toxic.type, toxic.stream) for toxic in way.toxics}
        streams = ["upstream", "downstream"] if direction == "both" else [direction]
        assert seen == {(kind, stream) for stream in streams}
    assert way.toxics == []
    assert exchange(way.address) < 5
    (window,) = lab.history.faults
    assert window.name == kind
    assert window.begin_s < window.end_s


def test_latency_is_felt_and_two_of_them_add_up(lab, echo):
    way = lab.proxied(echo)
    with way.latency(60), way.latency(60, direction="upstream"):
        assert exchange(way.address) >= 0.12


def test_a_fault_is_gone_when_its_block_fails(lab, echo):
    way = lab.proxied(echo)
    with pytest.raises(RuntimeError, match="the test's own"), way.bandwidth(1):
        raise RuntimeError("the test's own")
    assert way.toxics == []


def test_a_partition_lets_nobody_in_and_ends(lab, echo):
    way = lab.proxied(echo)
    with way.partition(), pytest.raises(OSError, match=r"refused|reset"):
        exchange(way.address)
    assert exchange(way.address) < 5


def test_a_blackhole_answers_nothing(lab, echo):
    way = lab.proxied(echo)
    with way.blackhole(), pytest.raises(TimeoutError):
        exchange(way.address, timeout_s=0.2)


def test_flapping_ends_with_the_network_up(lab, echo):
    way = lab.proxied(echo)
    failed = 0
    with way.flapping(every_s=0.2, down_s=0.1):
        give_up_at_s = time.monotonic() + 10
        while not failed and time.monotonic() < give_up_at_s:
            try:
                exchange(way.address)
            except OSError:
                failed += 1
    assert failed
    assert exchange(way.address) < 5
    with pytest.raises(ValueError, match="down_s < every_s"), way.flapping(every_s=1, down_s=1):
        pass


def test_what_the_lab_made_is_gone_when_it_closes_even_after_a_failure(toxiproxy, tmp_path, echo):
    def failing_test():
        with open_lab(toxiproxy, tmp_path, 7) as lab:
            service = lab.service(listener())
            made.append(service.pid)
            assert alive(service.pid)
            assert exchange(lab.proxied(echo).address) < 5
            raise RuntimeError("the test's own")

    made = []
    before = set(toxiproxy.client().proxies())
    with pytest.raises(RuntimeError, match="the test's own"):
        failing_test()
    assert not alive(made[0])
    assert set(toxiproxy.client().proxies()) == before


def test_a_service_that_does_not_start_shows_its_log(lab):
    with pytest.raises(ServiceError, match=r"ended with exit status 3(.|\n)*no such ledger"):
        lab.service([sys.executable, "-c", "import sys; print('no such ledger'); sys.exit(3)"])


def test_a_service_that_listens_to_nothing_is_given_up_and_ended(lab, tmp_path):
    from chaos.plugin.service import Service

    service = Service([sys.executable, "-c", "import time; time.sleep(60)"], log_path=tmp_path / "log")
    with pytest.raises(ServiceError, match="does not take connections"):
        service.start(ready_timeout_s=0.5)
    assert not service.running


def test_a_killed_service_comes_back_at_the_same_address(lab):
    service = lab.service(listener())
    before, first_pid = service.address, service.pid
    with service.killed():
        assert not alive(first_pid)
    assert service.address == before
    assert service.pid != first_pid
    with service.stopped():
        assert not service.running
    assert service.running


def test_a_process_handed_over_is_paused_and_goes_on(lab):
    service = lab.service(listener())
    adopted = lab.adopt(service.pid)
    state = Path(f"/proc/{service.pid}/stat")
    with adopted.paused():
        give_up_at_s = time.monotonic() + 5
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < give_up_at_s
            time.sleep(0.01)
    with socket.create_connection(("127.0.0.1", int(service.address.rpartition(":")[2])), timeout=5):
        pass
    adopted.kill()
    os.waitid(os.P_PID, service.pid, os.WEXITED | os.WNOWAIT)
    assert not service.running


@pytest.fixture(scope="module")
def module_lab(toxiproxy, tmp_path_factory):
    """A lab of another scope than the fixture's, as users may want one."""
    with open_lab(toxiproxy, tmp_path_factory.mktemp("lab"), 7) as opened:
        yield opened


@pytest.fixture(scope="module")
def practice(module_lab):
    """The practice service as a command, behind a proxy, behind a relay with a policy given as a dict."""
    way = module_lab.proxied(PRACTICE_SERVICE)
    document = {"relay": {"preset": "textbook", "methods": [{"name": [{}], "safety": "NO_SIDE_EFFECTS"}]}}
    return way, module_lab.relay(way, document)


def test_calls_through_the_relay_are_recorded_with_what_it_says_of_them(lab, practice):
    _, relay = practice
    with lab.history.channel(relay.address) as channel:
        channel.unary_unary(LIST)(b"", timeout=10, metadata=[("idempotency-key", "one")])
    (call,) = lab.history.calls
    assert (call.code, call.operation, call.origin, call.attempts) == ("OK", "one", "upstream", 1)
    assert call.method == LIST[1:]
    assert call.timeout_s == 10
    assert relay.stats().calls.received >= 1
    lab.history.assert_answered_in_time()
    lab.history.assert_all_accounted_for(1)
    lab.history.assert_retries_within(ratio=0.0, burst=0)


async def test_calls_of_asyncio_are_recorded_too_and_can_be_cancelled(lab, practice):
    way, relay = practice
    async with lab.history.aio_channel(relay.address) as channel:
        await channel.unary_unary(LIST)(b"", timeout=10)
        with way.latency(800), pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.unary_unary(LIST)(b"", timeout=10), 0.3)
    assert [call.code for call in lab.history.calls] == ["OK", "CANCELLED"]


def test_a_failure_is_recorded_and_told_with_the_call(lab, practice):
    way, relay = practice
    with lab.history.channel(relay.address) as channel, way.blackhole(), pytest.raises(grpc.RpcError):
        channel.unary_unary(LIST)(b"", timeout=0.3)
    (call,) = lab.history.calls
    assert call.code == "DEADLINE_EXCEEDED"
    with pytest.raises(AssertionError, match=r"broken: at least 100%(.|\n)*0 of 1.*DEADLINE_EXCEEDED"):
        lab.history.assert_success_at_least(1.0)


def test_the_history_is_a_file_that_other_tools_read(toxiproxy, tmp_path, echo):
    with open_lab(toxiproxy, tmp_path, 7) as lab, lab.proxied(echo).latency(5):
        lab.history.begin("/shop.v1.Orders/Place", {}, 1.0).end("OK", "", {})
    history = read_history(tmp_path / "history.jsonl")
    assert (history.head.name, history.head.seed, history.head.toxiproxy) == ("pytest", 7, "embedded")
    assert [call.code for call in history.calls] == ["OK"]
    assert [fault.name for fault in history.faults] == ["latency"]


def recorded(*codes, key=None, timeout_s=1.0, trailers=None):
    recorder = Recorder(seed=7)
    for number, code in enumerate(codes):
        metadata = {"idempotency-key": key or f"order-{number}"}
        recorder.begin("/shop.v1.Orders/Place", metadata, timeout_s).end(code, "", trailers or {})
    return recorder


def test_the_last_try_of_an_operation_counts():
    recorder = recorded("UNAVAILABLE", "OK", key="one")
    recorder.assert_success_at_least(1.0)
    assert [call.client_try for call in recorder.calls] == [1, 2]


def test_a_doubled_effect_a_missing_one_and_a_storm_are_each_told():
    recorder = recorded("OK", "OK", trailers={"relay-attempts": "4"})
    with pytest.raises(AssertionError, match="order-0 was charged 2 times"):
        recorder.assert_at_most_one_effect(["order-0", "order-0", "order-1"])
    with pytest.raises(AssertionError, match="order-1 was answered OK and is not in the ledger"):
        recorder.assert_answers_match_effects(["order-0"])
    with pytest.raises(AssertionError, match="6 retries for 2 calls"):
        recorder.assert_retries_within(ratio=0.2, burst=1)
    with pytest.raises(AssertionError, match="3 planned, 2 recorded"):
        recorder.assert_all_accounted_for(3)


def test_too_little_to_tell_is_a_failure_too():
    with pytest.raises(AssertionError, match="could not tell"):
        recorded("OK").assert_success_at_least(1.0, minimum=2)
    with pytest.raises(AssertionError, match="could not tell"):
        Recorder(seed=7).assert_answered_in_time()


def test_the_same_seed_gives_the_same_trace_ids():
    assert recorded("OK").calls[0].trace_id == recorded("OK").calls[0].trace_id


def test_a_policy_may_be_a_document(tmp_path):
    from chaos.plugin.relay import policy_argument

    assert policy_argument("simple", tmp_path / "unused.json") == "simple"
    path = Path(policy_argument({"relay": {"preset": "simple"}}, tmp_path / "policy.json"))
    assert json.loads(path.read_text()) == {"relay": {"preset": "simple"}}
