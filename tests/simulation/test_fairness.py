"""Clients beside each other: who is served when one of them wants everything. Seeds are in every message."""

from overload import Group, Overload

from relay_service.core.policy import AdmissionPolicy, ClientQuota, ClientsPolicy, LimitKind, LimitPolicy

SEED = 21
ADMISSION = AdmissionPolicy(queue_capacity=100, limit=LimitPolicy(kind=LimitKind.GRADIENT))


def client(name: str, rate_per_s: float) -> Group:
    return Group(name, rate_per_s, metadata=((b"relay-client-id", name.encode()),))


def test_a_client_at_twenty_times_its_quota_costs_the_others_next_to_nothing() -> None:
    """The service does 200 a second; four clients ask for 30 each, and have a quota of 40; one for 800."""
    world = Overload(SEED, ADMISSION, clients=ClientsPolicy(ClientQuota(40.0, 40.0)))
    others = [client(f"modest {number}", 30.0) for number in range(4)]
    noisy = client("noisy", 800.0)
    world.run(10.0, noisy, *others)
    shares = [group.ok_share for group in others]
    print(f"seed {SEED}: {shares}, noisy {noisy.ended}")
    assert min(shares) >= 0.95, SEED
    assert 350 <= noisy.ended["OK"] <= 450, SEED
    assert noisy.ended["CLIENT_QUOTA"] > 0.9 * noisy.offered, SEED


def test_the_pushback_of_a_used_up_quota_is_when_there_is_a_token() -> None:
    world = Overload(SEED, ADMISSION, clients=ClientsPolicy(None, {"slow": ClientQuota(2.0, 1.0)}))
    world.run(5.0, client("slow", 50.0))
    assert 0 <= min(world.pushbacks_ms) <= max(world.pushbacks_ms) <= 750, "half a second, times 1 to 1.5"
    assert max(world.pushbacks_ms) >= 400, SEED


def test_without_quotas_a_noisy_client_gets_what_the_others_leave() -> None:
    """The same class, ten times the capacity: who asks for less than a fair share gets all of it."""
    world = Overload(SEED, ADMISSION)
    others = [client(f"modest {number}", 30.0) for number in range(4)]
    noisy = client("noisy", 2000.0)
    world.run(10.0, noisy, *others)
    shares = [group.ok_share for group in others]
    print(f"seed {SEED}: {shares}, noisy {noisy.ended}")
    assert min(shares) >= 0.9, SEED
    assert noisy.ok_share < 0.1, SEED
    served = noisy.ended["OK"] + sum(group.ended["OK"] for group in others)
    assert served >= 0.95 * 10.0 * world.server.capacity_per_s, SEED
