"""What a call does with its bytes, step by step, against an upstream that the test moves by hand."""

import base64
import zlib
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from world import Catalog, Clock, Observer, Reply, framed

from protos.relay.v1.relay_pb2 import RelayRequest, RelayResponse
from relay_service import contract
from relay_service.core.evidence import Delivery, Safety
from relay_service.core.policy import (
    NO_RETRY,
    AdmissionPolicy,
    BreakerPolicy,
    MethodPolicy,
    RelayPolicy,
    RetryPolicy,
    Route,
    UpstreamPolicy,
)
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate
from relay_service.envelope import METHOD as ENVELOPE
from relay_service.envelope import EnvelopeOpener
from relay_service.methods import MethodFacts
from relay_service.ports import AttemptEnd, AttemptSink, CallHead, Headers
from relay_service.refusal import refused
from relay_service.relay import Relay
from relay_service.streaming import FLOW_HIGH_WATER_BYTES
from relay_service.ways import WAYS_MAX, Way, Ways

UNAVAILABLE = AttemptEnd(Delivery.ANSWERED, Code.UNAVAILABLE, "busy")
OK = AttemptEnd(Delivery.ANSWERED, Code.OK, "", ((b"upstream-trailer", b"1"),))


class HandAttempt:
    """An attempt that the test answers itself."""

    peer = "upstream:1"

    def __init__(self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> None:
        self.method, self.metadata, self.timeout_s, self.sink = method, list(metadata), timeout_s, sink
        self.data = b""
        self.ended = False
        self.cancelled = False
        self.credit_bytes = 0
        self.buffered_bytes = 0

    def send_data(self, data: bytes, *, end: bool) -> None:
        assert not self.ended
        self.data += data
        self.ended = end

    def cancel(self) -> Delivery:
        self.cancelled = True
        return Delivery.UNANSWERED

    def consumed(self, size_bytes: int) -> None:
        self.credit_bytes += size_bytes

    def end(self, end: AttemptEnd) -> None:
        self.sink.on_end(self, end)

    def respond(self, data: bytes = b"\0\0\0\0\0") -> None:
        self.sink.on_response_headers(self, ())
        self.sink.on_response_data(self, data)


class HandUpstream:
    name = "upstream"

    def __init__(self) -> None:
        self.attempts: list[HandAttempt] = []

    def start(
        self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink
    ) -> HandAttempt:
        self.attempts.append(HandAttempt(method, metadata, timeout_s, sink))
        return self.attempts[-1]

    @property
    def last(self) -> HandAttempt:
        return self.attempts[-1]


class Bench:
    """A relay, one hand-moved upstream, and callers."""

    def __init__(
        self,
        method: MethodPolicy | None = None,
        *,
        workers: int = 5,
        queue_capacity: int = 5,
        max_streams: int = 5,
        own_services: Mapping[str, Any] | None = None,
        routes: tuple[Route, ...] = (),
        breakers: Mapping[str, BreakerPolicy] | None = None,
    ) -> None:
        self.clock = Clock()
        self.upstream = HandUpstream()
        self.observer = Observer()
        self.policy = RelayPolicy(
            "test",
            {"upstream": UpstreamPolicy(target="127.0.0.1:1")},
            {"": method or MethodPolicy(retry=RetryPolicy())},
            routes,
            AdmissionPolicy(queue_capacity=queue_capacity, workers=workers, max_streams=max_streams),
            None,
            breakers=breakers or {},
        )
        self.relay = Relay(
            self.policy,
            {"upstream": self.upstream},
            Catalog(),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=Random(1),
            own_services=own_services or {},
        )
        self.opener = EnvelopeOpener(self.relay, Catalog())

    def call(
        self, method: str = "t.S/Unary", metadata: Headers = (), timeout_s: float | None = None
    ) -> tuple[Any, Reply]:
        reply = Reply(self.clock)
        head = CallHead(method, metadata, timeout_s, self.clock.now, "caller:1")
        return self.opener.on_call(head, reply), reply

    def refusal(
        self, method: str = "t.S/Unary", metadata: Headers = (), timeout_s: float | None = None
    ) -> Reply:
        call, reply = self.call(method, metadata, timeout_s)
        assert call is None, "the call was taken"
        return reply


def details_of(reply: Reply) -> list[Any]:
    packed = reply.trailers[b"grpc-status-details-bin"]
    status = Status.FromString(base64.b64decode(packed + b"=" * (-len(packed) % 4)))
    assert (status.code, status.message) == (reply.code, reply.message)
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in (ErrorInfo, RetryInfo, QuotaFailure)}
    return [kinds[detail.TypeName()].FromString(detail.value) for detail in status.details]


