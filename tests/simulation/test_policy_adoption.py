"""Another policy takes over in the middle of traffic: nothing is lost, and what still holds is kept."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from world import Behaviour, Upstream, World

from relay_service.core.breaker import BreakerState
from relay_service.core.evidence import Safety
from relay_service.core.policy import (
    NO_RETRY,
    AdmissionPolicy,
    BreakerPolicy,
    LimitKind,
    LimitPolicy,
    MethodPolicy,
    RelayPolicy,
    RetryBudgetPolicy,
    RetryPolicy,
    UpstreamPolicy,
)
from relay_service.core.status import Code
from relay_service.core.verdict import Fate

FAILING = Behaviour(fail_before=1.0)
RETRYING = MethodPolicy(retry=RetryPolicy(max_attempts=3))
ELSEWHERE = UpstreamPolicy("127.0.0.1:2")


def policy(**changes: Any) -> RelayPolicy:
    base = RelayPolicy("before", {"upstream": UpstreamPolicy("127.0.0.1:1")}, {"": RETRYING}, budget=None)
    return replace(base, **changes)


def test_a_call_keeps_the_policy_and_the_upstream_it_began_with() -> None:
    world = World(1, policy(), FAILING)
    world.call(b"old", timeout_s=60)
    successor = Upstream(world.clock, world.rng, Behaviour())
    left = world.relay.adopt(
        policy(upstreams={"upstream": ELSEWHERE}, methods={"": MethodPolicy(retry=NO_RETRY)}),
        {"upstream": successor},
    )
    idle = []
    (destination,) = left
    destination.when_idle(lambda: idle.append(world.clock.now))
    world.call(b"new", timeout_s=60)
    assert not idle, "the old call may still make an attempt"
    world.clock.run()
    assert world.replies[b"old"].trailers[b"relay-attempts"] == b"3"
    assert len(world.upstream.attempts) == 3
    assert world.replies[b"new"].code is Code.OK
    assert len(idle) == 1, "told once, when the last call was over"
    assert destination.calls == 0


def test_a_destination_that_nobody_uses_is_idle_at_once() -> None:
    world = World(1, policy(), Behaviour())
    world.call(b"one")
    world.clock.run()
    other = Upstream(world.clock, world.rng, Behaviour())
    (left,) = world.relay.adopt(policy(upstreams={"upstream": ELSEWHERE}), {"upstream": other})
    idle = []
    left.when_idle(lambda: idle.append(True))
    assert idle == [True]


OPENS_AT_ONCE = {"": BreakerPolicy(consecutive_failures=1, open_s=30.0)}


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, BreakerState.OPEN),
        ({"admission": AdmissionPolicy(workers=3)}, BreakerState.OPEN),
        ({"breakers": {**OPENS_AT_ONCE, "t.S": BreakerPolicy()}}, BreakerState.OPEN),
        ({"breakers": {"": BreakerPolicy(consecutive_failures=2)}}, BreakerState.CLOSED),
        ({"upstreams": {"upstream": ELSEWHERE}}, BreakerState.CLOSED),
    ],
    ids=["nothing", "admission", "another pattern", "its own policy", "another service"],
)
def test_a_breaker_stands_as_it_stood_unless_what_it_judges_or_how_has_changed(
    change: dict[str, Any], state: BreakerState
) -> None:
    before = policy(breakers=OPENS_AT_ONCE, methods={"": MethodPolicy(retry=NO_RETRY)})
    world = World(1, before, FAILING)
    world.call(b"fails")
    world.clock.step()
    world.relay.adopt(replace(before, **change), {"upstream": world.upstream})
    views = {view.methods: view.status for view in world.relay.breakers.views(world.clock.now)}
    assert views[""].state is state


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, 8),
        ({"admission": AdmissionPolicy(workers=3)}, 8),
        ({"budget": RetryBudgetPolicy(ratio=0.0, burst=9)}, 9),
        ({"upstreams": {"upstream": ELSEWHERE}}, 10),
    ],
    ids=["nothing", "admission", "another budget", "another service"],
)
def test_a_retry_budget_that_does_not_change_stays_as_spent_as_it_was(
    change: dict[str, Any], left: float
) -> None:
    before = policy(budget=RetryBudgetPolicy(ratio=0.0, burst=10))
    world = World(1, before, FAILING)
    world.call(b"fails", timeout_s=60)
    world.clock.run()
    world.relay.adopt(replace(before, **change), {"upstream": world.upstream})
    assert world.relay.gates["upstream"].state().tokens == left


def test_what_waits_keeps_its_place_and_starts_as_soon_as_workers_are_added() -> None:
    small = AdmissionPolicy(workers=1, queue_capacity=5)
    world = World(1, policy(admission=small), Behaviour())
    for number in range(6):
        world.call(b"%d" % number)
    assert (world.relay.admission.busy, world.relay.admission.queued) == (1, 5)
    world.relay.adopt(policy(admission=replace(small, queue_capacity=1)), {"upstream": world.upstream})
    assert world.relay.admission.queued == 5, "a smaller queue throws nobody out"
    world.call(b"too many")
    assert world.replies[b"too many"].code is Code.RESOURCE_EXHAUSTED
    world.relay.adopt(policy(admission=replace(small, workers=4)), {"upstream": world.upstream})
    assert (world.relay.admission.busy, world.relay.admission.queued) == (4, 2)
    world.clock.run()
    assert [world.replies[b"%d" % number].code for number in range(6)] == [Code.OK] * 6


def test_an_adaptive_limit_that_does_not_change_keeps_what_it_has_learned() -> None:
    learning = AdmissionPolicy(limit=LimitPolicy(LimitKind.GRADIENT, initial=20))
    world = World(1, policy(admission=learning), Behaviour())
    for number in range(2000):
        world.call_at(number * 0.001, b"%d" % number)
    world.clock.run()
    learned = world.relay.admission.state()
    assert learned.baseline_s > 0
    world.relay.adopt(policy(admission=replace(learning, queue_capacity=7)), {"upstream": world.upstream})
    assert world.relay.admission.state() == learned
    other = replace(learning, limit=LimitPolicy(LimitKind.GRADIENT, initial=9))
    world.relay.adopt(policy(admission=other), {"upstream": world.upstream})
    assert (world.relay.admission.workers, world.relay.admission.state().baseline_s) == (9, 0.0)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_adopted_when_no_call_is_lost_and_every_destination_becomes_idle(seed: int) -> None:
    """Random policies over random faults; prints its seed by its name."""
    rng = Random(seed)
    behaviour = Behaviour(
        refuse_connect=0.05, fail_before=0.1, lose_after=0.05, latency_s=rng.choice((0.005, 0.05))
    )
    world = World(seed, policy(), behaviour, Safety.KEYED)
    ports = {"upstream": world.upstream}
    idle: list[int] = []
    left = 0

    def adopt(_: object) -> None:
        nonlocal left, ports
        if rng.random() < 0.5:
            ports = {"upstream": Upstream(world.clock, world.rng, behaviour)}
            ports["upstream"].ledger = world.upstream.ledger
            ports["upstream"].effects = world.upstream.effects
        changed = policy(
            upstreams={"upstream": UpstreamPolicy(rng.choice(("127.0.0.1:1", "127.0.0.1:2")))},
            admission=AdmissionPolicy(workers=rng.randint(1, 20), queue_capacity=rng.randint(50, 200)),
            budget=rng.choice((None, RetryBudgetPolicy(ratio=0.5))),
            breakers=rng.choice(({}, {"": BreakerPolicy(min_calls=10)})),
        )
        for destination in world.relay.adopt(changed, ports):
            left += 1
            destination.when_idle(lambda: idle.append(1))

    for number in range(150):
        key = b"k%d" % number
        world.call_at(rng.uniform(0, 2), b"%d" % number, key=key, timeout_s=rng.uniform(0.2, 5))
    for _ in range(15):
        world.clock.call_at(world.clock.now + rng.uniform(0, 2), adopt, None)
    world.clock.run()

    assert all(reply.code is not None for reply in world.replies.values()), "a caller was left waiting"
    assert (world.relay.in_flight, world.relay.admission.busy, world.relay.admission.queued) == (0, 0, 0)
    assert len(idle) == left
    assert max(world.upstream.effects.values(), default=0) <= 1
    for call_id, reply in world.replies.items():
        assert reply.code is not Code.OK or world.upstream.effects[call_id] == 1
    assert sum(world.observer.by_fate.values()) == world.observer.received == 150
    assert world.observer.by_fate[Fate.OK] > 50
