"""Overload: what is served, what is refused, and that the refusal is honest. Seeds are in every message."""

from overload import Group, Overload

from relay_service.core.policy import AdmissionPolicy

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
    assert 0.2 < shares[1] < 0.5, SEED
    assert max(shares[2:]) < 0.05, SEED


def test_a_class_in_words_that_are_not_known_is_critical() -> None:
    world = Overload(SEED, AdmissionPolicy(queue_capacity=20, workers=10))
    odd = Group("odd", world.server.capacity_per_s, metadata=criticality(b"VERY_IMPORTANT"))
    plain = Group("plain", world.server.capacity_per_s)
    world.run(5.0, odd, plain)
    assert abs(odd.ok_share - plain.ok_share) < 0.08, SEED
    assert set(odd.ended) <= {"OK", "QUEUE_FULL", "DEADLINE_PASSED"}, odd.ended


def test_pushback_of_a_saturated_relay_is_jittered_around_the_time_its_queue_needs() -> None:
    world = Overload(SEED, AdmissionPolicy(queue_capacity=50, workers=10))
    world.run(5.0, Group("callers", 3 * world.server.capacity_per_s))
    told_s = sorted(pushback / 1000 for pushback in world.pushbacks_ms[500:])
    needed_s = 51 / world.server.capacity_per_s
    print(f"seed {SEED}: {told_s[0]} {told_s[len(told_s) // 2]} {told_s[-1]}, needed {needed_s:.3f}")
    assert abs(told_s[len(told_s) // 2] - needed_s) < 0.15 * needed_s, SEED
    assert told_s[-1] > 2 * told_s[0], SEED