def reason_of(reply: Reply) -> str:
    return next(detail.reason for detail in details_of(reply) if isinstance(detail, ErrorInfo))


# At the headers -------------------------------------------------------------------------------------


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


# Unary ----------------------------------------------------------------------------------------------


def test_a_unary_call_is_sent_on_only_when_it_is_whole() -> None:
    bench = Bench()
    call, reply = bench.call()
    whole = framed(b"hello")
    call.on_request_data(whole[:3], end=False)
    call.on_request_data(whole[3:], end=False)
    assert not bench.upstream.attempts
    assert reply.window_bytes == len(whole)
    call.on_request_data(b"", end=True)
    assert (bench.upstream.last.data, bench.upstream.last.ended) == (whole, True)


@pytest.mark.parametrize(
    "body", [b"", b"\0\0\0\0\5hell", b"\0\0\0\0\1ab", b"\2\0\0\0\0", framed(b"a") + framed(b"b")]
)
def test_a_request_that_is_not_one_message_is_malformed(body: bytes) -> None:
    bench = Bench()
    call, reply = bench.call()
    call.on_request_data(body, end=True)
    assert (reply.code, reason_of(reply), bench.upstream.attempts) == (Code.INTERNAL, "MALFORMED_REQUEST", [])


def test_an_oversized_request_is_refused_before_it_is_whole() -> None:
    bench = Bench(MethodPolicy(max_message_bytes=10))
    call, reply = bench.call()
    call.on_request_data(b"\0\0\0\1\0" + b"x" * 11, end=False)
    assert (reply.code, reason_of(reply)) == (Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert bench.observer.by_fate[Fate.REFUSED] == 1
    call.on_request_data(b"x" * 100, end=True)
    assert bench.relay.in_flight == 0


def test_an_oversized_response_gives_the_attempt_up() -> None:
    bench = Bench(MethodPolicy(max_message_bytes=10))
    call, reply = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    attempt = bench.upstream.last
    attempt.sink.on_response_headers(attempt, ())
    attempt.sink.on_response_data(attempt, b"x" * 16)
    assert attempt.cancelled
    assert (reply.code, reason_of(reply)) == (Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert reply.trailers[b"relay-outcome"] == b"unknown"


def test_what_a_failed_attempt_sent_is_not_mixed_into_the_answer() -> None:
    bench = Bench(MethodPolicy(safety=Safety.IDEMPOTENT, retry=RetryPolicy()))
    call, reply = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    first = bench.upstream.last
    first.sink.on_response_headers(first, ((b"from", b"first"),))
    first.sink.on_response_data(first, b"half")
    first.end(AttemptEnd(Delivery.UNANSWERED, Code.UNAVAILABLE, "connection lost"))
    bench.clock.call_at(bench.clock.now + 1.0, lambda _: answer(bench.upstream.last), None)
    bench.clock.run()
    assert (reply.code, reply.data, reply.headers) == (Code.OK, b"whole", ((b"from", b"second"),))
    assert reply.trailers[b"relay-attempts"] == b"2"
    assert dict(bench.upstream.last.metadata)[b"grpc-previous-rpc-attempts"] == b"1"


def answer(attempt: HandAttempt) -> None:
    attempt.sink.on_response_headers(attempt, ((b"from", b"second"),))
    attempt.sink.on_response_data(attempt, b"whole")
    attempt.end(OK)


def test_an_upstreams_error_passes_with_its_trailers_and_ours() -> None:
    bench = Bench()
    call, reply = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    trailers = ((b"grpc-status-details-bin", b"abc"), (b"x-custom", b"1"))
    bench.upstream.last.end(AttemptEnd(Delivery.ANSWERED, Code.NOT_FOUND, "no such thing", trailers))
    assert (reply.code, reply.message, reply.headers) == (Code.NOT_FOUND, "no such thing", None)
    assert reply.trailers == {
        b"grpc-status-details-bin": b"abc",
        b"x-custom": b"1",
        b"relay-attempts": b"1",
        b"relay-decision": b"FORWARDED",
        b"relay-origin": b"upstream",
        b"relay-outcome": b"not-executed",
    }


def test_the_backoff_holds_no_worker() -> None:
    bench = Bench(workers=1)
    first, _ = bench.call()
    second, second_reply = bench.call()
    first.on_request_data(framed(b"1"), end=True)
    second.on_request_data(framed(b"2"), end=True)
    assert len(bench.upstream.attempts) == 1
    bench.upstream.last.end(UNAVAILABLE)
    assert bench.upstream.last.data == framed(b"2")
    bench.upstream.last.end(OK)
    assert second_reply.code is Code.OK


def test_a_cancelled_call_gives_its_attempt_and_worker_up() -> None:
    bench = Bench(workers=1)
    call, reply = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    call.on_cancelled()
    assert bench.upstream.last.cancelled
    assert reply.code is None
    assert (bench.relay.in_flight, bench.relay.admission.busy) == (0, 0)
    call.on_cancelled()
    assert bench.observer.by_fate[Fate.CANCELLED] == 1


# Streams --------------------------------------------------------------------------------------------


def stream(bench: Bench, **how: Any) -> tuple[Any, Reply, HandAttempt]:
    call, reply = bench.call("t.S/Stream", **how)
    return call, reply, bench.upstream.last


def test_a_stream_flows_both_ways_at_once() -> None:
    call, reply, attempt = stream(Bench())
    call.on_request_data(b"one", end=False)
    attempt.sink.on_response_headers(attempt, ((b"a", b"b"),))
    attempt.sink.on_response_data(attempt, b"uno")
    assert (attempt.data, reply.headers, reply.data) == (b"one", ((b"a", b"b"),), b"uno")
    call.on_request_data(b"", end=True)
    assert attempt.ended
    attempt.end(OK)
    assert reply.code is Code.OK


def test_a_slow_upstream_holds_the_caller_back_until_it_has_room() -> None:
    call, reply, attempt = stream(Bench())
    attempt.buffered_bytes = FLOW_HIGH_WATER_BYTES
    call.on_request_data(b"x" * 1000, end=False)
    assert reply.window_bytes == 0
    attempt.buffered_bytes = 0
    attempt.sink.on_attempt_drained(attempt)
    assert reply.window_bytes == 1000


def test_a_slow_caller_holds_the_upstream_back_until_it_has_room() -> None:
    call, reply, attempt = stream(Bench())
    attempt.sink.on_response_headers(attempt, ())
    reply.buffered_bytes = FLOW_HIGH_WATER_BYTES
    attempt.sink.on_response_data(attempt, b"x" * 1000)
    assert attempt.credit_bytes == 0
    reply.buffered_bytes = 0
    call.on_reply_drained()
    assert attempt.credit_bytes == 1000


def test_a_stream_is_tried_again_whole_while_nothing_was_delivered() -> None:
    bench = Bench()
    call, reply, first = stream(bench)
    call.on_request_data(b"one", end=False)
    first.end(UNAVAILABLE)
    call.on_request_data(b"two", end=True)
    assert reply.window_bytes == 3, "bytes that no attempt has taken give no window"
    bench.clock.run()
    second = bench.upstream.last
    assert second is not first
    assert (second.data, second.ended, reply.window_bytes) == (b"onetwo", True, 6)


def test_a_stream_that_delivered_something_is_not_tried_again() -> None:
    bench = Bench()
    _, reply, attempt = stream(bench)
    attempt.sink.on_response_headers(attempt, ())
    attempt.end(UNAVAILABLE)
    assert (reply.code, len(bench.upstream.attempts)) == (Code.UNAVAILABLE, 1)
    assert reply.trailers[b"relay-decision"] == b"RETRIES_EXHAUSTED"


def test_a_stream_past_its_replay_buffer_is_not_tried_again() -> None:
    bench = Bench(MethodPolicy(replay_buffer_bytes=4))
    call, reply, attempt = stream(bench)
    call.on_request_data(b"12345", end=False)
    attempt.end(UNAVAILABLE)
    assert (reply.code, len(bench.upstream.attempts)) == (Code.UNAVAILABLE, 1)


def test_streams_have_a_limit_of_their_own() -> None:
    bench = Bench(max_streams=1)
    call, _, _ = stream(bench)
    refused = bench.refusal("t.S/Stream")
    assert (refused.code, reason_of(refused)) == (Code.RESOURCE_EXHAUSTED, "STREAM_LIMIT")
    call.on_cancelled()
    assert stream(bench)[0] is not None


# Envelopes ------------------------------------------------------------------------------------------


def envelope(
    method: str = "t.S/Unary", value: bytes = b"inside", type_url: str = "type.googleapis.com/t.In"
) -> bytes:
    request = RelayRequest(method=method)
    request.request.value = value
    request.request.type_url = type_url
    return request.SerializeToString()


def test_an_envelope_is_opened_carried_and_answered_in_one() -> None:
    bench = Bench()
    call, reply = bench.call(ENVELOPE, [(b"idempotency-key", b"k"), (b"grpc-encoding", b"identity")], 3.0)
    call.on_request_data(framed(envelope()), end=True)
    attempt = bench.upstream.last
    assert (attempt.method, attempt.data, attempt.ended) == ("t.S/Unary", framed(b"inside"), True)
    assert b"grpc-encoding" not in dict(attempt.metadata)
    assert dict(attempt.metadata)[b"idempotency-key"] == contract.derived_key("", "t.S/Unary", b"k")
    assert attempt.timeout_s == pytest.approx(3.0)
    attempt.sink.on_response_headers(attempt, ((b"served", b"yes"),))
    attempt.sink.on_response_data(attempt, framed(b"answer"))
    attempt.end(OK)
    response = RelayResponse.FromString(reply.data[5:]).response
    assert (response.value, response.type_url) == (b"answer", "type.googleapis.com/t.Out")
    assert (reply.code, reply.headers) == (Code.OK, [(b"served", b"yes")])
    assert reply.trailers[b"upstream-trailer"] == b"1"


def test_a_compressed_envelope_is_opened_too() -> None:
    bench = Bench()
    squeeze = zlib.compressobj(wbits=31)
    body = squeeze.compress(envelope(value=b"z" * 5000)) + squeeze.flush()
    call, _ = bench.call(ENVELOPE, [(b"grpc-encoding", b"gzip")])
    call.on_request_data(b"\1" + framed(body)[1:], end=True)
    assert bench.upstream.last.data == framed(b"z" * 5000)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (framed(b"\xff\xff"), "no relay.v1.RelayRequest"),
        (framed(envelope(method="nonsense")), "package.Service/Method"),
        (framed(envelope(method="t.S/Ü")), "package.Service/Method"),
        (framed(envelope(method="t.S/a\nb: c")), "package.Service/Method"),
        (framed(envelope(method="t.S/" + "a" * 2000)), "package.Service/Method"),
        (framed(envelope(method="t.S/Stream")), "streaming"),
        (framed(envelope(type_url="type.googleapis.com/t.Other")), "takes t.In"),
        (b"\1" + framed(envelope())[1:], "compressed"),
    ],
)
def test_an_envelope_that_holds_no_call_says_why(body: bytes, expected: str) -> None:
    bench = Bench()
    call, reply = bench.call(ENVELOPE)
    call.on_request_data(body, end=True)
    assert (reply.code, reason_of(reply)) == (Code.INVALID_ARGUMENT, "ENVELOPE_INVALID")
    assert expected in reply.message
    assert bench.observer.by_fate[Fate.REFUSED] == 1


