"""At most one effect a key, and the same answer for all who send it, whatever dies or stalls on the way."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from keyed_world import LEASE_S, STEPS, Crashed, KeyedWorld, Sent
from virtual_loop import VirtualLoop
from world import TICK_S, Behaviour

from relay_service import contract
from relay_service.core import idempotency, settlement
from relay_service.core.evidence import Safety
from relay_service.core.idempotency import Decision, Record, RecordState, Scope
from relay_service.core.key_policy import IdempotencyPolicy, InFlight, KeyLimits
from relay_service.core.letter_policy import LetterPolicy
from relay_service.core.policy import AdmissionPolicy, MethodPolicy, RelayPolicy, RetryPolicy, UpstreamPolicy
from relay_service.core.settlement import LeaveAmbiguous, Release
from relay_service.core.status import Code
from relay_service.idempotency import books, flight
from relay_service.idempotency.answer import Answer
from tests.stores.memory import MemoryStore


@pytest.fixture(autouse=True)
def nothing_breaks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A relay answers its callers even when its own code breaks; here that must not go unseen."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


KEYS = 8
SEEDS = 600
BLOCKS = 6


def a_world(seed: int, store: MemoryStore) -> KeyedWorld:
    """A random policy and a random behaviour of upstream, store and relays."""
    draw = Random(seed)
    safety = draw.choice([Safety.KEYED, Safety.NONE])
    keeping = IdempotencyPolicy(in_flight=draw.choice(list(InFlight)), settle_s=draw.choice([0.0, 1.0, 5.0]))
    method = MethodPolicy(
        safety=safety,
        unary=True,
        attempt_timeout_s=0.5,
        retry=RetryPolicy(max_attempts=draw.randint(1, 4), initial_backoff_s=0.01, max_backoff_s=0.2),
        idempotency=keeping,
    )
    policy = RelayPolicy(
        "simulated",
        {"upstream": UpstreamPolicy(target="127.0.0.1:1")},
        {"": method},
        (),
        AdmissionPolicy(queue_capacity=draw.randint(0, 20), workers=draw.randint(1, 20)),
        None,
        keys=KeyLimits(lease_s=LEASE_S),
        dead_letters=LetterPolicy(on_exhausted=draw.random() < 0.2),
    )
    behaviour = Behaviour(
        *(draw.choice([0.0, draw.uniform(0, 0.25)]) for _ in range(5)),
        latency_s=draw.choice([0.005, 0.05, 0.3]),
    )
    return KeyedWorld(
        seed,
        policy,
        behaviour,
        safety,
        store,
        kills=draw.choice([0.0, 0.0, 0.03]),
        stops=draw.choice([0.0, 0.0, 0.03]),
        nodes_count=draw.randint(1, 3),
        store_latency_s=draw.choice([0.0, 0.005, 0.05]),
        store_loses=draw.choice([0.0, 0.0, 0.1]),
    )


async def a_run(seed: int, make_store: Callable[[Callable[[], float]], MemoryStore]) -> KeyedWorld:
    """Clients that send every key several times, to any relay, some with another payload, some impatient."""
    loop = asyncio.get_running_loop()
    world = a_world(seed, make_store(loop.time))
    draw = Random(seed * 7919)

    async def client(key: bytes) -> None:
        await asyncio.sleep(draw.uniform(0, 3))
        for _ in range(draw.randint(1, 4)):
            timeout_s = draw.uniform(0.05, 3.0)
            body = b"other" if draw.random() < 0.1 else b"the request of " + key
            impatient = draw.uniform(0, 0.5) if draw.random() < 0.15 else None
            world.send(key, body, timeout_s, cancel_after_s=impatient)
            await asyncio.sleep(draw.choice([0.0, 0.01, draw.uniform(0, 4 * LEASE_S)]))

    await asyncio.gather(*(client(b"key-%d" % number) for number in range(KEYS) for _ in range(2)))
    await asyncio.sleep(30)  # every lease, deadline and stall is over
    return world


def simulate(seed: int, make_store: Callable[[Callable[[], float]], MemoryStore] = MemoryStore) -> KeyedWorld:
    world: KeyedWorld = VirtualLoop(forgiven=Crashed).run(lambda: checked(seed, make_store))
    return world


def simulate_all(
    seeds: range, make_store: Callable[[Callable[[], float]], MemoryStore] = MemoryStore
) -> None:
    for seed in seeds:
        simulate(seed, make_store)


async def checked(seed: int, make_store: Callable[[Callable[[], float]], MemoryStore]) -> KeyedWorld:
    world = await a_run(seed, make_store)
    check_effects(world)
    check_answers(world)
    check_nothing_is_left(world)
    await check_what_is_known(world)
    return world


def scope_of(key: bytes) -> Scope:
    return Scope("", "t.S/Unary", key)


def effects(world: KeyedWorld, key: bytes) -> int:
    return world.upstream.effects_by_key[contract.derived_key("", "t.S/Unary", key)]


def check_effects(world: KeyedWorld) -> None:
    """I2: at most one effect a key; OK means that it exists."""
    for sent in world.sent:
        count = effects(world, sent.key)
        assert count <= 1, f"seed {world.seed}: {sent.key!r} took effect {count} times"
        if sent.reply.code is Code.OK:
            assert count == 1, f"seed {world.seed}: {sent.key!r} is OK without an effect"


def check_answers(world: KeyedWorld) -> None:
    """All successes of one key are the same bytes and of one request; every answer comes in time."""
    said = f"seed {world.seed}"
    told: dict[bytes, Sent] = {}
    for sent in world.sent:
        reply = sent.reply
        if reply.code is None:
            continue
        assert reply.answered_at - sent.at <= sent.timeout_s + TICK_S or world.stops, said
        if reply.code is Code.OK:
            first = told.setdefault(sent.key, sent)
            assert reply.data == first.reply.data, f"{said}: two answers for {sent.key!r}"
            assert sent.body == first.body, f"{said}: {sent.key!r} answered another request"
            assert reply.trailers[b"idempotency-status"] in (
                b"executed",
                b"replayed",
                b"coalesced",
                b"unknown",
            )


def check_nothing_is_left(world: KeyedWorld) -> None:
    """Every relay that lives has let go of everything."""
    for node in world.nodes:
        relay = node.relay
        said = f"seed {world.seed} {node.name}"
        assert relay.keys is not None
        state = relay.keys.state()
        assert (state.flights, state.waiting, state.leases) == (0, 0, 0), said
        assert (relay.in_flight, relay.admission.busy, relay.admission.queued) == (0, 0, 0), said
        assert relay.workers.held_bytes == 0, said
        assert node.observer.received == sum(node.observer.by_fate.values()), said


async def check_what_is_known(world: KeyedWorld) -> None:
    """An effect is either a stored answer, or listed as unknown, or a dead letter; what was told is kept."""
    listed, _ = await world.store.ambiguous(tenant=None, after="", limit=1000)
    unknown = {record.scope.key for record in listed}
    for key in {sent.key for sent in world.sent}:
        record = world.store.records.get(scope_of(key))
        said = f"seed {world.seed}: {key!r} is {record and record.state}"
        if effects(world, key):
            assert record is not None, said
            done = record.state in (RecordState.DONE, RecordState.DEAD_LETTERED)
            assert done or key in unknown, said
        for sent in world.sent:
            kept = sent.reply.trailers.get(b"idempotency-status") in (b"executed", b"replayed", b"coalesced")
            if sent.key == key and sent.reply.code is Code.OK and kept:
                assert record is not None, said
                assert record.state is RecordState.DONE, said
                assert Answer.decode(record.answer or b"").body == sent.reply.data, said


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_key_has_one_effect_and_one_answer_for_every_seed(block: int) -> None:
    size = SEEDS // BLOCKS
    simulate_all(range(block * size, block * size + size))


def test_the_worlds_reach_every_step_and_every_kind_of_answer() -> None:
    """A simulation that never gets anywhere proves nothing."""
    steps: set[str] = set()
    statuses: set[bytes] = set()
    reasons: set[bytes] = set()
    for seed in range(60):
        world = simulate(seed)
        steps |= set(world.steps)
        for sent in world.sent:
            statuses.add(sent.reply.trailers.get(b"idempotency-status", b""))
            reasons.add(sent.reply.trailers.get(b"relay-decision", b""))
    assert steps == set(STEPS)
    assert statuses >= {b"executed", b"replayed", b"coalesced", b"in-progress", b"unknown"}
    assert reasons >= {
        b"IDEMPOTENCY_KEY_REUSED",
        b"IDEMPOTENCY_IN_PROGRESS",
        b"IDEMPOTENCY_KEY_DEAD_LETTERED",
        b"OUTCOME_UNKNOWN",
        b"STORE_UNAVAILABLE",
    }


# Mutants: each promise broken once, and seen ---------------------------------------------------------


class FenceIgnored(MemoryStore):
    """Whoever writes last wins."""

    def _held(self, scope: Scope, fence: int) -> Record | None:
        return self.records.get(scope)


class ClaimNotAtomic(MemoryStore):
    """Reads, waits, then writes what it decided."""

    async def claim(self, claim: Any) -> Any:
        before = dict(self.records)
        await asyncio.sleep(0.02)
        now, self.records = self.records, before
        try:
            return await super().claim(claim)
        finally:
            self.records = now | {
                scope: record for scope, record in before.items() if now.get(scope) is not record
            }


_decide = idempotency.decide


def _ambiguous_is_free(
    record: Record | None, fingerprint: bytes, now: float, *, repeatable: bool
) -> Decision:
    return _decide(record, fingerprint, now, repeatable=True)


def _any_payload(record: Record | None, fingerprint: bytes, now: float, *, repeatable: bool) -> Decision:
    return _decide(record, record.fingerprint if record else fingerprint, now, repeatable=repeatable)


_settlement_of = settlement.settlement_of


def _released_after_dispatch(*args: Any) -> Any:
    settled = _settlement_of(*args)
    return Release() if isinstance(settled, LeaveAmbiguous) else settled


@contextmanager
def deciding(decide: Any) -> Iterator[None]:
    with patch.object(flight, "decide", decide), patch("tests.stores.memory.decide", decide):
        yield


@contextmanager
def settling(settle: Any) -> Iterator[None]:
    with patch.object(books, "settlement_of", settle):
        yield


@contextmanager
def as_it_is() -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("broken", "store"),
    [
        (as_it_is, FenceIgnored),
        (as_it_is, ClaimNotAtomic),
        (lambda: deciding(_ambiguous_is_free), MemoryStore),
        (lambda: settling(_released_after_dispatch), MemoryStore),
        (lambda: deciding(_any_payload), MemoryStore),
    ],
    ids=[
        "the fence is ignored",
        "the claim is not atomic",
        "ambiguous counts as free",
        "released after the dispatch",
        "replayed for any payload",
    ],
)
def test_a_relay_that_breaks_the_promise_is_caught(broken: Any, store: type[MemoryStore]) -> None:
    with broken(), pytest.raises(AssertionError):
        simulate_all(range(SEEDS), store)
