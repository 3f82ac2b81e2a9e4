"""Counters: nothing is counted twice or lost, callers cannot grow them, quantiles are as good as promised."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_service.core.evidence import Evidence
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.telemetry.histogram import LogHistogram
from relay_service.telemetry.metrics import OTHER, CallMetrics, MethodStats

OK = Verdict(Code.OK, "", Origin.UPSTREAM, Fate.OK, None, Evidence.DEFINITE, 1)
METHODS = [f"pkg.Service/M{index}" for index in range(6)]

verdicts = st.one_of(
    st.builds(lambda attempts: replace(OK, attempts=attempts), st.integers(1, 4)),
    st.builds(
        lambda code, attempts, reason: Verdict(
            code, "", Origin.UPSTREAM, Fate.ERROR, reason, Evidence.DEFINITE, attempts
        ),
        st.sampled_from([code for code in Code if code is not Code.OK]),
        st.integers(1, 4),
        st.sampled_from([None, Reason.RETRIES_EXHAUSTED, Reason.OUTCOME_UNKNOWN]),
    ),
    st.builds(
        lambda reason: Verdict(reason.code, "", Origin.RELAY, Fate.REFUSED, reason),
        st.sampled_from([reason for reason in Reason if reason.code is not None]),
    ),
    st.builds(
        lambda attempts: Verdict(Code.CANCELLED, "", Origin.RELAY, Fate.CANCELLED, None, None, attempts),
        st.integers(0, 2),
    ),
)
steps = st.lists(st.one_of(st.sampled_from(METHODS), st.tuples(st.integers(0, 10**6), verdicts)), max_size=60)


def _by_method(metrics: CallMetrics) -> dict[str, MethodStats]:
    return {stats.method: stats for stats in metrics.snapshot().methods}


def _finish(metrics: CallMetrics, method: str, verdict: Verdict, latency_s: float = 0.001) -> None:
    metrics.finished(method, metrics.started(method), verdict, latency_s)


@settings(max_examples=400, deadline=None)
@given(steps, st.integers(1, 4))
def test_every_call_is_counted_once_whatever_the_order(events, max_methods: int) -> None:
    metrics = CallMetrics(max_methods)
    running: list[tuple[str, object]] = []
    ended: list[Verdict] = []
    for event in events:
        if isinstance(event, str):
            running.append((event, metrics.started(event)))
        elif running:
            pick, verdict = event
            method, counters = running.pop(pick % len(running))
            metrics.finished(method, counters, verdict, 0.001)
            ended.append(verdict)

        snapshot = metrics.snapshot()
        totals = snapshot.calls
        assert totals.received == len(running) + len(ended)
        assert totals.in_flight == len(running)
        for fate, count in (
            (Fate.OK, totals.ok),
            (Fate.ERROR, totals.errors),
            (Fate.REFUSED, totals.refused),
            (Fate.CANCELLED, totals.cancelled),
        ):
            assert count == sum(verdict.fate is fate for verdict in ended)
        assert sum(totals.by_reason.values()) == sum(verdict.reason is not None for verdict in ended)
        assert sum(stats.received for stats in snapshot.methods) == totals.received
        assert sum(sum(stats.by_code.values()) for stats in snapshot.methods) == len(ended)
        assert sum(stats.attempts for stats in snapshot.methods) == sum(each.attempts for each in ended)
        assert all(sum(stats.by_code.values()) <= stats.received for stats in snapshot.methods)
        assert len(snapshot.methods) <= max_methods + 1


def test_a_method_is_counted_under_its_name_and_code() -> None:
    metrics = CallMetrics(10)
    _finish(metrics, "a.S/M", replace(OK, attempts=3))
    _finish(metrics, "a.S/M", Verdict(Code.NOT_FOUND, "", Origin.UPSTREAM, Fate.ERROR, attempts=1))
    _finish(metrics, "b.S/M", OK)
    stats = _by_method(metrics)["a.S/M"]
    assert (stats.received, stats.ok, stats.attempts, stats.retries) == (2, 1, 4, 2)
    assert stats.by_code == {"OK": 1, "NOT_FOUND": 1}
    assert [each.method for each in metrics.snapshot("b.").methods] == ["b.S/M"]


def test_a_hedge_is_no_retry() -> None:
    metrics = CallMetrics(10)
    _finish(metrics, "a.S/M", replace(OK, attempts=3, hedges=1))
    stats = _by_method(metrics)["a.S/M"]
    assert (stats.attempts, stats.retries, stats.hedges) == (3, 1, 1)


def test_invented_method_names_take_no_memory_and_no_place() -> None:
    metrics = CallMetrics(max_methods=3)
    unknown = Verdict(Code.UNIMPLEMENTED, "", Origin.UPSTREAM, Fate.ERROR, attempts=1)
    no_route = Verdict(Code.UNIMPLEMENTED, "", Origin.RELAY, Fate.REFUSED, Reason.NO_ROUTE)
    shed = Verdict(Code.RESOURCE_EXHAUSTED, "", Origin.RELAY, Fate.REFUSED, Reason.QUEUE_FULL)
    left = Verdict(Code.CANCELLED, "", Origin.RELAY, Fate.CANCELLED)
    for index in range(1_000):
        _finish(metrics, f"made.Up/M{index}", (unknown, no_route, shed, left)[index % 4])
    _finish(metrics, "x" * 10_000, OK)
    _finish(metrics, "real.S/M", OK)
    by_method = _by_method(metrics)
    assert by_method.keys() == {OTHER, "real.S/M"}
    assert by_method[OTHER].received == 1_001


def test_past_the_limit_methods_share_the_other_counters() -> None:
    metrics = CallMetrics(max_methods=3)
    for index in range(10):
        _finish(metrics, f"pkg.S/M{index}", OK)
    by_method = _by_method(metrics)
    assert by_method.keys() == {"pkg.S/M0", "pkg.S/M1", "pkg.S/M2", OTHER}
    assert by_method[OTHER].received == 7


def test_refused_and_cancelled_calls_do_not_flatter_the_latency() -> None:
    metrics = CallMetrics(10)
    _finish(metrics, "a.S/M", OK, latency_s=1.0)
    for _ in range(100):
        _finish(metrics, "a.S/M", Verdict(Code.RESOURCE_EXHAUSTED, "", Origin.RELAY, Fate.REFUSED), 0.0001)
        _finish(metrics, "a.S/M", Verdict(Code.CANCELLED, "", Origin.RELAY, Fate.CANCELLED), 0.0001)
    latency = _by_method(metrics)["a.S/M"].latency
    assert latency.count == 1
    assert latency.quantile_s(0.5) == pytest.approx(1.0, rel=0.1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-5, 3.5).map(lambda exponent: 10**exponent), min_size=1, max_size=200),
    st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_a_quantiles_relative_error_is_below_ten_percent(durations_s, share: float) -> None:
    histogram = LogHistogram()
    for duration_s in durations_s:
        histogram.record(duration_s)
    exact_s = sorted(durations_s)[max(1, math.ceil(share * len(durations_s))) - 1]
    assert histogram.quantile_s(share) == pytest.approx(exact_s, rel=0.1)


def test_extreme_durations_fall_into_the_outer_buckets() -> None:
    histogram = LogHistogram()
    for duration_s in (-1.0, 0.0, 1e-9, 1e9, 1e300):
        histogram.record(duration_s)
    assert histogram.count == 5
    assert histogram.quantile_s(0.5) < 8e-6
    assert histogram.quantile_s(1.0) > 3600


def test_an_empty_histogram_has_no_quantile() -> None:
    assert LogHistogram().quantile_s(0.99) == 0.0


def test_cumulative_counts_split_at_their_bounds() -> None:
    histogram = LogHistogram()
    for duration_ms in (0.2, 0.3, 0.9, 1.1, 3.9, 4.1, 1e9):
        histogram.record(duration_ms / 1000)
    assert histogram.cumulative([0.25, 1.0, 4.0, 2.0**17]) == [1, 3, 5, 6]