@pytest.mark.parametrize("body", [framed(envelope())[:-1], framed(envelope()) + b"x", b"", b"\7\0\0\0\0"])
def test_an_envelope_that_is_not_one_message_is_malformed(body: bytes) -> None:
    bench = Bench()
    call, reply = bench.call(ENVELOPE)
    call.on_request_data(body, end=True)
    assert (reply.code, reason_of(reply)) == (Code.INTERNAL, "MALFORMED_REQUEST")


def test_an_envelope_that_never_becomes_whole_ends_at_its_deadline() -> None:
    bench = Bench()
    call, reply = bench.call(ENVELOPE, timeout_s=2.0)
    call.on_request_data(framed(envelope())[:10], end=False)
    bench.clock.run()
    assert (reply.code, reason_of(reply)) == (Code.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
    assert reply.answered_at == pytest.approx(bench.clock.now)
    call.on_request_data(framed(envelope())[10:], end=True)
    assert not bench.upstream.attempts


def test_a_decompression_bomb_is_cut_off_at_the_limit() -> None:
    bench = Bench(MethodPolicy(max_message_bytes=10_000))
    squeeze = zlib.compressobj(wbits=31)
    bomb = squeeze.compress(b"\0" * 5_000_000) + squeeze.flush()
    call, reply = bench.call(ENVELOPE, [(b"grpc-encoding", b"gzip")])
    call.on_request_data(b"\1" + framed(bomb)[1:], end=True)
    assert reason_of(reply) == "ENVELOPE_INVALID"


def test_leaving_an_envelope_leaves_the_call_inside() -> None:
    bench = Bench()
    call, _ = bench.call(ENVELOPE)
    call.on_request_data(framed(envelope()), end=True)
    call.on_cancelled()
    assert bench.upstream.last.cancelled


# The contract ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trailers", "expected"),
    [
        ((), None),
        (((b"grpc-retry-pushback-ms", b"250"),), 0.25),
        (((b"grpc-retry-pushback-ms", b"-1"),), -0.001),
        (((b"grpc-retry-pushback-ms", b"soon"),), -1.0),
        (((b"grpc-status-details-bin", b"not base64!"),), None),
    ],
)
def test_pushback_is_read_as_grfc_a6_says(trailers: Headers, expected: float | None) -> None:
    assert contract.pushback_s(trailers) == expected


