"""The generator against the real payment service: what it sends, what it records, what it holds back."""

import sys

import pytest
import pytest_asyncio

from chaos.client import Client, Errand, outcome_of
from chaos.downstream import Downstream
from chaos.history import HistoryWriter, Outcome, new_run
from chaos.plan import CHARGE, CHARGE_KEYED, LIST, Arrivals, Profile, Step, make_plan
from chaos.processes import ManagedProcess
from chaos.tracing import ClientTracing
from chaos.traffic import Limits, NaiveRetry, run_closed_loop, run_open_loop
from protos.downstream.v1 import fault_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")
BURST = Profile((Step(2000, 0.05),), Arrivals.CONSTANT, calls_max=100)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downstream")
    process = ManagedProcess("downstream", folder / "downstream.log")
    command = [sys.executable, "-m", "downstream_service", "serve", "--ready-json", "--listen", "127.0.0.1:0"]
    ready = await process.start([*command, "--seed", "5"])
    yield ready["listen"]
    await process.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def downstream(address):
    async with Downstream(address) as back_door:
        await back_door.clear_faults()
        yield back_door
        await back_door.clear_faults()


@pytest_asyncio.fixture(loop_scope="module")
async def client(address, tmp_path):
    with (
        HistoryWriter(tmp_path / "history.jsonl", new_run("test", 5, "none")) as history,
        ClientTracing(tmp_path / "client.jsonl", 5) as tracing,
    ):
        async with Client(address, history, tracing) as connected:
            yield connected


def fault(**kind):
    return fault_pb2.SetFaultsRequest(faults=[fault_pb2.Fault(**kind)])


async def test_an_open_loop_records_every_planned_call_and_the_ledger_agrees(client, downstream):
    before = await downstream.last_sequence()
    plan = make_plan("open", BURST, (CHARGE, LIST), seed=5)
    assert await run_open_loop(client, plan, "open", timeout_s=5) == 100
    calls = client.history.take()
    assert sorted(call.operation for call in calls) == [f"open-{number:06d}" for number in range(100)]
    assert {call.code for call in calls} == {"OK"}
    charges = {call.operation for call in calls if call.method.endswith("/Charge")}
    assert {entry.operation for entry in await downstream.ledger(after_sequence=before)} == charges
    assert all(call.sent_s >= call.intended_s for call in calls)


async def test_a_slow_service_does_not_slow_an_open_loop_down(client, downstream):
    """All 50 calls leave while the first is still out; a closed loop would wait for it."""
    latency = fault_pb2.Latency()
    latency.fixed.FromMilliseconds(700)
    await downstream.set_faults(fault(latency=latency))
    profile = Profile((Step(200, 0.25),), Arrivals.CONSTANT)
    await run_open_loop(client, make_plan("slow", profile, (CHARGE,), 5), "slow", timeout_s=5)
    calls = client.history.take()
    assert max(call.sent_s for call in calls) < min(call.done_s for call in calls)


async def test_calls_beyond_the_generators_limit_are_recorded_as_unsent(client, downstream):
    await downstream.set_faults(fault(hang=fault_pb2.Hang()))
    plan = make_plan("limit", BURST, (CHARGE,), 5)
    await run_open_loop(client, plan, "limit", timeout_s=0.6, limits=Limits(in_flight_max=10))
    calls = client.history.take()
    unsent = [call for call in calls if call.outcome is Outcome.UNSENT]
    assert (len(calls), len(unsent)) == (100, 90)
    assert all(call.sent_s is None for call in unsent)


async def test_calls_still_out_after_the_drain_are_given_up_and_their_outcome_is_unknown(client, downstream):
    await downstream.set_faults(fault(hang=fault_pb2.Hang()))
    plan = make_plan("drain", Profile((Step(100, 1),), calls_max=3), (CHARGE,), 5)
    await run_open_loop(client, plan, "drain", timeout_s=30, limits=Limits(drain_s=0.2))
    calls = client.history.take()
    assert [(call.code, call.outcome) for call in calls] == [("CANCELLED", Outcome.UNKNOWN)] * 3


@pytest.mark.parametrize(("kind", "entries"), [(CHARGE, 2), (CHARGE_KEYED, 1)])
async def test_a_naive_retry_after_a_lost_answer_charges_twice_unless_it_has_a_key(
    client, downstream, kind, entries
):
    lost = fault_pb2.Failure(code=14, when=fault_pb2.Failure.WHEN_AFTER_EFFECT)
    before = await downstream.last_sequence()
    await downstream.set_faults(fault(failure=lost, max_strikes=1))
    plan = make_plan(f"naive-{kind.keys.value}", Profile((Step(1, 5),), calls_max=1), (kind,), 5)
    retry = NaiveRetry(tries_max=3, pause_s=0.01)
    await run_closed_loop(client, plan, "naive", workers=2, for_s=5, timeout_s=5, retry=retry)
    assert [(call.client_try, call.code) for call in client.history.take()] == [(1, "UNAVAILABLE"), (2, "OK")]
    assert len(await downstream.ledger(after_sequence=before)) == entries


async def test_a_closed_loop_takes_nothing_new_after_its_time(client, downstream):
    latency = fault_pb2.Latency()
    latency.fixed.FromMilliseconds(100)
    await downstream.set_faults(fault(latency=latency))
    plan = make_plan("timed", Profile((Step(10_000, 10),)), (CHARGE,), 5)
    begun = await run_closed_loop(client, plan, "timed", workers=4, for_s=0.3, timeout_s=5)
    assert 4 <= begun == len(client.history.take()) <= 16


@pytest.mark.parametrize(
    ("code", "trailers", "outcome"),
    [
        ("OK", {}, Outcome.EXECUTED),
        ("OK", {"relay-outcome": "unknown"}, Outcome.EXECUTED),
        ("UNAVAILABLE", {"relay-outcome": "not-executed"}, Outcome.NOT_EXECUTED),
        ("UNKNOWN", {"relay-outcome": "unknown"}, Outcome.UNKNOWN),
        ("UNAVAILABLE", {}, Outcome.UNKNOWN),
        ("DEADLINE_EXCEEDED", {}, Outcome.UNKNOWN),
        ("INVALID_ARGUMENT", {}, Outcome.NOT_EXECUTED),
    ],
)
async def test_an_outcome_is_believed_only_as_far_as_it_was_told(code, trailers, outcome):
    assert outcome_of(code, trailers) is outcome


async def test_an_unreachable_service_is_recorded_and_raises_nothing(address, client, tmp_path):
    (planned,) = make_plan("gone", Profile((Step(1, 9),), calls_max=1), (CHARGE,), 5)
    elsewhere = Client("127.0.0.1:1", client.history, client._tracing, channels=1)
    record = await elsewhere.call(Errand(planned, "gone", client.history.now(), timeout_s=5))
    await elsewhere.__aexit__(None, None, None)
    assert (record.code, record.outcome) == ("UNAVAILABLE", Outcome.UNKNOWN)
