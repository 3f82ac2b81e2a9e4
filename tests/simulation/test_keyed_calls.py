"""What becomes of keyed calls step by step, against an upstream that the test moves by hand."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
from virtual_loop import LoopClock, VirtualLoop
from world import Catalog, Observer, Reply, framed

from relay_service.core.evidence import Delivery, Safety
from relay_service.core.idempotency import RecordState, Scope
from relay_service.core.key_policy import IdempotencyPolicy, KeyLimits
from relay_service.core.policy import AdmissionPolicy, MethodPolicy, RelayPolicy, RetryPolicy, UpstreamPolicy
from relay_service.core.status import Code
from relay_service.core.verdict import Fate
from relay_service.idempotency.keys import KeysSetup
from relay_service.message import FRAME_PREFIX_BYTES
from relay_service.ports import AttemptEnd, AttemptSink, CallHead, Headers
from relay_service.relay import Relay
from relay_service.stores.interface import StoreUnavailableError
from tests.stores.memory import MemoryStore

OK = AttemptEnd(Delivery.ANSWERED, Code.OK, "", ((b"upstream-trailer", b"1"),))
UNAVAILABLE = AttemptEnd(Delivery.ANSWERED, Code.UNAVAILABLE, "busy")
SCOPE = Scope("", "t.S/Unary", b"k")


class HandAttempt:
    peer = "upstream:1"
    buffered_bytes = 0

    def __init__(self, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> None:
        self.metadata, self.timeout_s, self.sink = dict(metadata), timeout_s, sink
        self.data = b""
        self.cancelled = False

    def send_data(self, data: bytes, *, end: bool) -> None:
        self.data += data

    def cancel(self) -> Delivery:
        self.cancelled = True
        return Delivery.UNANSWERED

    def consumed(self, size_bytes: int) -> None:
        pass

    def succeed(self, message: bytes = b"done", headers: Headers = ((b"served", b"yes"),)) -> None:
        self.sink.on_response_headers(self, headers)
        self.sink.on_response_data(self, message if message[:1] in (b"\0", b"\1") else framed(message))
        self.sink.on_end(self, OK)

    def fail(self, end: AttemptEnd = UNAVAILABLE) -> None:
        self.sink.on_end(self, end)


class HandUpstream:
    name = "upstream"

    def __init__(self) -> None:
        self.attempts: list[HandAttempt] = []

    def start(
        self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink
    ) -> HandAttempt:
        self.attempts.append(HandAttempt(metadata, timeout_s, sink))
        return self.attempts[-1]

    @property
    def last(self) -> HandAttempt:
        return self.attempts[-1]


class SickStore(MemoryStore):
    """Fails at the operations it is told to."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.failing: set[str] = set()
        self.done_then_lost: set[str] = set()

    async def look_up(self, scope: Scope) -> Any:
        return await self._or_fail("look_up", super().look_up(scope))

    async def claim(self, claim: Any) -> Any:
        return await self._or_fail("claim", super().claim(claim))

    async def finish(self, *args: Any, **kwargs: Any) -> Any:
        return await self._or_fail("finish", super().finish(*args, **kwargs))

    async def _or_fail(self, operation: str, doing: Awaitable[Any]) -> Any:
        if operation in self.failing:
            doing.close()  # type: ignore[attr-defined]
            raise StoreUnavailableError("no store")
        result = await doing
        if operation in self.done_then_lost:
            raise StoreUnavailableError("no answer")
        return result


