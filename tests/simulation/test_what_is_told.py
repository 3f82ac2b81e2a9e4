"""What callers and upstreams are told, and how upstreams' words are read."""

import base64

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hand_moved import Bench
from world import framed

from relay_service import contract
from relay_service.core.evidence import Delivery
from relay_service.core.policy import (
    MethodPolicy,
    RetryPolicy,
)
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.ports import AttemptEnd, Headers


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
