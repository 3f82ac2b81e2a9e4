"""What is decided about a call when its headers come."""

from typing import Any

import pytest
from hand_moved import OK, UNAVAILABLE, Bench, HandUpstream, details_of, reason_of
from world import framed

from relay_service.core.evidence import Delivery, Safety
from relay_service.core.policy import (
    NO_RETRY,
    BreakerPolicy,
    MethodPolicy,
    Route,
)
from relay_service.core.status import Code
from relay_service.ports import AttemptEnd, Headers


def test_no_route_is_unimplemented() -> None:
    reply = Bench(routes=(Route("other.S", None, "upstream"),)).refusal()
    assert (reply.code, reason_of(reply)) == (Code.UNIMPLEMENTED, "NO_ROUTE")


def test_a_refusal_for_load_says_why_and_when_to_return() -> None:
    bench = Bench(workers=1, queue_capacity=0)
    call, _ = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    reply = bench.refusal()
    assert (reply.code, reply.headers) == (Code.RESOURCE_EXHAUSTED, None)
    info, retry, quota = details_of(reply)
    assert (info.reason, info.domain, info.metadata["method"]) == (
        "QUEUE_FULL",
        "resilient-relay",
        "t.S/Unary",
    )
    assert quota.violations
    pushback_ms = int(reply.trailers[b"grpc-retry-pushback-ms"])
    assert pushback_ms == retry.retry_delay.seconds * 1000 + retry.retry_delay.nanos // 1_000_000 > 0
    assert reply.trailers[b"relay-outcome"] == b"not-executed"


@pytest.mark.parametrize("low", [b"SHEDDABLE", b"sheddable_plus"])
def test_a_displaced_call_is_told_at_once_why_and_when_to_return(low: bytes) -> None:
    bench = Bench(workers=1, queue_capacity=1)
    replies = []
    for name in (b"CRITICAL", low, b"CRITICAL"):
        call, reply = bench.call(metadata=[(b"relay-criticality", name)])
        call.on_request_data(framed(b"x"), end=True)
        replies.append(reply)
    displaced = replies[1]
    assert (displaced.code, reason_of(displaced)) == (Code.RESOURCE_EXHAUSTED, "SHED_BY_CRITICALITY")
    assert int(displaced.trailers[b"grpc-retry-pushback-ms"]) > 0
    assert displaced.trailers[b"relay-outcome"] == b"not-executed"
    bench.upstream.last.end(OK)
    bench.upstream.last.end(OK)
    assert [reply.code for reply in replies] == [Code.OK, Code.RESOURCE_EXHAUSTED, Code.OK]
    assert len(bench.upstream.attempts) == 2
    assert (bench.relay.in_flight, bench.relay.admission.queued) == (0, 0)


def test_a_retry_that_is_displaced_ends_with_what_its_attempt_was_told() -> None:
    bench = Bench(workers=1, queue_capacity=1)
    first, first_reply = bench.call(metadata=[(b"relay-criticality", b"SHEDDABLE")])
    first.on_request_data(framed(b"1"), end=True)
    bench.upstream.last.end(UNAVAILABLE)
    busy, _ = bench.call()
    busy.on_request_data(framed(b"2"), end=True)
    while not bench.relay.admission.queued:
        bench.clock.step()
    displacing, _ = bench.call()
    displacing.on_request_data(framed(b"3"), end=True)
    assert (first_reply.code, first_reply.trailers[b"relay-decision"]) == (
        Code.UNAVAILABLE,
        b"RETRIES_EXHAUSTED",
    )


def test_the_class_is_passed_on_as_it_came() -> None:
    bench = Bench()
    call, _ = bench.call(metadata=[(b"relay-criticality", b"Sheddable")])
    call.on_request_data(framed(b"x"), end=True)
    assert dict(bench.upstream.last.metadata)[b"relay-criticality"] == b"Sheddable"


