"""The admission of the preset `default`, with nothing told: what it does when load or service change."""

from dataclasses import replace

import pytest
from overload import Group, Overload

from relay_service.config.loading import load_policy
from relay_service.core.policy import AdmissionPolicy, QueueOrder, StandingShed

DEFAULT: AdmissionPolicy = load_policy("default", "h:1").admission
DOORLESS = replace(DEFAULT, standing_shed=StandingShed.NONE, queue_order=QueueOrder.ADAPTIVE_LIFO)
"""Its limit is the same, and what it lets under way is not what a door lets in."""
WORKERS, SERVICE_S = 10, 0.02
CAPACITY_PER_S = WORKERS / SERVICE_S
TICK_S = 0.1


class Watched(Overload):
    """A world in which the limit is looked at ten times a second."""

    def __init__(
        self,
        seed: int,
        until_s: float,
        *,
        workers: int = WORKERS,
        service_s: float = SERVICE_S,
        policy: AdmissionPolicy = DEFAULT,
    ) -> None:
        super().__init__(seed, policy, workers=workers, service_s=service_s)
        self.server.steady = True
        self.limits: list[int] = []
        for tick in range(round(until_s / TICK_S)):
            self.at(tick * TICK_S, lambda: self.limits.append(self.relay.admission.workers))

    def becomes(self, at_s: float, **fields: float) -> None:
        for name, value in fields.items():
            self.at(at_s, lambda name=name, value=value: setattr(self.server, name, value))

    def limits_between(self, since_s: float, until_s: float) -> list[int]:
        return self.limits[round(since_s / TICK_S) : round(until_s / TICK_S)]


@pytest.mark.parametrize(("times", "least"), [(3, 0.95), (10, 0.9)])
def test_a_relay_that_starts_into_an_overload_serves_what_there_is_capacity_for(
    times: int, least: float
) -> None:
    """From the second second on: the first is spent finding out what the service can do."""
    seed = 41
    run = Watched(seed, 5.0)
    callers = Group("callers", times * CAPACITY_PER_S, timeout_s=0.5)
    run.run(5.0, callers)
    found = callers.ok_between(1.0, 5.0) / (4.0 * CAPACITY_PER_S)
    wasted = run.server.wasted / run.server.served
    print(f"seed {seed}, {times}x: {found:.3f}, wasted {wasted:.4f}, limits {run.limits[::5]}")
    assert found >= least, seed
    assert max(run.limits_between(3.0, 5.0)) <= 5 * WORKERS, "the service's own queue is short"


@pytest.mark.parametrize("times", [3, 10])
def test_less_than_one_in_a_hundred_is_worked_on_in_vain_under_overload(times: int) -> None:
    """An overload that comes to a relay that has seen the service at rest."""
    seed = 42
    run = Watched(seed, 6.0)
    before = Group("before", 0.5 * CAPACITY_PER_S, timeout_s=0.5, until_s=1.0)
    callers = Group("callers", times * CAPACITY_PER_S, timeout_s=0.5, since_s=1.0)
    run.run(6.0, before, callers)
    wasted = run.server.wasted / run.server.served
    print(f"seed {seed}, {times}x: wasted {wasted:.4f}")
    assert wasted < 0.01, seed


@pytest.mark.parametrize("drop", [{"service_s": 3 * SERVICE_S}, {"workers": 3}], ids=["slower", "fewer"])
def test_two_seconds_after_the_capacity_changed_the_limit_is_the_new_one(drop: dict[str, float]) -> None:
    low, back = [], []
    for seed in (43, 44, 45):
        run = Watched(seed, 11.0)
        run.becomes(3.0, **drop)
        run.becomes(7.0, workers=WORKERS, service_s=SERVICE_S)
        callers = Group("callers", 3 * CAPACITY_PER_S, timeout_s=0.5)
        run.run(11.0, callers)
        capacity_per_s = drop.get("workers", WORKERS) / drop.get("service_s", SERVICE_S)
        low.append(callers.ok_between(5.0, 7.0) / (2.0 * capacity_per_s))
        back.append(callers.ok_between(9.0, 11.0) / (2.0 * CAPACITY_PER_S))
        print(f"seed {seed}: low {low[-1]:.3f}, back {back[-1]:.3f}, limits {run.limits[::5]}")
    assert sum(low) / len(low) >= 0.95
    assert sum(back) / len(back) >= 0.95


