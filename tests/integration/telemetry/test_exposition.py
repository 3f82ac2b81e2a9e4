"""The Prometheus text, read back by Prometheus' own parser."""

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay_service.core.admission import Admission, Demand
from relay_service.core.breaker import BreakerState, Outcome, Work
from relay_service.core.breakers import Breakers
from relay_service.core.bulkheads import Bulkheads
from relay_service.core.criticality import Criticality
from relay_service.core.policy import (
    AdmissionPolicy,
    BreakerPolicy,
    BulkheadsPolicy,
    RelayPolicy,
    UpstreamPolicy,
)
from relay_service.core.reason import Reason
from relay_service.ports import CallersStatus, PoolStatus
from relay_service.telemetry.breakers import BreakerCollector
from relay_service.telemetry.bulkheads import BulkheadCollector
from relay_service.telemetry.callers import CallersCollector
from relay_service.telemetry.exposition import AdmissionCollector
from relay_service.telemetry.pools import PoolCollector, PoolView

STATES = [state.value for state in BreakerState]


def _samples(families) -> dict[tuple, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def telemetry(make_telemetry, calls):
    telemetry = make_telemetry()
    calls.retried(telemetry, calls.head())
    calls.succeed(telemetry, calls.head(received_at=99.0))
    calls.refuse(telemetry, calls.head())
    telemetry.call_started(calls.head(), 100.0)
    return telemetry


@pytest.mark.parametrize(
    ("accept", "parse"),
    [("", parse_text), ("application/openmetrics-text; version=1.0.0", parse_openmetrics)],
)
def test_the_text_parses_and_says_what_was_counted(telemetry, calls, accept: str, parse) -> None:
    content_type, body = telemetry.prometheus_text(accept)
    samples = _samples(parse(body.decode()))
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
    method = ("method", calls.METHOD)
    assert samples["relay_calls_received_total",] == 4
    assert samples["relay_calls_total", ("fate", "ok")] == 2
    assert samples["relay_calls_total", ("fate", "refused")] == 1
    assert samples["relay_calls_in_flight",] == 1
    assert samples["relay_reasons_total", ("reason", "QUEUE_FULL")] == 1
    assert samples["relay_method_calls_total", ("code", "OK"), method] == 2
    assert samples["relay_attempts_total", method] == 3
    assert samples["relay_retries_total", method] == 1
    assert samples["relay_queue_wait_seconds_count",] == 2
    assert samples["relay_queue_wait_seconds_sum",] == pytest.approx(0.05)
    assert samples["relay_call_duration_seconds_count", method] == 2
    assert samples["relay_call_duration_seconds_sum", method] == pytest.approx(0.2 + 1.01)
    assert samples["relay_call_duration_seconds_bucket", ("le", "0.512"), method] == 1
    assert samples["relay_call_duration_seconds_bucket", ("le", "2.048"), method] == 2
    assert samples["relay_call_duration_seconds_bucket", ("le", "+Inf"), method] == 2


def test_every_family_is_ours_and_typed(telemetry) -> None:
    families = list(parse_text(telemetry.prometheus_text()[1].decode()))
    assert {family.type for family in families} <= {"counter", "gauge", "histogram"}
    assert all(family.name.startswith("relay_") and family.documentation for family in families)


def test_spans_and_lines_left_out_are_shown(make_telemetry, calls) -> None:
    telemetry = make_telemetry(log_burst=1, log_lines_per_s=0.001)
    for _ in range(5):
        calls.refuse(telemetry, calls.head())
    samples = _samples(parse_text(telemetry.prometheus_text()[1].decode()))
    assert samples["relay_log_lines_suppressed_total",] == 4
    assert samples["relay_spans_exported_total",] == samples["relay_spans_dropped_total",] == 0


def test_hostile_names_do_not_break_the_text(make_telemetry, calls) -> None:
    telemetry = make_telemetry()
    for method in ('a"b\\c\nd', "pkg.\ud800/M", ""):
        calls.succeed(telemetry, calls.head(method=method))
    received = {
        sample.labels["method"]
        for family in parse_text(telemetry.prometheus_text()[1].decode())
        for sample in family.samples
        if sample.name == "relay_method_calls_received_total"
    }
    assert received == {'a"b\\c\nd', "pkg.?/M", ""}


def test_others_can_register_their_collectors(make_telemetry, calls) -> None:
    from prometheus_client import Gauge

    telemetry = make_telemetry()
    Gauge("relay_queue_length", "Calls that wait.", registry=telemetry.registry).set(3)
    assert b"relay_queue_length 3.0" in telemetry.prometheus_text()[1]


def test_snapshot_and_text_agree(telemetry, calls) -> None:
    snapshot = telemetry.snapshot()
    (stats,) = [each for each in snapshot.methods if each.method == calls.METHOD]
    assert (stats.received, stats.ok, stats.attempts, stats.retries) == (4, 2, 3, 1)
    totals = snapshot.calls
    assert (totals.received, totals.ok, totals.refused, totals.in_flight) == (4, 2, 1, 1)
    assert totals.by_reason == {Reason.QUEUE_FULL.name: 1}
    assert replace(totals, received=0) != totals


def test_breakers_are_shown_with_one_series_for_each_state(make_telemetry) -> None:
    breakers = Breakers(
        RelayPolicy("p", {"u": UpstreamPolicy("h:1")}, breakers={"": BreakerPolicy(consecutive_failures=1)}),
        0.0,
    )
    breaker = breakers.guarding("u", "a.B/C")
    breaker.settle(breaker.enter(Work.CALL, 0.0), Outcome.FAILURE, 0.0)
    assert breaker.refuses(0.5)
    telemetry = make_telemetry()
    telemetry.registry.register(BreakerCollector(lambda: breakers.views(0.5)))
    samples = _samples(parse_text(telemetry.prometheus_text()[1].decode()))
    own = (("methods", ""), ("upstream", "u"))
    states = {name: samples["relay_breaker_state", own[0], ("state", name), own[1]] for name in STATES}
    assert states == {"closed": 0, "open": 1, "half_open": 0}
    assert samples["relay_breaker_share_ratio", *own] == 0
    assert samples["relay_breaker_opened_total", *own] == 1
    assert samples["relay_breaker_refused_total", *own] == 1


def test_the_queue_is_shown_by_class(telemetry) -> None:
    admission: Admission[str] = Admission(AdmissionPolicy(queue_capacity=2, workers=1), 0.0)
    for ticket, criticality in (("a", 2), ("b", 0), ("c", 2), ("d", 2)):
        admission.offer(ticket, Demand(Criticality(criticality)), 0.0)
    telemetry.registry.register(AdmissionCollector(admission.state))
    samples = _samples(parse_text(telemetry.prometheus_text()[1].decode()))
    assert samples["relay_queued", ("criticality", "CRITICAL")] == 2
    assert samples["relay_queued", ("criticality", "SHEDDABLE")] == 0
    assert samples["relay_displaced_total",] == 1


def test_callers_connections_are_shown_by_what_became_of_them() -> None:
    registry = CollectorRegistry()
    status = CallersStatus(connections=3, accepted=9, refused_of_peer=2, failed=1, malformed=4)
    registry.register(CallersCollector(lambda: status))
    value = registry.get_sample_value
    assert value("relay_caller_connections") == 3
    assert value("relay_caller_connects_total", {"outcome": "accepted"}) == 9
    assert value("relay_caller_connects_total", {"outcome": "refused_of_peer"}) == 2
    assert value("relay_caller_connections_failed_total") == 1
    assert value("relay_requests_rejected_total", {"why": "malformed"}) == 4


def test_compartments_are_shown_each_with_its_own_figures() -> None:
    limits = AdmissionPolicy(queue_capacity=1, workers=1)
    policy = RelayPolicy(
        "p",
        {"u": UpstreamPolicy("h:1")},
        bulkheads=BulkheadsPolicy({"u": limits}, {"a.B/C": limits}),
    )
    bulkheads: Bulkheads[str] = Bulkheads(policy, 0.0, b"")
    own = bulkheads.holding("u", "a.B/C")
    assert own is not None
    for ticket in "abc":
        own.offer(ticket, Demand(), 0.0)
    registry = CollectorRegistry()
    registry.register(BulkheadCollector(lambda: bulkheads))
    value = registry.get_sample_value
    methods, others = {"upstream": "u", "methods": "a.B/C"}, {"upstream": "u", "methods": ""}
    assert value("relay_bulkhead_busy", methods) == value("relay_bulkhead_queued", methods) == 1
    assert value("relay_bulkhead_busy", others) == value("relay_bulkhead_queued", others) == 0
    assert value("relay_bulkhead_turned_away_total", methods | {"criticality": "CRITICAL"}) == 1
    assert value("relay_bulkhead_taken_total", methods | {"criticality": "CRITICAL"}) == 1


def test_connections_to_upstreams_are_shown_by_state_and_lane() -> None:
    registry = CollectorRegistry()
    pool = PoolStatus({"READY": 2, "RESTING": 1}, streams=3, pings=4, ping_round_trip_s=0.01, zombies=5)
    registry.register(
        PoolCollector(lambda: [PoolView("u", "calls", pool), PoolView("u", "hedges", PoolStatus())])
    )
    value = registry.get_sample_value
    calls, hedges = {"upstream": "u", "lane": "calls"}, {"upstream": "u", "lane": "hedges"}
    assert value("relay_upstream_connections", calls | {"state": "ready"}) == 2
    assert value("relay_upstream_connections", calls | {"state": "resting"}) == 1
    assert value("relay_upstream_streams", calls) == 3
    assert (value("relay_upstream_pings_total", calls), value("relay_upstream_pings_total", hedges)) == (4, 0)
    assert value("relay_upstream_ping_round_trip_seconds", calls) == 0.01
    assert value("relay_upstream_zombies_total", calls) == 5
