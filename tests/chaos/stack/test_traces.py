"""Spans from files become trees, and a broken trace is noticed."""

import json

import pytest

from chaos.findings import Verdict
from chaos.history import CallRecord, Outcome
from chaos.traces import SpanRecord, depth_first, most_telling, read_traces, traces_are_whole
from chaos.tracing import CLIENT_SERVICE_NAME, ClientTracing

TRACE = "0af7651916cd43dd8448eb211c80319c"


def span(span_id, parent_id, service, kind, times_ms=(0, 10)):
    begin_ms, end_ms = times_ms
    return SpanRecord(
        TRACE, span_id, parent_id, "a.B/C", service, kind, begin_ms * 10**6, end_ms * 10**6, error=False
    )


CLIENT = span("1", "", CLIENT_SERVICE_NAME, "CLIENT")
SERVER = span("2", "1", "relay", "SERVER", (1, 9))
FIRST = span("3", "2", "relay", "CLIENT", (2, 4))
SECOND = span("4", "2", "relay", "CLIENT", (5, 8))
DOWN = span("5", "4", "downstream", "SERVER", (6, 7))
WHOLE = [CLIENT, SERVER, FIRST, SECOND, DOWN]


def call(**changes):
    values = {
        "id": 1,
        "phase": "p",
        "operation": "op",
        "method": "a.B/C",
        "intended_s": 0.0,
        "done_s": 1.0,
        "code": "OK",
        "outcome": Outcome.EXECUTED,
        "trace_id": TRACE,
        "attempts": 2,
        "traced": True,
    }
    return CallRecord(**(values | changes))


def test_children_follow_their_parents_indented():
    assert [(depth, each.span_id) for depth, each in depth_first(WHOLE)] == [
        (0, "1"),
        (1, "2"),
        (2, "3"),
        (2, "4"),
        (3, "5"),
    ]


def test_a_span_whose_parent_is_missing_is_shown_as_a_root():
    assert [depth for depth, _ in depth_first([CLIENT, FIRST])] == [0, 0]


def test_a_whole_trace_holds():
    assert traces_are_whole([call()], {TRACE: WHOLE}).verdict is Verdict.HELD


@pytest.mark.parametrize(
    ("spans", "what"),
    [
        ([], "no span"),
        ([CLIENT], "ends at the client"),
        ([SERVER, FIRST, SECOND, DOWN], "broken into 1 pieces"),
        ([CLIENT, FIRST, SECOND, DOWN], "broken into 3 pieces"),
        ([CLIENT, SERVER, SECOND, DOWN], "1 attempt spans for 2 attempts"),
    ],
)
def test_a_gap_names_the_call_and_what_is_missing(spans, what):
    finding = traces_are_whole([call()], {TRACE: spans})
    assert finding.verdict is Verdict.BROKEN
    assert finding.offenders[0].trace_id == TRACE
    assert what in finding.offenders[0].what


def test_unrecorded_calls_need_no_spans_but_prove_nothing():
    assert traces_are_whole([call(traced=False)], {}).verdict is Verdict.COULD_NOT_TELL


def test_the_most_telling_call_is_a_success_after_several_attempts():
    calls = [
        call(id=1, attempts=1),
        call(id=2, attempts=3),
        call(id=3, attempts=3),
        call(id=4, code="UNKNOWN"),
    ]
    assert most_telling(calls, {TRACE: WHOLE}).id == 2
    assert most_telling(calls, {}) is None


def test_the_clients_own_spans_come_back_from_their_file(tmp_path):
    path = tmp_path / "client.jsonl"
    with ClientTracing(path, seed=4) as tracing:
        recorded = tracing.begin("a.B/C", "127.0.0.1:1", recorded=True)
        unrecorded = tracing.begin("a.B/C", "127.0.0.1:1", recorded=False)
        recorded.end("UNAVAILABLE")
        unrecorded.end("OK")
    traces = read_traces([path, tmp_path / "missing.jsonl"])
    ((read,),) = traces.values()
    assert (read.trace_id, read.kind, read.service) == (recorded.trace_id, "CLIENT", CLIENT_SERVICE_NAME)
    assert read.error
    assert read.attributes["rpc.response.status_code"] == "UNAVAILABLE"
    assert recorded.traceparent == f"00-{read.trace_id}-{read.span_id}-01"
    assert unrecorded.traceparent.endswith("-00")


def test_the_same_seed_gives_the_same_trace_ids(tmp_path):
    def ids(name):
        with ClientTracing(tmp_path / name, seed=4) as tracing:
            return [tracing.begin("a.B/C", "x", recorded=each).trace_id for each in (True, False, True)]

    assert ids("one") == ids("two")


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "relay.jsonl"
    with ClientTracing(path, seed=4) as tracing:
        tracing.begin("a.B/C", "x", recorded=True).end("OK")
    whole = path.read_text()
    path.write_text(whole + whole[: len(whole) // 2])
    assert sum(map(len, read_traces([path]).values())) == len(whole.splitlines()) == 1
    assert json.loads(whole)