@pytest.mark.parametrize("policy", [DEFAULT, DOORLESS], ids=["default", "doorless"])
def test_a_service_that_only_takes_longer_gets_as_many_calls_as_before(policy: AdmissionPolicy) -> None:
    """From 5 ms to 1 s with room for everybody: 400 calls a second need 400 under way."""
    seed = 46
    run = Watched(seed, 14.0, workers=1_000_000, service_s=0.005, policy=policy)
    run.becomes(3.0, service_s=1.0)
    callers = Group("callers", 400.0, timeout_s=15.0)
    run.run(14.0, callers)
    by_second = [callers.ok_between(second, second + 1) for second in range(14)]
    print(f"seed {seed}: {by_second} {callers.ended}, limits {run.limits[::5]}")
    assert min(run.limits_between(3.0, 14.0)) >= DEFAULT.limit.initial // 2, seed
    assert min(by_second[12:]) >= 350, "nine seconds after the change nothing is refused"
    assert callers.ok_share >= 0.7, seed


def test_a_crowd_of_slow_calls_after_fast_ones_is_served_whole() -> None:
    """A thousand calls of 1 s at once, after calls of 5 ms: a fixed limit of 256 needs four seconds."""
    seed = 47
    run = Watched(seed, 5.0, workers=1_000_000, service_s=0.005)
    run.becomes(2.9, service_s=1.0)
    before, crowd = Group("before", 100.0, timeout_s=15.0), Group("crowd", 0.0, timeout_s=15.0)
    run.at(3.0, lambda: [run.call(crowd) for _ in range(1000)])
    run.run(2.8, before)
    print(f"seed {seed}: {crowd.ended}, last after {max(crowd.ok_at) - 3.0:.1f} s, limits {run.limits[::5]}")
    assert crowd.ended == {"OK": 1000}, seed
    assert max(crowd.ok_at) <= 3.0 + 9.0, seed


def test_after_a_minute_of_silence_a_burst_finds_the_limit_able() -> None:
    seed = 48
    run = Watched(seed, 70.0)
    before = Group("before", 0.9 * CAPACITY_PER_S, timeout_s=0.5, until_s=2.0)
    burst = Group("burst", 0.9 * CAPACITY_PER_S, timeout_s=0.5, since_s=63.0)
    run.run(66.0, before, burst)
    print(f"seed {seed}: {burst.ended}, limits {run.limits[::50]}")
    assert burst.ok_share >= 0.99, seed


@pytest.mark.parametrize("slow_s", [0.02, 1.0])
def test_one_call_a_second_keeps_the_limit_able_whatever_it_takes(slow_s: float) -> None:
    """With one under way, it cannot be the load that makes attempts slow."""
    seed = 49
    run = Watched(seed, 240.0)
    run.becomes(60.0, service_s=slow_s)
    seldom = Group("seldom", 1.0, timeout_s=15.0)
    run.run(240.0, seldom)
    print(f"seed {seed}: limits {sorted(set(run.limits))}")
    assert min(run.limits) == DEFAULT.limit.initial, seed
    assert seldom.ok_share == 1.0, seed


def test_a_silent_service_gets_the_floor_and_is_found_again() -> None:
    """Calls die at their deadlines: were these not losses, the limit would stay where it was."""
    seed = 50
    run = Watched(seed, 12.0)
    run.becomes(2.0, silent=True)
    run.becomes(8.0, silent=False)
    callers = Group("callers", 1.5 * CAPACITY_PER_S, timeout_s=0.5)
    run.run(12.0, callers)
    print(f"seed {seed}: {run.limits[::5]}")
    assert min(run.limits_between(5.0, 8.0)) <= 5, seed
    assert callers.ok_between(10.0, 12.0) >= 0.95 * 2.0 * CAPACITY_PER_S, seed
