"""The limit over hundreds of drawn overloads, with a loss of capacity in the middle of each.

Capacity, service times, deadlines and load come from the seed. A window of a small limit holds five to
twenty samples, so a single run may be misled by chance; what is promised is a distribution. Measured with
`one_overload` over 1,000 other seeds (30,000 on) at three times the load, and 250 (32,000 on) at ten times,
as goodput over capacity from two seconds after each change on:

=====================  =====  ============  ============  =====
stretch                mean   at least 0.9  at least 0.8  worst
=====================  =====  ============  ============  =====
3x, before the fall    0.997  99.8 %        all           0.887
3x, at a third of it   0.993  98.8 %        99.9 %        0.706
3x, after its return   0.998  99.9 %        all           0.893
10x, before the fall   0.996  all           all           0.928
10x, at a third of it  0.992  98.0 %        99.6 %        0.774
10x, after its return  0.995  all           all           0.929
=====================  =====  ============  ============  =====

The limit was typically at most three times the workers (or the least that is allowed) in 94.1 % of the runs
at three times the load, and at least 0.9 times for nine tenths of the time in 98.7 %. What is demanded of a
block below leaves room for chance.
"""

import pytest
from limit_runs import Measured, critical_share, critical_share_of_slow_pair, one_overload

BLOCKS, SEEDS_IN_BLOCK = 2, 100
MEAN_LEAST = 0.98
GOOD, GOOD_SHARE = 0.9, 0.92
"""So much goodput has so large a share of a block's runs; when one to two in a hundred of all are worse,
fewer than one block of a hundred in a thousand has less by chance."""
ONE_RUN_LEAST = 0.65
"""Of a single run. Fifty calls are all that a third of the smallest service does while it is looked at."""
NEW_LIMIT_SHARE = 0.9
"""In so many of the runs the limit is the new one in time."""


def check_block(
    block: int, times: float, seeds: int = SEEDS_IN_BLOCK, one_run_least: float = ONE_RUN_LEAST
) -> None:
    first = block * seeds
    runs = {seed: one_overload(seed, times) for seed in range(first, first + seeds)}
    for stretch in ("before", "lowered", "returned"):
        goodput = {seed: getattr(run, stretch) for seed, run in runs.items()}
        worst = min(goodput, key=lambda seed: goodput[seed])
        mean = Measured.mean(goodput.values())
        good = Measured.mean(share >= GOOD for share in goodput.values())
        print(
            f"seeds {first} on, {times}x, {stretch}: mean {mean:.3f}, {good:.3f} of them at least {GOOD}, "
            f"seed {worst} {goodput[worst]:.3f}"
        )
        assert mean >= MEAN_LEAST, (first, stretch)
        assert good >= GOOD_SHARE, (first, stretch)
        assert goodput[worst] >= one_run_least, (worst, stretch)
    wasted = sum(run.wasted for run in runs.values()) / sum(run.served for run in runs.values())
    print(f"seeds {first} on, {times}x: {wasted:.4f} of the work was too late")
    assert wasted < 0.01, first


def check_limits(seeds: range, share: float = NEW_LIMIT_SHARE) -> None:
    """Two seconds after each change there are about as many under way as the service has workers."""
    low: dict[int, float] = {}
    typical: dict[int, float] = {}
    for seed in seeds:
        limits = sorted(one_overload(seed, 3.0).limits)
        low[seed], typical[seed] = limits[len(limits) // 10], limits[len(limits) // 2]
        print(
            f"seed {seed}: {low[seed]:.2f} to {limits[-1]:.2f} times the workers, "
            f"typically {typical[seed]:.2f}"
        )
    assert Measured.mean(number >= 0.9 for number in low.values()) >= NEW_LIMIT_SHARE
    assert Measured.mean(number <= 3.0 for number in typical.values()) >= share


@pytest.mark.parametrize("block", range(BLOCKS))
def test_goodput_stays_at_the_capacity_through_its_fall_to_a_third_and_its_return(block: int) -> None:
    check_block(block, 3.0)


def test_at_ten_times_the_load_as_well() -> None:
    check_block(10, 10.0, seeds=50)


def test_the_limit_is_the_new_one_two_seconds_after_each_change() -> None:
    check_limits(range(5000, 5030))


def test_a_flood_of_sheddable_calls_costs_critical_ones_next_to_nothing() -> None:
    shares = {seed: critical_share(seed) for seed in range(6000, 6012)}
    print({seed: round(share, 4) for seed, share in shares.items()})
    assert min(shares.values()) >= 0.99
    assert Measured.mean(shares.values()) >= 0.994


def test_a_flood_that_makes_the_queue_stand_does_not_turn_the_critical_calls_round() -> None:
    shares = {seed: critical_share_of_slow_pair(seed) for seed in range(100, 140)}
    print({seed: round(share, 4) for seed, share in shares.items()})
    assert Measured.mean(shares.values()) >= 0.999


@pytest.mark.soak
@pytest.mark.parametrize("block", range(200, 225))
def test_thousands_of_overloads(block: int) -> None:
    check_block(block, 3.0 if block % 4 else 10.0)
