"""Calls and samples in slices of time."""

import math

import pytest

from chaos.history import LoadSample
from chaos.percentile import percentile_of
from chaos.report.series import SLICES_MAX, arrivals, latency_ms, outcomes, slices_between


def sample(at_s, calls):
    return LoadSample(at_s, calls, 0, 0, 0, 0)


def test_slices_cover_the_span_and_never_exceed_their_number():
    assert slices_between(1.0, 2.0, 0.1).count == 10
    assert slices_between(0.0, 1e6, 0.1).count == SLICES_MAX
    assert slices_between(5.0, 5.0, 0.1).count == 1


def test_every_call_inside_is_counted_once_by_how_it_ended(history):
    counted = outcomes(history.calls, slices_between(0.0, 5.6, 0.1))
    assert (sum(counted.ok), sum(counted.refused), sum(counted.failed)) == (85, 10, 14)


def test_calls_outside_are_left_out(history):
    assert sum(outcomes(history.calls, slices_between(100.0, 101.0, 0.1)).ok) == 0


def test_latency_is_nan_where_nothing_was_sent(history):
    values = latency_ms(history.calls, slices_between(5.0, 7.0, 0.5), 50)
    assert values[0] == pytest.approx(20)
    assert math.isnan(values[-1])


@pytest.mark.parametrize(("percentile", "value"), [(0, 1), (50, 2), (75, 3), (99, 4), (100, 4)])
def test_percentiles_are_nearest_ranks(percentile, value):
    assert percentile_of([4, 2, 1, 3], percentile) == value


def test_arrivals_are_differences_of_a_counter_that_may_restart():
    samples = [sample(0.0, 100), sample(1.0, 110), sample(2.0, 4), sample(3.0, 10)]
    assert arrivals(samples, slices_between(0.5, 2.5, 0.5)) == pytest.approx([5, 2, 2, 3], nan_ok=True)


def test_arrivals_are_unknown_where_no_samples_reach():
    assert all(math.isnan(each) for each in arrivals([], slices_between(0, 1, 0.5)))
