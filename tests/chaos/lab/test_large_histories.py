"""A history of many calls stays in its file: the same verdicts, and no more memory than a few calls need."""

import json
import subprocess
import sys
from itertools import count

import pytest

from chaos import invariants
from chaos.history import (
    CallRecord,
    FaultWindow,
    HistoryWriter,
    LedgerEntry,
    LoadSample,
    Outcome,
    Phase,
    RelaySample,
    new_run,
    read_history,
)
from chaos.plan import CHARGE_METHOD
from chaos.selection import Selection, chosen
from chaos.traces import is_read, read_traces, share_to_read

RATE = 1000.0
MEASURE = """
import resource, sys
from pathlib import Path
from chaos.evidence import Evidence
from chaos.history import read_history
from chaos.report import write
from chaos.runner import RunConfig
from chaos.runner.judge import judge_run, measures_of
from chaos.runner.picture import report_of
from chaos.scenarios import find
from chaos.traces import read_traces, share_to_read
folder = Path(sys.argv[1])
config = RunConfig(find("fail-before"), folder, for_s=float(sys.argv[2]))
history = read_history(folder / "history.jsonl")
spans = [folder / "client.jsonl"]
one_in = share_to_read(spans)
drained_s = float(sys.argv[2]) - 0.5
evidence = Evidence(history, read_traces(spans, one_in), len(history.calls), 1, drained_s, one_in)
findings = judge_run(config, evidence)
measures_of(evidence)
write(report_of(config, findings, evidence), folder / "report.html")
for finding in findings:
    print(finding.verdict.name, finding.promise, finding.statement, finding.detail)
print(one_in, len(evidence.traces), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def sound_call(number):
    at_s = number / RATE
    failed = number % 50 == 0
    return CallRecord(
        id=number,
        phase="fault",
        operation=f"large-{number:07d}",
        method=CHARGE_METHOD,
        intended_s=at_s,
        sent_s=at_s,
        done_s=at_s + 0.01,
        timeout_s=1.0,
        code="UNAVAILABLE" if failed else "OK",
        outcome=Outcome.UNKNOWN if failed else Outcome.EXECUTED,
        trace_id=f"{number:032x}",
        key=f"1-large-{number:07d}",
        attempts=1 + (number % 10 == 0),
        origin="upstream",
        traced=number % 10 == 0,
    )


def write(path, count_of_calls):
    with HistoryWriter(path, new_run("large", 1, "embedded"), recent_max=0) as history:
        for number in range(count_of_calls):
            history.add(sound_call(number))
            history.add(LedgerEntry(number + 1, f"charge-{number}", f"large-{number:07d}"))
        assert history.take() == ()


def write_a_whole_run(folder, count_of_calls):
    """With everything a judgement looks at, spans included: five for each call that was traced."""
    end_s = count_of_calls / RATE
    steady_s, fault_s = 0.2 * end_s, 0.5 * end_s
    ids = count(1)
    with (
        HistoryWriter(folder / "history.jsonl", new_run("large", 1, "embedded"), recent_max=0) as history,
        (folder / "client.jsonl").open("w", encoding="utf-8") as spans,
    ):
        for number in range(count_of_calls):
            call = sound_call(number)
            phase = "steady" if call.intended_s < steady_s else "fault"
            phase = phase if call.intended_s < steady_s + fault_s else "recovery"
            history.add(
                CallRecord(**{name: getattr(call, name) for name in call.__slots__} | {"phase": phase})
            )
            history.add(LedgerEntry(number + 1, f"charge-{number}", call.operation))
            if call.traced:
                spans.write(json.dumps(_trace(call.trace_id, ids)) + "\n")
        for name, begin_s, stop_s in (
            ("steady", 0.0, steady_s),
            ("fault", steady_s, steady_s + fault_s),
            ("recovery", steady_s + fault_s, end_s),
        ):
            history.add(Phase(name, name, begin_s, stop_s))
        history.add(FaultWindow("fault-0", "errors", steady_s, steady_s + fault_s))
        for number in range(int(end_s * 10)):
            at_s = number / 10
            history.add(LoadSample(at_s, number, number, 0, 0, 0, took_s=0.001))
            history.add(RelaySample(at_s, at_s, 10, 8, 1, 1, 0, 0, 0, 0, 10, 9, 0))


def _trace(trace_id, ids):
    """The client's span with the relay's and the upstream's under it, in one message of OTLP JSON."""
    root, server, *attempts, work = (f"{next(ids):016x}" for _ in range(5))
    services = {
        "chaos-client": [(root, "", 3)],
        "relay": [(server, root, 2), *((attempt, server, 3) for attempt in attempts)],
        "downstream": [(work, attempts[-1], 2)],
    }
    return {"resourceSpans": [_spans_of(service, trace_id, made) for service, made in services.items()]}