def test_details_that_do_not_parse_are_no_pushback_and_do_no_harm() -> None:
    status = Status(code=14)
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff\xff")
    encoded = base64.b64encode(status.SerializeToString()).rstrip(b"=")
    bench = Bench(MethodPolicy(retry=RetryPolicy(max_attempts=1)))
    call, reply = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    trailers = ((b"grpc-status-details-bin", encoded),)
    bench.upstream.last.end(AttemptEnd(Delivery.ANSWERED, Code.UNAVAILABLE, "broken", trailers))
    assert (reply.code, bench.relay.in_flight, bench.relay.admission.busy) == (Code.UNAVAILABLE, 0, 0)


def test_an_attempt_that_cannot_even_be_started_keeps_neither_call_nor_worker() -> None:
    bench = Bench()
    bench.upstream.start = raises
    call, _ = bench.call()
    with pytest.raises(ZeroDivisionError):
        call.on_request_data(framed(b"x"), end=True)
    call.on_cancelled()  # the data plane resets the stream of a call whose handling failed
    assert (bench.relay.in_flight, bench.relay.admission.busy) == (0, 0)


def raises(*_: Any) -> Any:
    raise ZeroDivisionError


def test_a_relays_own_words_about_its_attempts_do_not_pass_another_relay() -> None:
    bench = Bench()
    call, reply = bench.call()
    call.on_request_data(framed(b"x"), end=True)
    trailers = ((b"relay-attempts", b"9"), (b"relay-outcome", b"unknown"), (b"kept", b"1"))
    bench.upstream.last.respond()
    bench.upstream.last.end(AttemptEnd(Delivery.ANSWERED, Code.OK, "", trailers))
    assert (reply.trailers[b"relay-attempts"], reply.trailers[b"kept"]) == (b"1", b"1")
    assert reply.trailers[b"relay-outcome"] == b"executed"


