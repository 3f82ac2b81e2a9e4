"""The table: every entry names a scenario and valid policies, its numbers are those of the evidence."""

import json
from dataclasses import replace

import pytest

from chaos.beside import columns as columns_module
from chaos.beside.catalogue import BESIDE, Cannot, NothingBesideError, beside
from chaos.beside.columns import ENVOY, Column, Missing, columns
from chaos.beside.measure import measure
from chaos.beside.table import cells, verdict_words
from chaos.envoy import configuration
from chaos.envoy.settings import EnvoySettings
from chaos.evidence import Evidence
from chaos.findings import Finding, Verdict
from chaos.history import CallRecord, FaultWindow, History, LoadSample, Outcome, Phase, RelaySample, RunHead
from chaos.runner import Form
from chaos.scenarios import find


def call(number, at_s, **changes):
    sound = CallRecord(
        id=number,
        phase="fault" if 2 <= at_s < 6 else "steady" if at_s < 2 else "recovery",
        operation=f"op-{number}",
        method="m",
        intended_s=at_s,
        sent_s=at_s,
        done_s=at_s + 0.1,
        timeout_s=1.0,
        code="OK",
        outcome=Outcome.EXECUTED,
        trace_id="",
    )
    return replace(sound, **changes)


@pytest.fixture
def evidence():
    """Ten seconds of 20 calls/s; in the fault (2 to 6 s) half of them fail and each arrives three times."""
    calls = []
    for number in range(200):
        at_s = number / 20
        struck = 2 <= at_s < 6
        changes = {"code": "UNAVAILABLE"} if struck and number % 2 else {}
        calls.append(call(number, at_s, **changes))
    looks, arrived, effects, wasted = [], 0.0, 0, 0
    for tick in range(101):
        at_s = tick / 10
        looks.append(LoadSample(at_s, round(arrived), effects, 0, 0, 0, wasted))
        struck = 2 <= at_s < 6
        arrived += 6 if struck else 2
        effects += 2
        wasted += 1 if struck else 0
    relays = [
        RelaySample(at_s, at_s, 0, 0, 0, 0, 0, 0, 0, 0, 0, attempts=attempts, retries=retries, hedges=hedges)
        for at_s, attempts, retries, hedges in ((2.0, 40, 0, 0), (5.9, 280, 150, 10))
    ]
    phases = (Phase("steady", "", 0, 2), Phase("fault", "", 2, 6), Phase("recovery", "", 6, 10))
    history = History(
        head=RunHead("beside", 1, "none", 0.0),
        phases=phases,
        faults=(FaultWindow("f", "f", 2.0, 6.0),),
        calls=calls,
        loads=tuple(looks),
        relays=tuple(relays),
    )
    return Evidence(history, {}, len(calls), 1, 10.0)


def test_the_numbers_are_those_of_the_evidence(evidence):
    findings = [
        Finding("I5", "goodput", Verdict.BROKEN, "too little"),
        Finding("I1", "in time", Verdict.HELD, "all"),
        Finding("control", "room", Verdict.COULD_NOT_TELL, "none"),
    ]
    found = measure(evidence, findings, within_s=1.0)
    assert found.goodput_per_s == pytest.approx(10, abs=1)
    assert found.success == pytest.approx(0.5)
    assert found.p99_ms == pytest.approx(100)
    assert found.attempts_per_call == pytest.approx(3, abs=0.1)
    assert found.attempts_worst_second == pytest.approx(2.7, abs=0.3)
    assert found.attempts_per_first == pytest.approx(240 / 80)
    assert found.late_work == pytest.approx(40 / (40 + 120), abs=0.02)
    assert found.recovery_s == 0.0
    assert found.goodput_after == pytest.approx(1.0, abs=0.1)
    assert found.critical is None
    assert (found.held, found.broken, found.untold) == (1, ("I5 goodput: too little",), ("room: none",))


def test_a_system_that_stays_down_is_not_back(evidence):
    dead = [
        replace(each, code="DEADLINE_EXCEEDED") if each.intended_s >= 6 else each for each in evidence.calls
    ]
    found = measure(replace(evidence, history=replace(evidence.history, calls=dead)), (), within_s=1.0)
    assert found.recovery_s is None
    assert found.goodput_after == 0.0
    assert ("back after", ["not back"]) in cells({"relay": found})


def test_a_row_that_says_nothing_is_left_out_and_broken_promises_are_counted(evidence):
    found = measure(
        evidence, [Finding("I4", "a", Verdict.BROKEN, ""), Finding("I4", "b", Verdict.BROKEN, "")], 1.0
    )
    assert verdict_words(found) == "0 held, broken: I4 \N{MULTIPLICATION SIGN}2"
    assert "CRITICAL calls that succeed" not in dict(cells({"relay": found}))


@pytest.mark.parametrize("entry", BESIDE, ids=lambda entry: entry.scenario)
def test_all_ways_have_the_same_plan_and_their_own_policy(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(columns_module, "find_envoy", lambda: tmp_path)
    made = [each for each in columns(entry, tmp_path, 7, Form.SHORT) if isinstance(each, Column)]
    assert len({each.config.plan.text() for each in made}) == 1
    assert len({json.dumps(each.config.policy, sort_keys=True) for each in made}) == len(made) >= 2
    if isinstance(entry.envoy, EnvoySettings):
        assert configuration("127.0.0.1:1", entry.envoy)
        assert entry.envoy_words
    assert find(entry.scenario)


def test_where_envoy_is_missing_or_cannot_do_it_the_column_says_why(tmp_path, monkeypatch):
    entry = BESIDE[0]
    monkeypatch.setattr(columns_module, "find_envoy", lambda: None)
    (missing,) = (each for each in columns(entry, tmp_path, 1, Form.SHORT) if isinstance(each, Missing))
    assert missing.name == ENVOY
    assert "install" in missing.why
    unable = replace(entry, envoy=Cannot("it knows no keys"))
    (missing,) = (each for each in columns(unable, tmp_path, 1, Form.SHORT) if isinstance(each, Missing))
    assert missing.why == "it knows no keys"
    with pytest.raises(NothingBesideError, match="overload-3x"):
        beside("latency")
