"""Overload: what is served, what is refused, and that the refusal is honest. Seeds are in every message."""

import pytest
from overload import Group, Overload

from relay_service.core.policy import AdmissionPolicy
from relay_service.core.turns import PUSHBACK_MAX_S

SEED = 11


def criticality(name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"relay-criticality", name),)


def test_a_flood_of_sheddable_calls_costs_critical_calls_next_to_nothing() -> None:
    """12 times the capacity, 11.5 of it sheddable: the critical half is served as if it were alone."""
    world = Overload(SEED, AdmissionPolicy(queue_capacity=100, workers=10))
    critical = Group("critical", 0.5 * world.server.capacity_per_s)
    flood = Group("flood", 11.5 * world.server.capacity_per_s, metadata=criticality(b"sheddable"))
    world.run(10.0, critical, flood)
    print(f"seed {SEED}: critical {critical.ok_share:.4f}, flood {flood.ok_share:.4f} {flood.ended}")
    assert critical.ok_share >= 0.994, SEED
    served = (critical.ended["OK"] + flood.ended["OK"]) / (10.0 * world.server.capacity_per_s)
    assert served > 0.9, SEED
    assert flood.ended["SHED_BY_CRITICALITY"] > 0.9 * flood.offered, SEED


def test_when_all_classes_flood_each_is_served_before_the_next_lower_one() -> None:
    world = Overload(SEED, AdmissionPolicy(queue_capacity=100, workers=10))
    rate = 0.7 * world.server.capacity_per_s
    names = (b"CRITICAL_PLUS", b"critical", b"Sheddable_Plus", b"SHEDDABLE")
    groups = [Group(name.decode(), rate, metadata=criticality(name)) for name in names]
    world.run(10.0, *groups)
    shares = [group.ok_share for group in groups]
    print(f"seed {SEED}: {[round(share, 3) for share in shares]}")
    assert shares[0] > 0.99, SEED
    assert 0.2 < shares[1] < 0.6, SEED
    assert max(shares[2:]) < 0.05, SEED


def test_a_class_in_words_that_are_not_known_is_critical() -> None:
    world = Overload(SEED, AdmissionPolicy(queue_capacity=20, workers=10))
    odd = Group("odd", world.server.capacity_per_s, metadata=criticality(b"VERY_IMPORTANT"))
    plain = Group("plain", world.server.capacity_per_s)
    world.run(5.0, odd, plain)
    assert abs(odd.ok_share - plain.ok_share) < 0.08, SEED
    assert set(odd.ended) <= {"OK", "QUEUE_FULL", "DEADLINE_PASSED"}, odd.ended


def test_callers_refused_by_a_saturated_relay_are_told_turns_of_their_own() -> None:
    """Each refusal books the next turn; once those of ten seconds are booked, nobody is told to come."""
    world = Overload(SEED, AdmissionPolicy(queue_capacity=50, workers=10))
    world.run(5.0, Group("callers", 3 * world.server.capacity_per_s))
    told_s = [pushback / 1000 for pushback in world.pushbacks_ms if pushback >= 0]
    queue_needs_s = 51 / world.server.capacity_per_s
    last = sorted(told_s[-100:])
    print(f"seed {SEED}: {last[0]} to {last[-1]}, the queue needs {queue_needs_s:.3f}")
    assert last[0] > 10 * queue_needs_s, SEED
    assert 1.3 * last[0] < last[-1] <= 1.25 * PUSHBACK_MAX_S, SEED


@pytest.mark.parametrize("times", [3, 10])
def test_work_that_cannot_end_in_time_is_refused_and_not_done_in_vain(times: int) -> None:
    """FIFO, a queue of seconds, deadlines of 300 ms: without feasibility nearly all work would be late."""
    outcomes = {}
    for quantile in (0.9, None):
        admission = AdmissionPolicy(queue_capacity=500, workers=10, feasibility_quantile=quantile)
        world = Overload(SEED, admission)
        callers = Group("callers", times * world.server.capacity_per_s, timeout_s=0.3)
        world.run(8.0, callers)
        goodput = callers.ok_between(1.0, 8.0) / (7.0 * world.server.capacity_per_s)
        outcomes[quantile] = goodput, world.server.wasted / world.server.served, callers.ended
    print(f"seed {SEED}, {times}x: {outcomes}")
    goodput, wasted, ended = outcomes[0.9]
    assert goodput > 0.85, SEED
    assert wasted < 0.1, SEED
    assert ended["DEADLINE_INFEASIBLE"] > 0.5 * ended.total(), SEED
    assert outcomes[None][0] < goodput - 0.05, SEED


def test_what_an_outage_taught_is_unlearned_when_it_is_over() -> None:
    """Ten seconds of attempts that take 40 times as long; then nobody may be refused for what was."""
    world = Overload(SEED, AdmissionPolicy(queue_capacity=100, workers=10))
    world.at(2.0, lambda: setattr(world.server, "service_s", 2.0))
    world.at(12.0, lambda: setattr(world.server, "service_s", 0.05))
    callers = Group("callers", 0.7 * world.server.capacity_per_s, timeout_s=0.5)
    world.run(20.0, callers)
    recovered = callers.ok_between(15.0, 20.0) / (5.0 * callers.rate_per_s)
    print(f"seed {SEED}: {recovered:.3f} after the outage, {callers.ended}")
    assert recovered > 0.95, SEED


def test_an_infeasible_call_is_told_not_to_return() -> None:
    world = Overload(SEED, AdmissionPolicy(queue_capacity=500, workers=10))
    callers = Group("callers", 3 * world.server.capacity_per_s, timeout_s=0.2)
    world.run(3.0, callers)
    assert world.pushbacks_ms.count(-1) == callers.ended["DEADLINE_INFEASIBLE"] > 100
