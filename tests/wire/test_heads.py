"""Header blocks: requests into calls, calls into requests, replies into ends."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_service.core.evidence import Delivery
from relay_service.core.names import is_method_name
from relay_service.core.status import Code
from relay_service.ports import AttemptEnd
from relay_service.wire import heads
from relay_service.wire.h2 import ErrorCode
from relay_service.wire.status import code_of_http_status, code_of_reset, parse_code

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/pkg.Service/Method"),
    (b":authority", b"host:1"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]

names = st.text(alphabet="abcdefghijklmnopqrstuvwxyz-_.0123456789", min_size=3, max_size=12).map(
    lambda text: b"x-" + text.encode()
)
values = st.binary(max_size=20)


def test_a_request_is_read():
    metadata = [
        (b"user-agent", b"me"),
        (b"grpc-encoding", b"gzip"),
        (b"grpc-accept-encoding", b"gzip"),
        (b"k", b"v"),
    ]
    method, passed, timeout_s, _ = heads.parse_request([*REQUEST, (b"grpc-timeout", b"150m"), *metadata])
    assert method == "pkg.Service/Method"
    assert passed == metadata
    assert timeout_s == pytest.approx(0.15)


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
        b"te",
        b"content-length",
        b"host",
        b"grpc-previous-rpc-attempts",
    ],
)
def test_fields_of_one_hop_are_not_passed_on(name):
    _, passed, _, _ = heads.parse_request([*REQUEST, (name, b"1")])
    assert passed == []


def test_a_codec_of_its_own_is_told_to_the_upstream():
    fields = [field for field in REQUEST if field[0] != b"content-type"]
    _, metadata, _, _ = heads.parse_request([*fields, (b"content-type", b"application/grpc+json")])
    sent = heads.RequestTemplate("http", "up:1").headers("a/b", metadata, None)
    assert [field for field in sent if field[0] == b"content-type"] == [
        (b"content-type", b"application/grpc+json")
    ]


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b":method", b"GET", b"405"),
        (b"content-type", b"text/html", b"415"),
        (b"content-type", b"application/grpcurl", b"415"),
        (b"content-type", b"", b"415"),
    ],
)
def test_what_is_not_grpc_is_answered_by_http(name, value, status):
    fields = [field if field[0] != name else (name, value) for field in REQUEST]
    with pytest.raises(heads.NotGrpcError) as caught:
        heads.parse_request(fields)
    assert caught.value.http_status == status


@pytest.mark.parametrize(
    "path",
    [
        *(b"/", b"*", b"", b"/a", b"/a/", b"//b", b"a/b", b"/a/b/c", "/ä/b".encode()),
        *(b"/a/b\n", b"/a /b", b"/a/b\x7f", b"/a/b\x00", b"/a/" + b"b" * 1_023),
    ],
)
def test_a_malformed_path_is_unimplemented(path):
    fields = [field if field[0] != b":path" else (b":path", path) for field in REQUEST]
    with pytest.raises(heads.MalformedCallError) as caught:
        heads.parse_request(fields)
    assert caught.value.code is Code.UNIMPLEMENTED


def test_a_method_name_is_two_parts_of_visible_ascii():
    longest = "a/" + "b" * 1_022
    for name in ("package.Service/Method", "a/b", "!/~", longest):
        assert is_method_name(name)
        assert heads.method_of_path(b"/" + name.encode()) == name


def test_a_malformed_timeout_is_internal():
    with pytest.raises(heads.MalformedCallError) as caught:
        heads.parse_request([*REQUEST, (b"grpc-timeout", b"soon")])
    assert caught.value.code is Code.INTERNAL


@given(st.lists(st.tuples(names, values)), st.none() | st.floats(min_value=1e-6, max_value=1e6))
def test_what_a_request_carries_arrives_on_the_other_side(metadata, timeout_s):
    sent = heads.RequestTemplate("http", "up:1").headers("pkg.Service/Method", metadata, timeout_s)
    pseudo = [field[0].startswith(b":") for field in sent]
    assert pseudo == sorted(pseudo, reverse=True), "pseudo-headers come first"
    method, passed, read_s, _ = heads.parse_request(sent)
    assert (method, passed) == ("pkg.Service/Method", metadata)
    assert read_s == (None if timeout_s is None else pytest.approx(timeout_s, rel=1e-4, abs=2e-6))


@given(st.sampled_from(Code), st.text(max_size=40), st.lists(st.tuples(names, values)))
def test_an_end_is_the_same_on_the_other_side(code, message, rest):
    expected = AttemptEnd(Delivery.ANSWERED, code, message.encode("utf-8", "replace").decode(), rest)
    end = heads.parse_end(heads.trailers(code, message, rest))
    assert replace(end, trailers=[*end.trailers]) == expected
    assert heads.parse_end(heads.trailers_only(code, message, rest)) == expected


def test_response_metadata_is_the_same_on_the_other_side():
    metadata = [(b"x", b"1"), (b"x-bin", b"AP8"), (b"grpc-encoding", b"gzip")]
    assert heads.parse_response(heads.response_headers(metadata)) == metadata


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (b"400", Code.INTERNAL),
        (b"401", Code.UNAUTHENTICATED),
        (b"403", Code.PERMISSION_DENIED),
        (b"404", Code.UNIMPLEMENTED),
        (b"429", Code.UNAVAILABLE),
        (b"502", Code.UNAVAILABLE),
        (b"503", Code.UNAVAILABLE),
        (b"504", Code.UNAVAILABLE),
        (b"200", Code.UNKNOWN),
        (b"500", Code.UNKNOWN),
    ],
)
def test_http_failures_are_mapped_and_are_no_answer(status, code):
    assert code_of_http_status(status) is code
    end = heads.parse_response([(b":status", status), (b"content-type", b"text/html")])
    assert isinstance(end, AttemptEnd)
    assert (end.delivery, end.code) == (Delivery.UNANSWERED, code)


def test_a_grpc_status_counts_for_more_than_the_http_status():
    end = heads.parse_end([(b":status", b"503"), (b"grpc-status", b"9")])
    assert (end.delivery, end.code) == (Delivery.ANSWERED, Code.FAILED_PRECONDITION)


def test_trailers_without_a_status_are_no_answer():
    end = heads.parse_end([(b"x", b"y")])
    assert (end.delivery, end.code) == (Delivery.UNANSWERED, Code.UNKNOWN)


def test_a_status_that_is_no_number_is_no_answer():
    end = heads.parse_end([(b"grpc-status", b"fine")])
    assert (end.delivery, end.code) == (Delivery.UNANSWERED, Code.UNKNOWN)


def test_a_status_that_grpc_does_not_define_is_unknown():
    assert parse_code(b"17") is Code.UNKNOWN
    assert heads.parse_end([(b"grpc-status", b"99")]).delivery is Delivery.ANSWERED


@pytest.mark.parametrize(
    ("reset", "code"),
    [
        (ErrorCode.NO_ERROR, Code.INTERNAL),
        (ErrorCode.PROTOCOL_ERROR, Code.INTERNAL),
        (ErrorCode.FLOW_CONTROL_ERROR, Code.INTERNAL),
        (ErrorCode.REFUSED_STREAM, Code.UNAVAILABLE),
        (ErrorCode.CANCEL, Code.CANCELLED),
        (ErrorCode.ENHANCE_YOUR_CALM, Code.RESOURCE_EXHAUSTED),
        (ErrorCode.INADEQUATE_SECURITY, Code.PERMISSION_DENIED),
        (ErrorCode.STREAM_CLOSED, Code.UNKNOWN),
        (4_242, Code.UNKNOWN),
    ],
)
def test_resets_are_mapped(reset, code):
    assert code_of_reset(reset) is code
