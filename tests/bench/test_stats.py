import random

import pytest

from tests.bench.stats import estimate, paired_ratios


def test_the_interval_of_nine_values_leaves_out_the_lowest_and_the_highest():
    got = estimate([9, 1, 8, 2, 7, 3, 6, 4, 5])
    assert (got.median, got.low, got.high, got.count) == (5, 2, 8, 9)
    assert got.coverage == pytest.approx(1 - 2 * (1 + 9) / 2**9)


def test_six_values_are_the_fewest_that_reach_95_percent():
    six, five = estimate(range(1, 7)), estimate(range(1, 6))
    assert (six.low, six.high, six.coverage) == (1, 6, pytest.approx(0.96875))
    assert (five.low, five.high, five.coverage) == (1, 5, pytest.approx(0.9375))


def test_a_single_value_is_worth_no_confidence():
    got = estimate([3.0])
    assert (got.median, got.low, got.high, got.coverage) == (3, 3, 3, 0)


def test_the_median_of_an_even_count_is_the_middle_of_the_two_in_the_middle():
    assert estimate([1, 2, 10, 20]).median == 6


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no values"):
        estimate([])


@pytest.mark.parametrize("count", [6, 9, 20, 41])
def test_the_interval_holds_the_true_median_as_often_as_it_says(count):
    seed = 20_260_101
    print(f"seed {seed}")
    draw = random.Random(seed)
    trials = 4_000
    estimates = [estimate([draw.lognormvariate(0, 1) for _ in range(count)]) for _ in range(trials)]
    held = sum(e.low <= 1 <= e.high for e in estimates) / trials
    stated = estimates[0].coverage
    assert stated >= 0.95
    assert held == pytest.approx(stated, abs=0.02)


def test_ratios_are_taken_pair_by_pair():
    # The machine was twice as slow in the second round, which no single ratio shows.
    assert paired_ratios([10, 20, 10], [40, 80, 40]) == [0.25, 0.25, 0.25]


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [0.0]), ([1.0, 2.0], [1.0])])
def test_ratios_that_cannot_be_taken_are_an_error(ours, theirs):
    with pytest.raises(ValueError, match=r"positive|longer|shorter"):
        paired_ratios(ours, theirs)
