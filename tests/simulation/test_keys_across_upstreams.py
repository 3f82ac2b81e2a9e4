"""A key, several upstreams, quotas and another policy: what the parts owe each other, step by step."""

import asyncio
import base64
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from test_keyed_calls import SCOPE, HandUpstream, SickStore, status_of, true, virtual
from virtual_loop import LoopClock
from world import Catalog, Observer, Reply, framed

from relay_service.core.evidence import Delivery, Safety
from relay_service.core.idempotency import RecordState
from relay_service.core.job import Job, JobState, Work
from relay_service.core.key_policy import IdempotencyPolicy
from relay_service.core.policy import (
    AdmissionPolicy,
    BreakerPolicy,
    ClientQuota,
    ClientsPolicy,
    HedgePolicy,
    MethodPolicy,
    RelayPolicy,
    RetryPolicy,
    Route,
    UpstreamPolicy,
)
from relay_service.core.status import Code
from relay_service.fault_points import nowhere
from relay_service.idempotency.keys import KeysSetup
from relay_service.jobs.carrier import JobCarrier
from relay_service.ports import AttemptEnd, CallHead, Headers
from relay_service.relay import Relay

LOST = AttemptEnd(Delivery.UNANSWERED, Code.UNAVAILABLE, "the connection broke")
OPEN_S = 5.0


class Bench:
    """A relay with a store before ``own``, which falls back to ``spare``; one failure opens a breaker."""

    def __init__(self, safety: Safety = Safety.KEYED, hedging: HedgePolicy | None = None) -> None:
        self.clock = LoopClock(asyncio.get_running_loop())
        self.own, self.spare = HandUpstream(), HandUpstream()
        self.observer = Observer()
        self.store = SickStore(asyncio.get_running_loop().time)
        self.method = MethodPolicy(
            safety=safety,
            attempt_timeout_s=None,
            retry=RetryPolicy(max_attempts=1),
            idempotency=IdempotencyPolicy(),
            hedging=hedging,
            fallback=("spare",),
        )
        self.relay = self.made(self.policy_of())

    def policy_of(self, **changes: Any) -> RelayPolicy:
        before = RelayPolicy(
            "test",
            {name: UpstreamPolicy(target=f"{name}:1") for name in ("own", "spare")},
            {"": self.method},
            (Route("", None, "own"),),
            budget=None,
            breakers={"": BreakerPolicy(consecutive_failures=1, failure_ratio=None, open_s=OPEN_S)},
        )
        return replace(before, **changes)

    def made(self, policy: RelayPolicy) -> Relay:
        return Relay(
            policy,
            {"own": self.own, "spare": self.spare},
            Catalog(),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=Random(1),
            own_services={},
            hedge_upstreams={"own": self.spare},
            keys=KeysSetup(self.store, "relay-1"),  # type: ignore[arg-type]
        )

    def limited(self, **changes: Any) -> None:
        self.relay = self.made(self.policy_of(**changes))

    def call(self, key: bytes = b"k", metadata: Headers = ()) -> tuple[Any, Reply]:
        reply = Reply(self.clock)  # type: ignore[arg-type]
        fields = [*metadata, (b"call-id", b"%d" % self.observer.received), (b"idempotency-key", key)]
        call = self.relay.on_call(CallHead("t.S/Unary", fields, 60.0, self.clock.now, "c:1"), reply)
        assert call is not None
        call.on_request_data(framed(b"request"), end=True)
        return call, reply

    async def answered(self, reply: Reply) -> Reply:
        await true(lambda: reply.code is not None)
        return reply

    async def at_own(self, attempts: int) -> None:
        await true(lambda: len(self.own.attempts) == attempts)

    async def open_the_breaker(self) -> None:
        _, reply = self.call(b"first")
        await self.at_own(1)
        self.own.last.fail()
        await self.answered(reply)


@virtual
async def test_a_key_that_may_be_repeated_is_never_taken_to_another_upstream() -> None:
    """An attempt there might stay without an answer, and the next call would make the effect again here."""
    bench = Bench()
    await bench.open_the_breaker()
    _, refused = bench.call()
    assert (await bench.answered(refused)).trailers[b"relay-decision"] == b"BREAKER_OPEN"
    assert not bench.spare.attempts
    await asyncio.sleep(OPEN_S + 1)
    _, reply = bench.call()
    await bench.at_own(2)
    bench.own.last.succeed()
    assert (await bench.answered(reply)).code is Code.OK


@virtual
async def test_a_key_that_is_never_repeated_may_fall_back() -> None:
    bench = Bench(Safety.NONE)
    await bench.open_the_breaker()
    _, reply = bench.call()
    await true(lambda: len(bench.spare.attempts) == 1)
    bench.spare.last.fail(LOST)
    await bench.answered(reply)
    assert bench.store.records[SCOPE].state is RecordState.AMBIGUOUS
    await asyncio.sleep(OPEN_S + 1)
    _, again = bench.call()
    assert (await bench.answered(again)).trailers[b"relay-decision"] == b"OUTCOME_UNKNOWN"
    assert (len(bench.own.attempts), len(bench.spare.attempts)) == (1, 1)


