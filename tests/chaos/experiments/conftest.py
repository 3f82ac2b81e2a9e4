"""Evidence as an experiment's arm leaves it, made by hand."""

import pytest

from chaos.experiments.arm import Evidence
from chaos.history import CallRecord, Outcome


def call(number, intended_s, *, done_s=None, code="OK", lag_s=0.0, sent=True, phase="arm"):
    return CallRecord(
        id=number,
        phase=phase,
        operation=f"operation-{number}",
        method="shop.v1.Orders/Place",
        intended_s=intended_s,
        done_s=intended_s + 0.01 if done_s is None else done_s,
        code=code,
        outcome=Outcome.EXECUTED if code == "OK" else Outcome.UNKNOWN,
        trace_id=f"{number:032x}",
        sent_s=intended_s + lag_s if sent else None,
        timeout_s=1.0,
    )


def evidence_of(calls, *, arrived=None, loads=(), gauges=(), begin_s=0.0):
    return Evidence(
        begin_s=begin_s,
        end_s=max((each.done_s for each in calls), default=begin_s) + 0.1,
        calls=tuple(calls),
        loads=tuple(loads),
        gauges=tuple(gauges),
        arrived_before=0,
        arrived=len(calls) if arrived is None else arrived,
        memory_before_mb=50.0,
        memory_peak_mb=52.0,
    )


@pytest.fixture
def make_call():
    return call


@pytest.fixture
def make_evidence():
    return evidence_of
