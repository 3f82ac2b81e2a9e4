"""A failure is never without a trace: unsampled calls that go wrong get one span after all, in bounds."""

from dataclasses import replace

import pytest

from relay_service.core.evidence import Evidence
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.telemetry.trace_context import parse_traceparent

EXHAUSTED = Verdict(
    Code.UNAVAILABLE, "gone", Origin.UPSTREAM, Fate.ERROR, Reason.RETRIES_EXHAUSTED, Evidence.REFUSED, 2
)


@pytest.mark.parametrize("context", [[], ["00"]], ids=["own decision", "the caller's decision"])
def test_an_unsampled_success_is_not_recorded_but_propagated(make_telemetry, sink, calls, context) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, sample_ratio=0.0)
    call = telemetry.call_started(calls.head(*map(calls.traceparent, context)), 100.0)
    first = dict(call.attempt_started(1, "payments", 100.0))
    second = dict(call.attempt_started(2, "payments", 100.1))
    call.finished(replace(calls.OK, attempts=2), 100.2)
    telemetry.shutdown()

    parent = parse_traceparent(first[b"traceparent"])
    assert parent is not None
    assert (parent.trace_id, parent.flags) == (call.trace_id, 0)
    assert parent.span_id.decode() != calls.CALLER_SPAN
    assert first == second
    assert sink.spans == []
    assert telemetry.span_counts.dropped == 0


@pytest.mark.parametrize("verdict", [EXHAUSTED, replace(EXHAUSTED, code=Code.NOT_FOUND, reason=None)])
def test_a_failure_of_an_unsampled_trace_gets_its_server_span(
    make_telemetry, sink, calls, wall, verdict
) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, sample_ratio=0.0)
    call = telemetry.call_started(calls.head(calls.traceparent("00"), received_at=100.0), 100.001)
    call.queued(100.002)
    call.dequeued(100.003)
    sent = dict(call.attempt_started(1, "payments", 100.003))
    call.attempt_ended(1, "127.0.0.1:50052", calls.UNAVAILABLE_END, Evidence.REFUSED, 100.3)
    wall.offset_ns += 10**12
    call.finished(verdict, 100.5)
    telemetry.shutdown()

    (server,) = sink.spans
    assert (server.kind, server.trace_id, server.parent_id) == (
        "SERVER",
        calls.CALLER_TRACE,
        calls.CALLER_SPAN,
    )
    assert server.attributes["relay.sampled_afterwards"] is True
    assert server.attributes["rpc.response.status_code"] == verdict.code.name
    assert server.attributes["relay.attempts"] == 2
    before_the_step_ns = wall.offset_ns - 10**12
    assert server.start_ns - before_the_step_ns == pytest.approx(100.0e9, abs=1000)
    assert server.end_ns - before_the_step_ns == pytest.approx(100.5e9, abs=1000)
    # What the upstream was told is its parent is the span that exists now.
    assert sent[b"traceparent"].split(b"-")[2].decode() == server.span_id


def test_a_refusal_gets_its_span_and_a_cancelled_call_does_not(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, sample_ratio=0.0)
    refused = calls.refuse(telemetry, calls.head())
    calls.refuse(telemetry, calls.head(), verdict=Verdict(Code.CANCELLED, "", Origin.RELAY, Fate.CANCELLED))
    telemetry.shutdown()
    assert [span.trace_id for span in sink.spans] == [refused.trace_id]


def test_a_sampled_failure_has_no_second_span(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, sample_ratio=1.0)
    calls.refuse(telemetry, calls.head())
    telemetry.shutdown()
    (server,) = sink.spans
    assert "relay.sampled_afterwards" not in server.attributes


def test_a_flood_of_refusals_does_not_flood_the_exporter(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(
        otlp_endpoint=sink.endpoint, sample_ratio=0.0, afterwards_per_s=10, afterwards_burst=5
    )
    for index in range(5_000):  # 1,000 a second for five seconds
        calls.refuse(telemetry, calls.head(), now=100.0 + index / 1000)
    telemetry.shutdown()
    assert 5 + 49 <= len(sink.spans) <= 5 + 50
    assert telemetry.stats().afterwards_suppressed == 5_000 - len(sink.spans)


def test_without_an_exporter_nothing_is_recorded_and_every_call_has_a_trace_id(make_telemetry, calls) -> None:
    telemetry = make_telemetry()
    call = calls.refuse(telemetry, calls.head(calls.traceparent("01")))
    own = calls.succeed(telemetry, calls.head())
    assert call.trace_id == calls.CALLER_TRACE
    assert len(own.trace_id) == 32
    assert telemetry.stats().afterwards_suppressed == 0
    counts = telemetry.span_counts
    assert (counts.exported, counts.dropped, counts.waiting) == (0, 0, 0)