def job_of(work: Work) -> Job:
    """A job that is under way."""
    return Job("job", work, JobState.RUNNING, 0.0, 0.0, 60.0)


@pytest.mark.parametrize("safety", [Safety.KEYED, Safety.IDEMPOTENT])
def test_a_job_whose_run_may_have_been_executed_goes_to_no_other_upstream(safety: Safety) -> None:
    @virtual
    async def story() -> None:
        bench = Bench(safety)
        carrier = JobCarrier(bench.relay, timeout_s=30.0, fault_point=nowhere)
        work = Work("", "t.S/Unary", b"request", key=b"k")
        metadata = [(b"idempotency-key", b"k")]
        first = asyncio.create_task(carrier.call(work.method, metadata, work.request, [job_of(work)]))
        await bench.at_own(1)
        bench.own.last.fail(LOST)
        assert (await first).verdict.outcome == "unknown"
        second = asyncio.create_task(carrier.call(work.method, metadata, work.request, [job_of(work)]))
        await asyncio.wait([second], timeout=1.0)
        assert not bench.spare.attempts
        assert (await second).verdict.decision == "BREAKER_OPEN"

    story()


@virtual
async def test_a_batch_is_bound_to_its_upstream_by_what_the_jobs_in_it_are() -> None:
    bench = Bench(Safety.KEYED)
    bench.limited(
        methods={
            "t.S/Unary": MethodPolicy(safety=Safety.KEYED),
            "": replace(bench.method, safety=Safety.NONE),
        }
    )
    await bench.open_the_breaker()
    carrier = JobCarrier(bench.relay, timeout_s=30.0, fault_point=nowhere)
    run = asyncio.create_task(
        carrier.call("t.S/Batch", [], b"all", [job_of(Work("", "t.S/Unary", b"request"))])
    )
    await asyncio.wait([run], timeout=1.0)
    assert not bench.spare.attempts
    assert (await run).verdict.decision == "BREAKER_OPEN"


@virtual
async def test_a_keyed_call_whose_upstream_goes_before_it_was_begun_is_carried_by_the_new_policy() -> None:
    bench = Bench()
    _, reply = bench.call()
    successor = HandUpstream()
    moved = bench.policy_of(
        upstreams={"new": UpstreamPolicy("new:1")},
        methods={"": MethodPolicy(safety=Safety.KEYED)},
        routes=(Route("", None, "new"),),
    )
    bench.relay.adopt(moved, {"new": successor})
    await true(lambda: len(successor.attempts) == 1)
    successor.last.succeed()
    assert (await bench.answered(reply)).code is Code.OK
    assert status_of(reply) == b"executed"
    assert bench.relay.in_flight == 0


@virtual
async def test_a_keyed_call_over_its_clients_quota_is_told_whose_quota_it_is() -> None:
    bench = Bench()
    bench.limited(clients=ClientsPolicy(ClientQuota(rate_per_s=0.001, burst=1)))
    named = [(b"relay-client-id", b"shop")]
    bench.call(b"one", named)
    _, reply = bench.call(b"two", named)
    await bench.answered(reply)
    assert reply.trailers[b"relay-decision"] == b"CLIENT_QUOTA"
    assert b"client:shop" in base64.b64decode(reply.trailers[b"grpc-status-details-bin"] + b"==")
    bench.own.last.succeed()


@virtual
async def test_a_keyed_call_that_finds_no_room_costs_its_client_nothing() -> None:
    bench = Bench()
    bench.limited(
        admission=AdmissionPolicy(workers=1, queue_capacity=0),
        clients=ClientsPolicy(ClientQuota(rate_per_s=0.001, burst=2)),
    )
    _, first = bench.call(b"one")
    await bench.at_own(1)
    _, refused = bench.call(b"two")
    assert (await bench.answered(refused)).trailers[b"relay-decision"] == b"QUEUE_FULL"
    bench.own.last.succeed()
    await bench.answered(first)
    _, third = bench.call(b"three")
    await bench.at_own(2)
    bench.own.last.succeed()
    assert (await bench.answered(third)).code is Code.OK


@virtual
async def test_the_hedges_of_a_caller_that_left_are_no_retries() -> None:
    bench = Bench(hedging=HedgePolicy(max_attempts=2, quantile=None, min_delay_s=0.01))
    call, _ = bench.call()
    await bench.at_own(1)
    await true(lambda: len(bench.spare.attempts) == 1)
    call.on_cancelled()
    bench.own.last.succeed()
    await true(lambda: b"0" in bench.observer.verdicts)
    verdict = bench.observer.verdicts[b"0"]
    assert (verdict.attempts, verdict.hedges, verdict.retries) == (2, 1, 0)
