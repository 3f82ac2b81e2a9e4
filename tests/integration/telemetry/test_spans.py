"""The spans of a call, as a real OTLP backend gets them."""

from dataclasses import replace

import pytest

from relay_service.core.evidence import Delivery, Evidence
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.ports import AttemptEnd, JobRun
from relay_service.telemetry.attributes import RPC_STATUS_CODE

SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


def test_a_retried_success_is_one_whole_trace_with_the_right_parents(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, listen_address="127.0.0.1:50051")
    calls.retried(telemetry, calls.head(calls.traceparent("01"), (b"tracestate", b"vendor=1")))
    telemetry.shutdown()

    server = calls.only(sink.spans, calls.METHOD, "SERVER")
    forward = calls.only(sink.spans, "relay.forward")
    queues = [span for span in sink.spans if span.name == "relay.queue"]
    attempts = [span for span in sink.spans if span.kind == "CLIENT"]
    assert len(sink.spans) == 6
    assert {span.trace_id for span in sink.spans} == {calls.CALLER_TRACE}
    assert {span.trace_state for span in sink.spans} == {"vendor=1"}
    assert server.parent_id == calls.CALLER_SPAN
    assert forward.parent_id == server.span_id
    assert [span.parent_id for span in (*queues, *attempts)] == [forward.span_id] * 4
    assert {span.kind for span in (forward, *queues)} == {"INTERNAL"}
    assert len({span.span_id for span in sink.spans}) == 6


def test_a_jobs_run_is_a_trace_of_its_own_with_a_link_to_its_submission(make_telemetry, sink, calls) -> None:
    """Recorded because that was, and not because of its own draw, which here is never."""
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, sample_ratio=0.0)
    run_of_it = JobRun("job-1", 2, calls.traceparent("01")[1])
    calls.retried(telemetry, replace(calls.head(), runs=(run_of_it,)))
    telemetry.shutdown()
    run = calls.only(sink.spans, f"process {calls.METHOD}", "CONSUMER")
    assert run.links == ((calls.CALLER_TRACE, calls.CALLER_SPAN),)
    assert (run.trace_id != calls.CALLER_TRACE, run.parent_id) == (True, "")
    assert (
        run.attributes.items()
        >= {
            "messaging.system": "resilient_relay",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": calls.METHOD,
            "messaging.message.id": "job-1",
            "relay.job.run": 2,
        }.items()
    )
    assert {span.trace_id for span in sink.spans} == {run.trace_id}
    assert len(sink.spans) == 6


