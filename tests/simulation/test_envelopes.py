"""Calls that come in an envelope."""

import zlib

import pytest
from hand_moved import OK, Bench, reason_of
from world import framed

from protos.relay.v1.relay_pb2 import RelayRequest, RelayResponse
from relay_service import contract
from relay_service.core.policy import (
    MethodPolicy,
)
from relay_service.core.status import Code
from relay_service.core.verdict import Fate
from relay_service.envelope import METHOD as ENVELOPE


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


@pytest.mark.parametrize("timeout_s", [2.0, 100_000.0])
def test_an_envelope_that_never_becomes_whole_ends_at_its_deadline(timeout_s: float) -> None:
    bench = Bench(MethodPolicy(max_timeout_s=5.0))
    began = bench.clock.now
    call, reply = bench.call(ENVELOPE, timeout_s=timeout_s)
    call.on_request_data(framed(envelope())[:10], end=False)
    bench.clock.run()
    assert (reply.code, reason_of(reply)) == (Code.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
    assert reply.answered_at == pytest.approx(began + min(timeout_s, 5.0))
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


def test_what_an_envelope_says_is_quoted_in_short_and_not_remembered() -> None:
    """A message is the caller's to choose, and may be megabytes: of many callers, gigabytes."""
    bench = Bench()
    contract._refused.cache_clear()
    for letter in "ab":
        call, reply = bench.call(ENVELOPE)
        call.on_request_data(framed(envelope(type_url=letter * 1_000_000)), end=True)
        assert (reason_of(reply), len(reply.message) < 1_000) == ("ENVELOPE_INVALID", True)
    assert contract._refused.cache_info().currsize == 0


def test_envelopes_in_the_making_share_the_room_for_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay_service.workers.HELD_REQUEST_BYTES_MAX", 10_000)
    bench = Bench()
    first, _ = bench.call(ENVELOPE)
    first.on_request_data(framed(b"x" * 9_500)[:-1], end=False)
    second, reply = bench.call(ENVELOPE)
    second.on_request_data(framed(envelope(value=b"y" * 1_000)), end=True)
    assert (reply.code, reason_of(reply)) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert int(reply.trailers[b"grpc-retry-pushback-ms"]) > 0
    first.on_cancelled()
    third, _ = bench.call(ENVELOPE)
    third.on_request_data(framed(envelope(value=b"y" * 9_000)), end=True)
    assert len(bench.upstream.attempts) == 1, "the envelope's own room is given back to the call inside"
    bench.upstream.last.end(OK)
    assert bench.relay.workers.held_bytes == 0