@pytest.mark.parametrize(
    "metadata",
    [
        [(b"idempotency-key", b"")],
        [(b"idempotency-key", b"k" * 256)],
        [(b"idempotency-key", b"tab\there")],
        [(b"idempotency-key", b"caf\xc3\xa9")],
        [(b"idempotency-key", b"a"), (b"idempotency-key", b"b")],
    ],
)
def test_a_malformed_key_is_invalid(metadata: Headers) -> None:
    reply = Bench().refusal(metadata=metadata)
    assert (reply.code, reason_of(reply)) == (Code.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_INVALID")


def test_a_key_on_a_streaming_method_is_invalid() -> None:
    reply = Bench().refusal("t.S/Stream", [(b"idempotency-key", b"k")])
    assert (reply.code, reason_of(reply)) == (Code.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_INVALID")


def test_a_required_key_that_is_missing_is_said_so() -> None:
    reply = Bench(MethodPolicy(safety=Safety.KEYED, key_required=True)).refusal()
    assert (reply.code, reason_of(reply)) == (Code.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_MISSING")


def test_the_upstream_gets_a_derived_key_that_is_stable_and_apart_for_each_method() -> None:
    def sent_key(method: str, key: bytes) -> bytes:
        bench = Bench()
        call, _ = bench.call(method, [(b"idempotency-key", key)])
        call.on_request_data(framed(b"x"), end=True)
        return dict(bench.upstream.last.metadata)[b"idempotency-key"]

    first = sent_key("t.S/Unary", b"k1")
    assert first == sent_key("t.S/Unary", b"k1")
    assert len({first, sent_key("t.S/Unary", b"k2"), sent_key("t.T/Unary", b"k1"), b"k1"}) == 4


def test_a_callers_trace_context_is_replaced_and_not_doubled() -> None:
    bench = Bench()
    theirs = [(b"traceparent", b"00-theirs"), (b"tracestate", b"a=b"), (b"baggage", b"c=d"), (b"kept", b"1")]
    call, _ = bench.call(metadata=theirs)
    call.on_request_data(framed(b"x"), end=True)
    sent = [name for name, _ in bench.upstream.last.metadata]
    assert sent.count(b"traceparent") == 1
    assert dict(bench.upstream.last.metadata)[b"traceparent"] != b"00-theirs"
    assert b"kept" in sent


def test_hops_are_counted_and_a_relay_behind_a_relay_makes_one_attempt() -> None:
    bench = Bench()
    call, reply = bench.call(metadata=[(b"relay-attempt", b"1")])
    call.on_request_data(framed(b"x"), end=True)
    assert dict(bench.upstream.last.metadata)[b"relay-attempt"] == b"2"
    bench.upstream.last.end(UNAVAILABLE)
    assert (reply.code, len(bench.upstream.attempts)) == (Code.UNAVAILABLE, 1)


def test_a_loop_of_relays_is_refused() -> None:
    reply = Bench().refusal(metadata=[(b"relay-attempt", b"3")])
    assert (reply.code, reason_of(reply)) == (Code.FAILED_PRECONDITION, "HOP_LIMIT")


@pytest.mark.parametrize(("given", "sent"), [(None, 4.0), (2.0, 2.0), (100.0, 4.5)])
def test_a_deadline_is_defaulted_capped_and_passed_on(given: float | None, sent: float) -> None:
    bench = Bench(MethodPolicy(default_timeout_s=4.0, max_timeout_s=4.5, attempt_timeout_s=None))
    call, _ = bench.call(timeout_s=given)
    call.on_request_data(framed(b"x"), end=True)
    assert bench.upstream.last.timeout_s == pytest.approx(sent)


def test_a_deadline_already_past_is_refused_at_once() -> None:
    reply = Bench().refusal(timeout_s=0.0)
    assert (reply.code, reason_of(reply)) == (Code.DEADLINE_EXCEEDED, "DEADLINE_PASSED")


def test_a_draining_relay_refuses_new_calls_and_finishes_those_under_way() -> None:
    bench = Bench()
    call, reply = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    bench.relay.drain()
    refused = bench.refusal()
    assert (refused.code, reason_of(refused)) == (Code.UNAVAILABLE, "DRAINING")
    bench.upstream.last.end(OK)
    assert (reply.code, bench.relay.in_flight) == (Code.OK, 0)


def test_own_services_are_handed_over_even_while_draining_and_full() -> None:
    control = HandUpstream()
    bench = Bench(workers=1, queue_capacity=0, max_streams=0, own_services={"grpc.health.v1.Health": control})
    bench.relay.drain()
    call, reply = bench.call("grpc.health.v1.Health/Check")
    call.on_request_data(framed(b""), end=True)
    control.last.end(OK)
    assert reply.code is Code.OK
    assert bench.relay.in_flight == 0


def failed_once(**rest: Any) -> Bench:
    """A relay whose breaker has just been opened by one failed call to ``t.S/Unary``."""
    breakers = {"": BreakerPolicy(consecutive_failures=1, open_s=10.0), "t.S/Other": BreakerPolicy()}
    bench = Bench(MethodPolicy(retry=NO_RETRY), breakers=breakers, **rest)
    call, _ = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    bench.upstream.last.end(UNAVAILABLE)
    return bench


@pytest.mark.parametrize("method", ["t.S/Unary", "t.S/Stream"])
def test_an_open_breaker_refuses_at_the_headers_and_says_when_to_return(method: str) -> None:
    bench = failed_once()
    reply = bench.refusal(method)
    assert (reply.code, reason_of(reply), reply.headers) == (Code.UNAVAILABLE, "BREAKER_OPEN", None)
    assert (reply.trailers[b"relay-outcome"], reply.trailers[b"relay-attempts"]) == (b"not-executed", b"0")
    assert 10_000 <= int(reply.trailers[b"grpc-retry-pushback-ms"]) <= 16_000
    assert len(bench.upstream.attempts) == 1
    assert bench.relay.admission.streams == 0


def test_a_method_with_a_breaker_of_its_own_is_not_held_up_by_the_upstreams() -> None:
    bench = failed_once()
    call, _ = bench.call("t.S/Other")
    call.on_request_data(framed(b"x"), end=True)
    assert len(bench.upstream.attempts) == 2


def test_a_call_that_finds_the_breaker_open_when_it_is_whole_gives_its_worker_back() -> None:
    bench = Bench(breakers={"": BreakerPolicy(consecutive_failures=1)}, workers=2, queue_capacity=1)
    (first, _), (late, reply) = bench.call(), bench.call()
    first.on_request_data(framed(b"x"), end=True)
    bench.upstream.last.end(AttemptEnd(Delivery.UNANSWERED, Code.UNAVAILABLE, "reset"))
    late.on_request_data(framed(b"x"), end=True)
    assert (reply.code, reason_of(reply)) == (Code.UNAVAILABLE, "BREAKER_OPEN")
    assert (bench.relay.admission.busy, bench.relay.in_flight, len(bench.upstream.attempts)) == (0, 0, 1)


def test_a_stream_that_is_being_answered_is_all_the_proof_a_breaker_needs() -> None:
    policy = BreakerPolicy(consecutive_failures=1, probe_successes=1, ramp_s=None)
    bench = Bench(MethodPolicy(retry=NO_RETRY), breakers={"": policy})
    bench.call("t.S/Stream")
    bench.upstream.last.end(UNAVAILABLE)
    bench.clock.now += policy.open_s
    bench.call("t.S/Stream")
    probe = bench.upstream.last
    assert bench.refusal("t.S/Stream").code is Code.UNAVAILABLE, "one probe at a time"
    probe.sink.on_response_headers(probe, ())
    bench.call("t.S/Stream")
    assert len(bench.upstream.attempts) == 3


def test_a_drain_ends_the_calls_to_our_own_services() -> None:
    control = HandUpstream()
    bench = Bench(own_services={"grpc.health.v1.Health": control})
    _, reply = bench.call("grpc.health.v1.Health/Watch")
    bench.relay.drain()
    assert (reply.code, reason_of(reply)) == (Code.UNAVAILABLE, "DRAINING")
    assert control.last.cancelled