class Bench:
    """A relay with a store, one hand-moved upstream, and callers; inside a `VirtualLoop`."""

    def __init__(self, safety: Safety = Safety.KEYED, workers: int = 5, **keeping: Any) -> None:
        limits = {name: keeping.pop(name) for name in ("waiters", "waiters_per_key") if name in keeping}
        self.clock = LoopClock(asyncio.get_running_loop())
        self.upstream = HandUpstream()
        self.observer = Observer()
        self.store = SickStore(asyncio.get_running_loop().time)
        method = MethodPolicy(
            safety=safety,
            attempt_timeout_s=None,
            retry=RetryPolicy(max_attempts=1),
            idempotency=IdempotencyPolicy(**keeping),
        )
        policy = RelayPolicy(
            "test",
            {"upstream": UpstreamPolicy(target="127.0.0.1:1")},
            {"": method},
            admission=AdmissionPolicy(queue_capacity=5, workers=workers),
            budget=None,
            keys=KeyLimits(lease_s=3.0, **limits),
        )
        self.relay = Relay(
            policy,
            {"upstream": self.upstream},
            Catalog(),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=Random(1),
            own_services={},
            keys=KeysSetup(self.store, "relay-1"),  # type: ignore[arg-type]
        )

    def call(
        self,
        key: bytes | None = b"k",
        body: bytes = framed(b"request"),
        *,
        timeout_s: float = 10.0,
        metadata: Headers = (),
    ) -> tuple[Any, Reply]:
        reply = Reply(self.clock)  # type: ignore[arg-type]
        fields = [*metadata, (b"call-id", b"%d" % self.observer.received)]
        if key is not None:
            fields.append((b"idempotency-key", key))
        call = self.relay.on_call(CallHead("t.S/Unary", fields, timeout_s, self.clock.now, "c:1"), reply)
        assert call is not None
        call.on_request_data(body, end=True)
        return call, reply

    async def dispatched(self, attempts: int = 1) -> None:
        await true(lambda: len(self.upstream.attempts) >= attempts)

    async def answered(self, reply: Reply) -> Reply:
        await true(lambda: reply.code is not None)
        return reply

    @property
    def nothing_left(self) -> bool:
        keys = self.relay.keys
        assert keys is not None
        state = keys.state()
        counts = (state.flights, state.waiting, state.leases, self.relay.in_flight)
        workers = self.relay.workers
        return counts == (0, 0, 0, 0) and workers.shared.busy == workers.held_bytes == 0


async def true(condition: Callable[[], bool]) -> None:
    """Let virtual time pass until it is."""
    while not condition():  # noqa: ASYNC110 (virtual time: looking costs nothing and delays nothing)
        await asyncio.sleep(0.001)