def test_a_key_that_a_relay_has_derived_is_passed_on_as_it_is() -> None:
    derived = contract.derived_key("", "t.S/Unary", b"k")
    bench = Bench()
    call, _ = bench.call(metadata=[(b"idempotency-key", derived), (b"relay-attempt", b"1")])
    call.on_request_data(framed(b"x"), end=True)
    assert dict(bench.upstream.last.metadata)[b"idempotency-key"] == derived


def test_calls_whose_deadline_passed_in_the_queue_are_never_sent_however_many() -> None:
    bench = Bench(workers=1, queue_capacity=5000)
    calls = [bench.call(timeout_s=1.0 if number else 100.0) for number in range(3000)]
    for call, _ in calls:
        call.on_request_data(framed(b"x"), end=True)
    bench.clock.now += 5.0  # the loop stalled: no timer has fired yet
    bench.upstream.last.end(OK)
    assert len(bench.upstream.attempts) == 1
    assert {reply.code for _, reply in calls[1:]} == {Code.DEADLINE_EXCEEDED}
    assert (bench.relay.admission.busy, bench.relay.in_flight) == (0, 0)


def test_a_drain_ends_the_calls_to_our_own_services() -> None:
    control = HandUpstream()
    bench = Bench(own_services={"grpc.health.v1.Health": control})
    _, reply = bench.call("grpc.health.v1.Health/Watch")
    bench.relay.drain()
    assert (reply.code, reason_of(reply)) == (Code.UNAVAILABLE, "DRAINING")
    assert control.last.cancelled


def test_a_request_of_very_many_pieces_is_joined_once() -> None:
    bench = Bench()
    call, _ = bench.call()
    whole = framed(b"x" * 100_000)
    for at in range(len(whole)):
        call.on_request_data(whole[at : at + 1], end=False)
    call.on_request_data(b"", end=True)
    assert bench.upstream.last.data == whole