def test_a_batch_is_one_run_with_a_link_for_each_of_its_jobs(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    parents = [f"00-{number:032x}-{number:016x}-01".encode() for number in (1, 2)]
    runs = tuple(JobRun(f"job-{number}", 1, parent) for number, parent in enumerate(parents))
    calls.retried(telemetry, replace(calls.head(), runs=(*runs, JobRun("untraced", 1, b""))))
    telemetry.shutdown()
    run = calls.only(sink.spans, f"process {calls.METHOD}", "CONSUMER")
    assert run.links == tuple((f"{number:032x}", f"{number:016x}") for number in (1, 2))
    assert run.attributes["messaging.batch.message_count"] == 3


def test_a_failed_attempt_that_a_retry_repaired_fails_no_other_span(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    calls.retried(telemetry, calls.head())
    telemetry.shutdown()
    failed = [(span.kind, span.attributes["relay.attempt"]) for span in sink.spans if span.status == "ERROR"]
    assert failed == [("CLIENT", 1)]


def test_each_attempt_carries_its_own_span_to_the_upstream(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    sent = calls.retried(
        telemetry, calls.head(calls.traceparent("01"), (b"tracestate", b"v=1"), (b"baggage", b"b=2"))
    )
    telemetry.shutdown()
    by_number = {span.attributes["relay.attempt"]: span for span in sink.spans if span.kind == "CLIENT"}
    for number, headers in enumerate(sent, start=1):
        expected = f"00-{calls.CALLER_TRACE}-{by_number[number].span_id}-01".encode()
        assert headers == ((b"traceparent", expected), (b"tracestate", b"v=1"), (b"baggage", b"b=2"))


def test_spans_say_what_happened(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(
        otlp_endpoint=sink.endpoint,
        listen_address="127.0.0.1:50051",
        service_version="1.2.3",
        instance_id="relay-a",
    )
    calls.retried(telemetry, calls.head())
    telemetry.shutdown()

    server = calls.only(sink.spans, calls.METHOD, "SERVER")
    waited_ms = server.attributes.pop("relay.queue_wait_ms")
    assert waited_ms == pytest.approx(50)
    assert server.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": calls.METHOD,
        RPC_STATUS_CODE: "OK",
        "server.address": "127.0.0.1",
        "server.port": 50051,
        "client.address": "127.0.0.1",
        "client.port": 40000,
        "relay.attempts": 2,
        "relay.decision": "RETRIED",
        "relay.origin": "upstream",
        "relay.outcome": "executed",
        "relay.evidence": "definite",
    }
    first, second = sorted(
        (span for span in sink.spans if span.kind == "CLIENT"), key=lambda span: span.start_ns
    )
    assert first.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": calls.METHOD,
        RPC_STATUS_CODE: "UNAVAILABLE",
        "error.type": "UNAVAILABLE",
        "server.address": "127.0.0.1",
        "server.port": 50052,
        "relay.upstream": "payments",
        "relay.attempt": 1,
        "relay.delivery": "answered",
        "relay.evidence": "refused",
    }
    assert first.message == "try again"
    assert (second.attributes[RPC_STATUS_CODE], second.status) == ("OK", "UNSET")
    assert (
        server.resource.items()
        >= {"service.name": "relay", "service.version": "1.2.3", "service.instance.id": "relay-a"}.items()
    )


def test_spans_last_as_long_as_what_they_tell_of(make_telemetry, sink, calls, wall) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    calls.retried(telemetry, calls.head(received_at=100.0))
    telemetry.shutdown()
    times_ms = sorted(
        ((span.start_ns - wall.offset_ns) / 1e6, (span.end_ns - wall.offset_ns) / 1e6) for span in sink.spans
    )
    expected = [(100_000, 100_200), (100_010, 100_030), (100_010, 100_200), (100_030, 100_050)]
    expected += [(100_100, 100_130), (100_130, 100_200)]
    assert times_ms == [pytest.approx(pair, abs=0.001) for pair in expected]


def test_a_step_of_the_wall_clock_tears_no_trace(make_telemetry, sink, calls, wall) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    call = telemetry.call_started(calls.head(), 100.0)
    call.attempt_started(1, "payments", 100.01)
    wall.offset_ns -= 3600 * 10**9
    call.attempt_ended(1, "127.0.0.1:50052", calls.OK_END, Evidence.DEFINITE, 100.02)
    call.finished(calls.OK, 100.03)
    telemetry.shutdown()

    server = calls.only(sink.spans, calls.METHOD, "SERVER")
    assert (server.end_ns - server.start_ns) / 1e6 == pytest.approx(30, abs=0.001)
    for span in sink.spans:
        assert server.start_ns <= span.start_ns <= span.end_ns <= server.end_ns


@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.name)
def test_a_server_span_is_an_error_only_for_the_servers_failures_and_an_attempt_for_any(
    make_telemetry, sink, calls, code: Code
) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    call = telemetry.call_started(calls.head(), 100.0)
    call.attempt_started(1, "payments", 100.0)
    end = AttemptEnd(Delivery.ANSWERED, code, "as told")
    call.attempt_ended(1, "127.0.0.1:50052", end, Evidence.DEFINITE, 100.1)
    fate = Fate.OK if code is Code.OK else Fate.ERROR
    call.finished(Verdict(code, "as told", Origin.UPSTREAM, fate, None, Evidence.DEFINITE, 1), 100.1)
    telemetry.shutdown()

    server_status = "ERROR" if code.name in SERVER_ERRORS else "UNSET"
    server = calls.only(sink.spans, calls.METHOD, "SERVER")
    attempt = calls.only(sink.spans, calls.METHOD, "CLIENT")
    assert server.status == calls.only(sink.spans, "relay.forward").status == server_status
    assert ("error.type" in server.attributes) is (server_status == "ERROR")
    assert attempt.status == ("UNSET" if code is Code.OK else "ERROR")
    assert server.attributes[RPC_STATUS_CODE] == attempt.attributes[RPC_STATUS_CODE] == code.name


def test_an_attempt_that_the_relay_gave_up_is_cancelled_and_no_error(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    call = telemetry.call_started(calls.head(), 100.0)
    call.attempt_started(1, "payments", 100.0)
    given_up = AttemptEnd(Delivery.UNANSWERED, Code.CANCELLED, "given up")
    call.attempt_ended(1, "127.0.0.1:50052", given_up, Evidence.AMBIGUOUS, 100.1)
    gone = Verdict(Code.CANCELLED, "", Origin.RELAY, Fate.CANCELLED, None, Evidence.AMBIGUOUS, 1)
    call.finished(gone, 100.1)
    telemetry.shutdown()
    attempt = calls.only(sink.spans, calls.METHOD, "CLIENT")
    assert (attempt.status, attempt.attributes[RPC_STATUS_CODE]) == ("UNSET", "CANCELLED")
    assert {span.status for span in sink.spans} == {"UNSET"}


def test_a_hedge_says_what_it_is_and_the_attempt_that_lost_against_it_is_no_error(
    make_telemetry, sink, calls
) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    call = telemetry.call_started(calls.head(), 100.0)
    call.attempt_started(1, "payments", 100.0)
    call.hedge_started(2, "payments", 100.1)
    call.attempt_ended(2, "127.0.0.1:50052", calls.OK_END, Evidence.DEFINITE, 100.15)
    lost = AttemptEnd(Delivery.UNANSWERED, Code.CANCELLED, "given up")
    call.attempt_ended(1, "127.0.0.1:50052", lost, Evidence.AMBIGUOUS, 100.15)
    call.finished(replace(calls.OK, attempts=2, hedges=1, hedge_won=True), 100.15)
    telemetry.shutdown()
    attempts = [span for span in sink.spans if span.kind == "CLIENT"]
    told = {span.attributes["relay.attempt"]: span for span in attempts}
    assert [told[number].attributes.get("relay.hedge") for number in (1, 2)] == [None, True]
    assert [told[number].attributes[RPC_STATUS_CODE] for number in (1, 2)] == ["CANCELLED", "OK"]
    assert {span.status for span in sink.spans} == {"UNSET"}
    assert calls.only(sink.spans, calls.METHOD, "SERVER").attributes["relay.decision"] == "HEDGED"


def test_a_call_refused_at_its_headers_is_one_span(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    calls.refuse(telemetry, calls.head())
    telemetry.shutdown()
    (server,) = sink.spans
    assert (server.kind, server.parent_id, server.status) == ("SERVER", "", "UNSET")
    assert server.attributes["relay.reason"] == server.attributes["relay.decision"] == "QUEUE_FULL"
    assert (server.attributes["relay.origin"], server.attributes["relay.outcome"]) == (
        "relay",
        "not-executed",
    )
    assert "relay.evidence" not in server.attributes


def test_a_wait_that_ends_with_the_call_still_has_its_span(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    call = telemetry.call_started(calls.head(), 100.0)
    call.queued(100.0)
    late = Verdict(Code.DEADLINE_EXCEEDED, "late", Origin.RELAY, Fate.REFUSED, Reason.DEADLINE_PASSED)
    call.finished(late, 100.25)
    telemetry.shutdown()
    queue = calls.only(sink.spans, "relay.queue")
    assert queue.attributes == {"relay.queue_wait_ms": pytest.approx(250)}
    assert queue.parent_id == calls.only(sink.spans, "relay.forward").span_id


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("[::1]:50052", {"server.address": "::1", "server.port": 50052}),
        ("unix:/run/payments.sock", {"server.address": "unix:/run/payments.sock"}),
        ("", {}),
    ],
)
def test_an_attempts_peer_is_told_in_every_form(
    make_telemetry, sink, calls, peer: str, expected: dict
) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    call = telemetry.call_started(calls.head(), 100.0)
    call.attempt_started(1, "payments", 100.0)
    call.attempt_ended(1, peer, calls.OK_END, Evidence.DEFINITE, 100.1)
    call.finished(calls.OK, 100.1)
    telemetry.shutdown()
    attributes = calls.only(sink.spans, calls.METHOD, "CLIENT").attributes
    assert {name: value for name, value in attributes.items() if name.startswith("server.")} == expected


def test_hostile_text_is_cut_and_costs_no_other_span(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    calls.refuse(
        telemetry,
        calls.head(method="x" * 5000),
        verdict=replace(calls.QUEUE_FULL, code=Code.UNKNOWN, message="\udce9" * 5000),
    )
    calls.refuse(telemetry, calls.head(method="pkg.\ud800/Bad"))
    calls.succeed(telemetry, calls.head())
    telemetry.shutdown()
    assert telemetry.span_counts.dropped == 0
    assert {span.name for span in sink.spans} == {"x" * 256, "pkg.?/Bad", calls.METHOD, "relay.forward"}
    assert calls.only(sink.spans, "x" * 256).message == "?" * 256
