"""Which trace a call belongs to, and who decides whether it is recorded."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_service.telemetry.trace_context import (
    SAMPLED,
    ParentBasedSampler,
    PassThroughSampler,
    parse_traceparent,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


def test_a_traceparent_is_read() -> None:
    parent = parse_traceparent(PARENT)
    assert parent == (TRACE, SPAN.encode(), SAMPLED)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        f"00-{TRACE}-{SPAN}".encode(),
        f"00-{TRACE}-{SPAN}-01-more".encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{SPAN}-1".encode(),
        f"00-{TRACE}-{SPAN}-01\n".encode(),
        b"\xff\xfe" + PARENT,
    ],
)
def test_a_malformed_traceparent_is_ignored(value: bytes) -> None:
    assert parse_traceparent(value) is None


def test_a_later_version_is_read_by_the_rules_of_the_first() -> None:
    parent = parse_traceparent(f"01-{TRACE}-{SPAN}-ff-what-comes-later".encode())
    assert parent is not None
    assert (parent.trace_id, parent.flags) == (TRACE, 0x03)


@given(st.binary(max_size=80))
def test_no_bytes_make_the_parser_raise(value: bytes) -> None:
    parse_traceparent(value)


@pytest.mark.parametrize(("flags", "sampled"), [(b"01", True), (b"00", False), (b"03", True), (b"02", False)])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_callers_decision_is_followed_whatever_the_ratio(
    flags: bytes, sampled: bool, ratio: float
) -> None:
    sampler = ParentBasedSampler(ratio, random.Random(1))
    trace = sampler.begin(((b"traceparent", PARENT[:-2] + flags),))
    assert bool(trace.flags & SAMPLED) is sampled
    assert trace.trace_id == TRACE
    (name, value), *_ = trace.outgoing(0xABC)
    assert (name, value) == (b"traceparent", f"00-{TRACE}-{0xABC:016x}-{flags.decode()}".encode())


def test_a_new_trace_is_sampled_with_the_given_probability() -> None:
    sampler = ParentBasedSampler(0.1, random.Random(42))
    sampled = sum(sampler.begin(()).flags & SAMPLED for _ in range(20_000))
    assert 1_850 <= sampled <= 2_150  # 2,000 ± 3.5 standard deviations


def test_equal_ratios_choose_the_same_traces_as_opentelemetry_does() -> None:
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    theirs = TraceIdRatioBased(0.3)
    ours = ParentBasedSampler(0.3, random.Random(5))
    for _ in range(2_000):
        trace = ours.begin(())
        decision = theirs.should_sample(None, int(trace.trace_id, 16), "x").decision
        assert decision.is_sampled() is bool(trace.flags & SAMPLED)


def test_tracestate_and_baggage_go_on_untouched_and_in_order() -> None:
    carried = (
        (b"tracestate", b"a=1, b=2"),
        (b"baggage", b"user=7;p=\xc3\xa9"),
        (b"tracestate", b"c=3"),
    )
    trace = ParentBasedSampler(0.0, random.Random(1)).begin(
        (carried[0], (b"traceparent", PARENT), (b"x", b"y"), *carried[1:])
    )
    assert tuple(trace.outgoing(1)[1:]) == carried


@pytest.mark.parametrize("parents", [[b"nonsense"], [PARENT, PARENT]], ids=["malformed", "given twice"])
def test_without_one_valid_traceparent_a_trace_begins_and_its_vendor_state_is_left_behind(
    parents: list[bytes],
) -> None:
    trace = ParentBasedSampler(0.0, random.Random(1)).begin(
        (*((b"traceparent", parent) for parent in parents), (b"tracestate", b"a=1"), (b"baggage", b"u=7"))
    )
    assert trace.parent is None
    assert trace.trace_id != TRACE
    assert [name for name, _ in trace.outgoing(1)] == [b"traceparent", b"baggage"]


@pytest.mark.parametrize(
    "state",
    [
        b"no equals sign",
        b",".join(b"k%d=1" % number for number in range(33)),
        b"a=" + b"x" * 257,
        b",".join(b"k%d=" % number + b"x" * 100 for number in range(6)),
        b"\xff=1",
    ],
    ids=["no member", "33 members", "a value of 257 bytes", "more than 512 bytes", "not ASCII"],
)
def test_a_malformed_tracestate_is_sent_on_but_not_recorded(state: bytes) -> None:
    trace = ParentBasedSampler(1.0, random.Random(1)).begin(
        ((b"traceparent", PARENT), (b"tracestate", state))
    )
    assert trace.well_formed_tracestate() == []
    assert trace.outgoing(1)[1] == (b"tracestate", state)


def test_without_an_exporter_the_callers_context_goes_through_as_it_came() -> None:
    trace = PassThroughSampler(random.Random(1)).begin(((b"traceparent", PARENT), (b"tracestate", b"a=1")))
    assert tuple(trace.outgoing(trace.span_id)) == ((b"traceparent", PARENT), (b"tracestate", b"a=1"))


def test_without_an_exporter_a_new_trace_is_never_sampled() -> None:
    trace = PassThroughSampler(random.Random(1)).begin(())
    (_, value), *_ = trace.outgoing(trace.span_id)
    assert parse_traceparent(value) == (trace.trace_id, b"%016x" % trace.span_id, 0)