def _spans_of(service, trace_id, made):
    named = {"key": "service.name", "value": {"stringValue": service}}
    method = {"key": "rpc.method", "value": {"stringValue": CHARGE_METHOD}}
    spans = [
        {
            "traceId": trace_id,
            "spanId": span,
            "parentSpanId": parent,
            "name": CHARGE_METHOD,
            "kind": kind,
            "startTimeUnixNano": "1000000000",
            "endTimeUnixNano": "1010000000",
            "attributes": [
                method,
                *({"key": f"attribute.{n}", "value": {"intValue": str(n)}} for n in range(8)),
            ],
        }
        for span, parent, kind in made
    ]
    return {"resource": {"attributes": [named]}, "scopeSpans": [{"spans": spans}]}


def judged(folder, end_s):
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(end_s)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    print(ended.stdout)
    *findings, last = ended.stdout.splitlines()
    one_in, traces, megabytes = (int(word) for word in last.split())
    return findings, one_in, traces, megabytes


def test_a_history_left_in_its_file_is_judged_like_one_in_memory(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, 300)
    held, stored = read_history(path), read_history(path, in_memory_max=100)
    assert (len(stored.calls), len(stored.ledger)) == (300, 300)
    assert list(stored.calls) == list(held.calls)
    for check in (
        lambda history: invariants.answers_match_ledger(history.calls, history.ledger),
        lambda history: invariants.no_storm(history.calls, 0.01, 0),
        lambda history: invariants.success_at_least(history.calls, 0.999, 10),
        lambda history: invariants.recovers(
            invariants.final_tries(history.calls), healed_s=0.1, within_s=0.0, until_s=0.3, share=0.99
        ),
    ):
        assert check(stored) == check(held)


def test_calls_in_a_file_are_chosen_without_being_held(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, 300)
    held, stored = read_history(path), read_history(path, in_memory_max=100)
    some = chosen(stored.calls, lambda call: not call.ok)
    assert isinstance(some, Selection)
    assert (len(some), tuple(some)) == (6, chosen(held.calls, lambda call: not call.ok))
    assert held.calls[0] in some
    assert held.calls[1] not in some


def test_a_share_of_many_traces_is_read_and_each_of_them_whole(tmp_path):
    write_a_whole_run(tmp_path, 1000)
    spans = [tmp_path / "client.jsonl", tmp_path / "none.jsonl"]
    assert share_to_read(spans) == 1
    one_in = share_to_read(spans, spans_max=100)
    assert one_in > 1
    traces = read_traces(spans, one_in)
    assert 0 < len(traces) < 100
    assert {len(each) for each in traces.values()} == {5}
    assert all(is_read(trace_id, one_in) for trace_id in traces)


@pytest.mark.timeout(300)
def test_a_run_is_judged_and_drawn_from_its_files(tmp_path):
    write_a_whole_run(tmp_path, 8000)
    findings, one_in, traces, _ = judged(tmp_path, 8.0)
    assert (one_in, traces) == (1, 800)
    assert len(findings) > 10
    assert [line for line in findings if not line.startswith("HELD")] == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_million_calls_are_judged_and_drawn_within_500_mb(tmp_path):
    write_a_whole_run(tmp_path, 1_000_000)
    findings, one_in, traces, megabytes = judged(tmp_path, 1000.0)
    assert [line for line in findings if not line.startswith("HELD")] == []
    assert one_in > 1
    assert traces > 1000
    assert megabytes <= 500
