"""A small run with everything a page can show, made without processes."""

import pytest

from chaos.findings import Finding, Offender, Verdict
from chaos.history import CallRecord, FaultWindow, History, LoadSample, Outcome, Phase, RunHead
from chaos.model import Interval
from chaos.report import Measure, Report, Section
from chaos.traces import SpanRecord
from chaos.tracing import CLIENT_SERVICE_NAME, STATUS_CODE_KEY

TRACE = "0af7651916cd43dd8448eb211c80319c"
MS = 1_000_000


def make_call(number, code="OK"):
    return CallRecord(
        id=number,
        phase="first" if number < 60 else "second",
        operation=f"op-{number}",
        method="downstream.v1.PaymentService/Charge",
        intended_s=number * 0.05,
        sent_s=number * 0.05,
        done_s=number * 0.05 + 0.02,
        code=code,
        outcome=Outcome.EXECUTED if code == "OK" else Outcome.NOT_EXECUTED,
        trace_id=TRACE if number == 30 else f"{number:032x}",
        attempts=2 if number == 30 else 1,
        traced=number == 30,
    )


def make_span(span_id, parent_id, who, times_ms, code="OK"):
    service, kind = who
    begin_ms, end_ms = times_ms
    return SpanRecord(
        TRACE,
        span_id,
        parent_id,
        "downstream.v1.PaymentService/Charge",
        service,
        kind,
        begin_ms * MS,
        end_ms * MS,
        error=code != "OK",
        attributes={STATUS_CODE_KEY: code},
    )


@pytest.fixture(scope="session")
def spans():
    return [
        make_span("a1", "", (CLIENT_SERVICE_NAME, "CLIENT"), (0, 100)),
        make_span("b1", "a1", ("relay", "SERVER"), (2, 98)),
        make_span("b2", "b1", ("relay", "CLIENT"), (5, 25), code="UNAVAILABLE"),
        make_span("b3", "b1", ("relay", "CLIENT"), (60, 95)),
        make_span("c1", "b3", ("downstream", "SERVER"), (65, 90)),
    ]


@pytest.fixture(scope="session")
def history():
    calls = [make_call(n, "UNAVAILABLE" if n % 7 == 0 else "OK") for n in range(1, 100)]
    calls += [make_call(n, "RESOURCE_EXHAUSTED") for n in range(100, 110)]
    return History(
        RunHead("test", 42, "embedded", 1),
        tuple(calls),
        (Phase("first", "retries <on>", 0.0, 3.0), Phase("second", "a spike", 3.0, 5.6)),
        (FaultWindow("f", "three of ten fail", 1.0, 2.0),),
        tuple(
            LoadSample(n / 10, calls=n * 3, effects=n, refused=0, in_flight=1, queued=0) for n in range(57)
        ),
    )


@pytest.fixture(scope="session")
def report(history, spans):
    broken = Finding(
        "I2",
        "no operation was charged twice",
        Verdict.BROKEN,
        "1 of 99",
        (Offender(30, "op-30", TRACE, "op-30 was charged 2 times <script>alert(1)</script>"),),
        1,
    )
    held = Finding("I1", "in time", Verdict.HELD, "all 109")
    measures = (
        Measure("success", "%", 0.991, 0.9919, Interval(0.987, 0.996), Verdict.HELD),
        Measure("load", "x", 1.42),
    )
    sections = (
        Section("retries", "Retries", "What they cost.", ("first",), (held, broken), measures),
        Section("spike", "Spike", "Too much.", ("second",), (held,)),
    )
    return Report(
        "The tour",
        "A lead.",
        Verdict.BROKEN,
        history,
        sections,
        (held,),
        {TRACE: spans},
        "relay-chaos demo --seed 42",
    )
