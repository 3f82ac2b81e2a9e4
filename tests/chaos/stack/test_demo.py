"""The tour's judges on planted evidence, and one act of it on the real stack."""

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from chaos.cli import app
from chaos.demo.acts import ACTS, BUDGET_80, TEXTBOOK_30, failing, judge_budget, judge_theory
from chaos.demo.stage import Evidence
from chaos.demo.tour import DemoConfig, exit_code, run_demo
from chaos.findings import Verdict, worst
from chaos.history import CallRecord, Outcome, read_history


def evidence(total, succeeded, arrived):
    calls = tuple(
        CallRecord(
            id=number,
            phase="p",
            operation=f"op-{number}",
            method="downstream.v1.PaymentService/Charge",
            intended_s=0.0,
            sent_s=0.0,
            done_s=0.1,
            code="OK" if number < succeeded else "UNAVAILABLE",
            outcome=Outcome.EXECUTED if number < succeeded else Outcome.NOT_EXECUTED,
            trace_id=f"{number:032x}",
            attempts=arrived // total + (number < arrived % total),
            reason="RETRIES_EXHAUSTED",
        )
        for number in range(total)
    )
    return Evidence("p", total, calls, (), arrived)


@pytest.mark.parametrize(
    ("succeeded", "arrived", "verdict"),
    [
        (5158, 7368, Verdict.HELD),
        (5200, 7368, Verdict.BROKEN),  # nothing ever fails: the fault was not there
        (5060, 7228, Verdict.BROKEN),  # three attempts instead of four
        (5158, 5200, Verdict.BROKEN),  # success without its cost
    ],
)
def test_retries_are_held_against_theory(succeeded, arrived, verdict):
    findings, measures = judge_theory(TEXTBOOK_30, evidence(5200, succeeded, arrived), 4)
    assert worst(findings) is verdict, findings
    assert [measure.unit for measure in measures] == ["%", "x"]


def test_retries_beyond_the_budget_break_it():
    kept, _ = judge_budget(BUDGET_80, evidence(800, 190, 960))
    broken, _ = judge_budget(BUDGET_80, evidence(800, 190, 2300))
    assert worst(kept) is Verdict.HELD
    assert worst(broken) is Verdict.BROKEN


def test_the_downstream_fails_charges_only_so_that_the_ledger_can_be_read():
    (fault,) = failing(TEXTBOOK_30).faults
    assert list(fault.methods) == ["downstream.v1.PaymentService/Charge"]
    assert fault.probability == pytest.approx(0.3)


async def test_the_spike_on_the_real_stack_leaves_report_history_and_verdict(tmp_path, capsys):
    spike = ACTS[-1]
    config = DemoConfig(tmp_path, seed=3, acts=(spike,))
    summary = await run_demo(config, Console(width=118))
    assert summary["verdict"] == "held", summary
    assert exit_code(summary) == 0
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert "relay-chaos demo --seed 3" in (tmp_path / "report.html").read_text()
    assert len(read_history(tmp_path / "history.jsonl").calls) == summary["calls"] == 200
    assert "Every promise: held" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [[], ["demo"], ["up"], ["toxiproxy"]])
def test_every_verb_explains_itself(verb):
    result = CliRunner().invoke(app, [*verb, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_up_on_a_bad_policy_ends_with_two_and_says_why(tmp_path):
    result = CliRunner().invoke(
        app, ["up", "--free-ports", "--policy", "no-such-policy", "--out", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert "no-such-policy" in result.output
