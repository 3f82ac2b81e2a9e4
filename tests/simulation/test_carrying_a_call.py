"""What a call does with its bytes, step by step, against an upstream that the test moves by hand."""

from typing import Any

import pytest
from hand_moved import OK, UNAVAILABLE, Bench, HandAttempt, reason_of
from world import Reply, framed

from relay_service.core.evidence import Delivery, Safety
from relay_service.core.policy import (
    MethodPolicy,
    RetryPolicy,
)
from relay_service.core.status import Code
from relay_service.core.verdict import Fate
from relay_service.ports import AttemptEnd
from relay_service.streaming import FLOW_HIGH_WATER_BYTES


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


def test_a_request_of_very_many_pieces_is_joined_once() -> None:
    bench = Bench()
    call, _ = bench.call()
    whole = framed(b"x" * 100_000)
    for at in range(len(whole)):
        call.on_request_data(whole[at : at + 1], end=False)
    call.on_request_data(b"", end=True)
    assert bench.upstream.last.data == whole


def test_requests_held_all_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay_service.workers.HELD_REQUEST_BYTES_MAX", 250)
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