def virtual(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test on virtual time; the name says what pytest should call it."""

    def run() -> None:
        async def bounded() -> None:
            async with asyncio.timeout(600):
                await test()

        VirtualLoop().run(bounded)

    run.__name__ = test.__name__
    return run


def status_of(reply: Reply) -> bytes:
    return reply.trailers.get(b"idempotency-status", b"")


@virtual
async def test_a_replay_has_the_headers_message_and_trailers_of_the_first_answer() -> None:
    bench = Bench()
    _, first = bench.call()
    await bench.dispatched()
    bench.upstream.last.succeed()
    await bench.answered(first)
    _, again = bench.call()
    await bench.answered(again)
    assert (again.headers, again.data, again.code) == (first.headers, first.data, first.code)
    assert again.trailers[b"upstream-trailer"] == b"1"
    assert (status_of(first), status_of(again)) == (b"executed", b"replayed")
    assert len(bench.upstream.attempts) == 1
    assert bench.nothing_left


@virtual
async def test_duplicates_take_no_worker_and_get_the_same_answer() -> None:
    bench = Bench(workers=1)
    replies = [bench.call()[1] for _ in range(20)]
    await bench.dispatched()
    assert bench.relay.admission.busy == 1
    bench.upstream.last.succeed()
    for reply in replies:
        await bench.answered(reply)
    assert {reply.data for reply in replies} == {framed(b"done")}
    assert [status_of(reply) for reply in replies] == [b"executed"] + [b"coalesced"] * 19
    assert bench.observer.by_fate[Fate.OK] == 20
    assert sum(verdict.attempts for verdict in bench.observer.verdicts.values()) == 1
    assert bench.nothing_left


@virtual
async def test_the_waiting_list_of_a_key_is_bounded() -> None:
    bench = Bench(waiters_per_key=3)
    replies = [bench.call()[1] for _ in range(5)]
    turned_away = replies[3:]
    assert [reply.trailers[b"relay-decision"] for reply in turned_away] == [b"IDEMPOTENCY_IN_PROGRESS"] * 2
    assert [reply.code for reply in replies] == [None] * 3 + [Code.ABORTED] * 2


@virtual
async def test_the_callers_that_wait_are_bounded_all_together() -> None:
    bench = Bench(waiters=3)
    replies = [bench.call(b"k%d" % number)[1] for number in range(5)]
    assert [reply.code for reply in replies] == [None] * 3 + [Code.RESOURCE_EXHAUSTED] * 2
    assert replies[4].trailers[b"relay-decision"] == b"QUEUE_FULL"
    assert int(replies[4].trailers[b"grpc-retry-pushback-ms"]) > 0


@virtual
async def test_a_cancelled_caller_leaves_its_attempt_the_time_to_settle() -> None:
    bench = Bench(settle_s=2.0)
    call, _ = bench.call()
    await bench.dispatched()
    call.on_cancelled()
    await asyncio.sleep(1.5)
    assert not bench.upstream.last.cancelled
    bench.upstream.last.succeed()
    _, later = bench.call()
    await bench.answered(later)
    assert status_of(later) in (b"coalesced", b"replayed")
    assert (bench.observer.by_fate[Fate.CANCELLED], bench.observer.by_fate[Fate.OK]) == (1, 1)
    assert bench.nothing_left


@virtual
async def test_an_attempt_that_does_not_settle_in_time_leaves_its_key_ambiguous() -> None:
    bench = Bench(settle_s=2.0)
    call, _ = bench.call()
    await bench.dispatched()
    call.on_cancelled()
    await asyncio.sleep(2.5)
    assert bench.upstream.last.cancelled
    assert bench.store.records[SCOPE].state is RecordState.AMBIGUOUS
    assert bench.nothing_left


@virtual
async def test_an_attempt_lives_to_the_deadline_of_its_latest_waiter() -> None:
    bench = Bench(settle_s=0.0)
    _, hasty = bench.call(timeout_s=1.0)
    await bench.dispatched()
    _, patient = bench.call(timeout_s=5.0)
    await asyncio.sleep(3.0)
    assert (hasty.code, status_of(hasty)) == (Code.DEADLINE_EXCEEDED, b"in-progress")
    assert hasty.trailers[b"relay-decision"] == b"OUTCOME_UNKNOWN"
    bench.upstream.last.succeed()
    await bench.answered(patient)
    assert (patient.code, status_of(patient)) == (Code.OK, b"coalesced")
    assert bench.nothing_left


@virtual
async def test_a_cancel_in_the_queue_frees_the_key_and_the_place() -> None:
    bench = Bench(workers=1)
    bench.call(b"other")
    await bench.dispatched()
    call, _ = bench.call()
    await true(lambda: bench.relay.admission.queued > 0)
    call.on_cancelled()
    await asyncio.sleep(0.01)
    assert bench.relay.admission.queued == 0
    assert SCOPE not in bench.store.records
    bench.upstream.last.succeed()
    await asyncio.sleep(0.1)
    assert bench.nothing_left


@virtual
async def test_without_a_store_nothing_keyed_is_executed() -> None:
    bench = Bench()
    bench.store.failing = {"look_up"}
    _, reply = bench.call()
    await bench.answered(reply)
    assert (reply.code, reply.trailers[b"relay-decision"]) == (Code.UNAVAILABLE, b"STORE_UNAVAILABLE")
    assert reply.trailers[b"relay-outcome"] == b"not-executed"
    assert bench.upstream.attempts == []
    _, unkeyed = bench.call(None)
    assert bench.relay.keys is not None
    bench.upstream.last.succeed()
    assert unkeyed.code is Code.OK
    assert bench.nothing_left


@virtual
async def test_an_answer_that_cannot_be_stored_is_given_all_the_same() -> None:
    bench = Bench()
    bench.store.failing = {"finish"}
    _, reply = bench.call()
    await bench.dispatched()
    bench.upstream.last.succeed()
    await bench.answered(reply)
    assert (reply.code, reply.data, status_of(reply)) == (Code.OK, framed(b"done"), b"unknown")
    bench.store.failing = set()
    await asyncio.sleep(5)  # the lease runs out
    _, again = bench.call()
    await bench.dispatched(2)
    keys = {attempt.metadata[b"idempotency-key"] for attempt in bench.upstream.attempts}
    assert len(keys) == 1
    bench.upstream.last.succeed()
    await bench.answered(again)
    assert status_of(again) == b"executed"


@virtual
async def test_a_claim_whose_answer_was_lost_does_not_hold_its_key() -> None:
    """Nothing was dispatched under it, so it is not ambiguous either."""
    bench = Bench(Safety.NONE)
    bench.store.done_then_lost = {"claim"}
    _, reply = bench.call()
    await bench.answered(reply)
    assert reply.trailers[b"relay-decision"] == b"STORE_UNAVAILABLE"
    assert bench.store.records[SCOPE].state is RecordState.IN_PROGRESS
    bench.store.done_then_lost = set()
    _, again = bench.call()
    await bench.dispatched()
    bench.upstream.last.succeed()
    await bench.answered(again)
    assert status_of(again) == b"executed"


@virtual
async def test_a_claim_whose_answer_was_lost_is_let_go_of_without_another_call() -> None:
    bench = Bench(Safety.NONE)
    bench.store.done_then_lost = {"claim"}
    _, reply = bench.call()
    await bench.answered(reply)
    bench.store.done_then_lost = set()
    await asyncio.sleep(2)
    assert SCOPE not in bench.store.records


@virtual
async def test_a_lease_is_renewed_while_the_work_lives() -> None:
    bench = Bench()
    _, reply = bench.call(timeout_s=60.0)
    await bench.dispatched()
    await asyncio.sleep(20)
    assert bench.store.records[SCOPE].lease_until > bench.clock.now
    bench.upstream.last.succeed()
    await bench.answered(reply)
    assert status_of(reply) == b"executed"


@virtual
async def test_a_compressed_request_is_the_same_request() -> None:
    bench = Bench()
    _, first = bench.call()
    await bench.dispatched()
    bench.upstream.last.succeed()
    await bench.answered(first)
    squeezed = gzip.compress(b"request")
    body = b"\1" + len(squeezed).to_bytes(FRAME_PREFIX_BYTES - 1) + squeezed
    _, again = bench.call(body=body, metadata=[(b"grpc-encoding", b"gzip")])
    await bench.answered(again)
    assert status_of(again) == b"replayed"


@pytest.mark.parametrize("accepts", [b"gzip,identity", b"identity"])
def test_a_replay_is_decompressed_for_a_caller_that_could_not_read_it(accepts: bytes) -> None:
    squeezed = gzip.compress(b"done")
    compressed = b"\1" + len(squeezed).to_bytes(FRAME_PREFIX_BYTES - 1) + squeezed

    async def story() -> None:
        bench = Bench()
        _, first = bench.call(metadata=[(b"grpc-accept-encoding", b"gzip")])
        await bench.dispatched()
        bench.upstream.last.succeed(compressed, ((b"grpc-encoding", b"gzip"),))
        await bench.answered(first)
        _, again = bench.call(metadata=[(b"grpc-accept-encoding", accepts)])
        await bench.answered(again)
        assert first.data == compressed
        readable = (
            (compressed, ((b"grpc-encoding", b"gzip"),)) if b"gzip" in accepts else (framed(b"done"), ())
        )
        assert (again.data, tuple(again.headers or ())) == readable

    VirtualLoop().run(story)


@virtual
async def test_a_call_without_a_key_needs_no_task() -> None:
    bench = Bench()
    before = asyncio.all_tasks()
    _, reply = bench.call(None)
    assert asyncio.all_tasks() == before
    bench.upstream.last.succeed()
    assert reply.code is Code.OK
    assert b"idempotency-status" not in reply.trailers


@virtual
async def test_a_call_without_a_key_gets_its_payload_for_one() -> None:
    bench = Bench(payload_keys=True)
    _, first = bench.call(None)
    await bench.dispatched()
    assert len(bench.upstream.last.metadata[b"idempotency-key"]) == 64
    bench.upstream.last.succeed()
    await bench.answered(first)
    _, again = bench.call(None)
    await bench.answered(again)
    assert status_of(again) == b"replayed"


@virtual
async def test_two_tenants_equal_keys_have_nothing_in_common() -> None:
    bench = Bench()
    for identity in ("alice", "bob"):
        reply = Reply(bench.clock)  # type: ignore[arg-type]
        metadata = [(b"call-id", identity.encode()), (b"idempotency-key", b"k")]
        head = CallHead("t.S/Unary", metadata, 10.0, bench.clock.now, "c:1", identity=identity)
        call = bench.relay.on_call(head, reply)
        assert call is not None
        call.on_request_data(framed(identity.encode()), end=True)
    await bench.dispatched(2)
    keys = {attempt.metadata[b"idempotency-key"] for attempt in bench.upstream.attempts}
    assert len(keys) == 2