def test_requests_held_all_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay_service.relay.HELD_REQUEST_BYTES_MAX", 250)
    bench = Bench()
    taken = [bench.call() for _ in range(3)]
    for call, _ in taken:
        call.on_request_data(framed(b"x" * 95), end=True)
    replies = [reply for _, reply in taken]
    assert [reply.code for reply in replies] == [None, None, Code.RESOURCE_EXHAUSTED]
    for attempt in bench.upstream.attempts:
        attempt.end(OK)
    call, _ = bench.call()
    call.on_request_data(framed(b"x" * 95), end=True)
    assert len(bench.upstream.attempts) == 3


def test_a_stream_without_a_replay_buffer_is_never_tried_again() -> None:
    bench = Bench(MethodPolicy(replay_buffer_bytes=0))
    _, reply, attempt = stream(bench)
    attempt.end(UNAVAILABLE)
    assert (reply.code, len(bench.upstream.attempts)) == (Code.UNAVAILABLE, 1)


def test_retry_info_is_read_as_pushback() -> None:
    status = Status(code=14)
    detail = status.details.add()
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(1500)
    detail.Pack(info)
    encoded = base64.b64encode(status.SerializeToString()).rstrip(b"=")
    assert contract.pushback_s(((b"grpc-status-details-bin", encoded),)) == 1.5


def test_every_reason_has_words_and_a_code_or_the_attempts_own() -> None:
    for reason in Reason:
        assert reason.meaning
        assert reason.code is None or reason.code is not Code.OK


@pytest.mark.parametrize(("declared", "carried_whole"), [(True, True), (False, False), (None, False)])
def test_a_method_of_which_nothing_is_known_is_a_stream_unless_the_policy_says_otherwise(
    declared: bool | None, carried_whole: bool
) -> None:
    bench = Bench(MethodPolicy(unary=declared))
    bench.relay._catalog = KnowsNothing()
    bench.call()
    assert (not bench.upstream.attempts) is carried_whole, "a unary call waits for its whole request"


class KnowsNothing:
    def facts(self, upstream: str, method: str) -> None:
        return None


class Knows(KnowsNothing):
    def facts(self, upstream: str, method: str) -> MethodFacts:
        return UNARY_FACTS


UNARY_FACTS = MethodFacts(unary=True, safety=None, input_type="t.In", output_type="t.Out")


def test_what_becomes_known_of_a_method_holds_for_its_next_call() -> None:
    bench = Bench(MethodPolicy())
    bench.relay._catalog = KnowsNothing()
    bench.call()
    assert len(bench.upstream.attempts) == 1, "a stream begins with its headers"
    bench.relay._catalog = Knows()
    bench.call()
    assert len(bench.upstream.attempts) == 1, "a unary call waits for its whole request"


def test_made_up_method_names_do_not_pile_up() -> None:
    ways = Ways()
    for number in range(2 * WAYS_MAX + 1):
        ways.remember(f"t.S/{number}", WAY)
    assert len(ways) <= WAYS_MAX
    assert ways.get(f"t.S/{2 * WAYS_MAX}") is WAY


WAY = Way("upstream", MethodPolicy(), UNARY_FACTS, Safety.NONE, unary=True, only_course=None)


def test_callers_refused_alike_are_told_by_one_block() -> None:
    def told(pushback_s: float, method: str = "t.S/Unary") -> Headers:
        verdict = refused(Reason.QUEUE_FULL, Reason.QUEUE_FULL.meaning, pushback_s)
        return contract.trailers_of_refusal(verdict, method)

    assert told(0.1234) is told(0.1239), "two digits are told"
    assert dict(told(0.1234))[contract.PUSHBACK] == b"120"
    assert dict(told(0.0124))[contract.PUSHBACK] == b"12"
    assert dict(told(-1.0))[contract.PUSHBACK] == b"-1"
    assert told(0.1234) != told(0.1234, "t.S/Other")


@pytest.mark.parametrize(
    "name", [b"relay-attempt", b"relay-criticality", b"relay-client-id", b"idempotency-key"]
)
def test_metadata_that_asks_something_of_the_relay_is_never_overlooked(name: bytes) -> None:
    asked = contract.asked([(b"user-agent", b"x"), (name, b"1")])
    assert not asked.is_nothing
    assert asked.keyed is (name == b"idempotency-key")
    assert contract.asked([(b"user-agent", b"x")]).is_nothing
