"""The limit over hundreds of drawn overloads, with a loss of capacity in the middle of each.

Capacity, service times, deadlines and load come from the seed. What is promised of one run is demanded of the
mean of a block, and nearly as much of each seed.
"""

import pytest
from limit_runs import Measured, critical_share, one_overload

BLOCKS, SEEDS_IN_BLOCK = 12, 25
ONE_RUN_LEAST = 0.8
"""Of a single seed. Fifty calls are all that a third of the smallest service does while it is looked at."""


def check_block(block: int, times: float, least: float, seeds: int = SEEDS_IN_BLOCK) -> None:
    first = block * seeds
    runs = {seed: one_overload(seed, times) for seed in range(first, first + seeds)}
    for stretch in ("before", "lowered", "returned"):
        goodput = {seed: getattr(run, stretch) for seed, run in runs.items()}
        worst = min(goodput, key=lambda seed: goodput[seed])
        mean = Measured.mean(goodput.values())
        print(f"seeds {first} on, {times}x, {stretch}: mean {mean:.3f}, seed {worst} {goodput[worst]:.3f}")
        assert mean >= least, (first, stretch)
        assert goodput[worst] >= ONE_RUN_LEAST, (worst, stretch)
    wasted = sum(run.wasted for run in runs.values()) / sum(run.served for run in runs.values())
    print(f"seeds {first} on, {times}x: {wasted:.4f} of the work was too late")
    assert wasted < 0.01, first


def check_limits(seeds: range) -> None:
    """Two seconds after each change there are about as many under way as the service has workers."""
    for seed in seeds:
        limits = sorted(one_overload(seed, 3.0).limits)
        low, typical = limits[len(limits) // 10], limits[len(limits) // 2]
        print(f"seed {seed}: {low:.2f} to {limits[-1]:.2f} times the workers, typically {typical:.2f}")
        assert low >= 0.9, seed
        assert typical <= 5.0, seed


@pytest.mark.parametrize("block", range(BLOCKS))
def test_goodput_stays_at_the_capacity_through_its_fall_to_a_third_and_its_return(block: int) -> None:
    check_block(block, 3.0, 0.95)


@pytest.mark.parametrize("block", range(100, 103))
def test_at_ten_times_the_load_as_well(block: int) -> None:
    check_block(block, 10.0, 0.9, seeds=10)


def test_the_limit_is_the_new_one_two_seconds_after_each_change() -> None:
    check_limits(range(5000, 5015))


def test_a_flood_of_sheddable_calls_costs_critical_ones_next_to_nothing() -> None:
    shares = {seed: critical_share(seed) for seed in range(6000, 6012)}
    print({seed: round(share, 4) for seed, share in shares.items()})
    assert min(shares.values()) >= 0.99
    assert Measured.mean(shares.values()) >= 0.994


@pytest.mark.soak
@pytest.mark.parametrize("block", range(200, 300))
def test_thousands_of_overloads(block: int) -> None:
    check_block(block, 3.0 if block % 4 else 10.0, 0.95 if block % 4 else 0.9)
