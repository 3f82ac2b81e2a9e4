"""What other adaptive limits are known to do wrong, each with the place where it is told.

None of it happens here.
"""

from capacity_world import CapacityWorld, Crowd, Spread
from limit_runs import DEFAULT

WORKERS, SERVICE_S, TIMEOUT_S = 10, 0.02, 1.0
TICK_S = 0.1


class Watched(CapacityWorld):
    """Its limit is looked at ten times a second."""

    def __init__(self, seed: int, spread: Spread = Spread.UNIFORM) -> None:
        super().__init__(seed, DEFAULT, workers=WORKERS, service_s=SERVICE_S, spread=spread)
        self.limits: list[int] = []

    def overload(self, until_s: float, times: float = 3.0) -> Crowd:
        """At rest for a second, then so many times what it can do."""
        capacity_per_s = self.service.capacity_per_s
        for tick in range(int(until_s / TICK_S)):
            self.at(tick * TICK_S, lambda: self.limits.append(self.admission.workers))
        crowd = Crowd(times * capacity_per_s, TIMEOUT_S, since_s=1.0)
        self.run(until_s, [Crowd(0.5 * capacity_per_s, TIMEOUT_S, until_s=1.0), crowd])
        return crowd

    def between(self, since_s: float, until_s: float) -> list[int]:
        return self.limits[int(since_s / TICK_S) : int(until_s / TICK_S)]


def test_netflix_concurrency_limits_137_stable_timeouts_do_not_raise_the_limit() -> None:
    """Every attempt takes exactly its timeout, nothing varies, and the limit grew to its ceiling."""
    seed = 7001
    world = Watched(seed)
    world.at(4.0, lambda: world.service.becomes(silent=True))
    world.at(16.0, lambda: world.service.becomes(silent=False))
    crowd = world.overload(22.0)
    print(f"seed {seed}: {world.limits[::5]}")
    assert max(world.between(9.0, 16.0)) <= 2 * DEFAULT.limit.min, seed
    assert crowd.ok_between(19.0, 22.0) >= 0.95 * 3.0 * world.service.capacity_per_s, seed


def test_failsafe_go_127_a_long_incident_does_not_become_normal() -> None:
    """Of ten workers three are left for a minute: what attempts take in their queue is not what they take."""
    seed = 7002
    world = Watched(seed)
    baselines: list[float] = []
    world.at(4.0, lambda: world.service.becomes(workers=3))
    for second in range(6, 64):
        world.at(float(second), lambda: baselines.append(world.admission.state().baseline_s))
    crowd = world.overload(64.0)
    print(f"seed {seed}: {[round(each * 1000) for each in baselines]} ms, {world.limits[::20]}")
    assert max(baselines) <= 2 * SERVICE_S, seed
    assert max(world.between(6.0, 64.0)) <= 12, seed
    assert crowd.ok_between(6.0, 64.0) >= 0.95 * 58.0 * world.service.capacity_per_s, seed


def test_envoy_38338_a_service_that_stays_slower_is_not_kept_small() -> None:
    """Three times slower for good. A baseline of better days makes every attempt look slow for ever."""
    seed = 7003
    world = Watched(seed)
    world.at(4.0, lambda: world.service.becomes(service_s=3 * SERVICE_S))
    crowd = world.overload(34.0)
    print(f"seed {seed}: {world.limits[::10]}")
    assert min(world.between(6.0, 34.0)) >= WORKERS, seed
    assert crowd.ok_between(6.0, 34.0) >= 0.95 * 28.0 * world.service.capacity_per_s, seed


def test_envoy_38338_no_probing_pins_the_limit_of_a_service_that_is_well() -> None:
    """A baseline measured anew every minute, with three under way, refuses nearly everybody meanwhile."""
    seed = 7004
    world = Watched(seed)
    crowd = world.overload(70.0, times=1.2)
    print(f"seed {seed}: least {min(world.between(4.0, 70.0))}")
    assert min(world.between(4.0, 70.0)) >= WORKERS, seed
    each_second = [crowd.ok_between(second, second + 1) for second in range(4, 70)]
    assert min(each_second) >= 0.85 * world.service.capacity_per_s, seed
