"""A history of many calls stays in its file: the same verdicts, and no more memory than a few calls need."""

import subprocess
import sys

import pytest

from chaos import invariants
from chaos.history import CallRecord, HistoryWriter, LedgerEntry, Outcome, new_run, read_history

MEASURE = """
import resource, sys
from pathlib import Path
from chaos import invariants
from chaos.history import read_history
history = read_history(Path(sys.argv[1]))
findings = [
    invariants.answered_in_time(history.calls),
    invariants.at_most_one_effect(history.ledger, history.calls),
    invariants.answers_match_ledger(history.calls, history.ledger),
    invariants.all_accounted_for(len(history.calls), history.calls),
]
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print({finding.verdict.name for finding in findings}, peak_kb // 1024)
"""


def write(path, count):
    with HistoryWriter(path, new_run("large", 1, "embedded"), recent_max=0) as history:
        for number in range(count):
            at_s = number / 1000
            history.add(
                CallRecord(
                    id=number,
                    phase="fault",
                    operation=f"large-{number:07d}",
                    method="downstream.v1.PaymentService/Charge",
                    intended_s=at_s,
                    sent_s=at_s,
                    done_s=at_s + 0.01,
                    timeout_s=1.0,
                    code="OK",
                    outcome=Outcome.EXECUTED,
                    trace_id=f"{number:032x}",
                    key=f"1-large-{number:07d}",
                )
            )
            history.add(LedgerEntry(number + 1, f"charge-{number}", f"large-{number:07d}"))
        assert history.take() == ()


def test_a_history_left_in_its_file_is_judged_like_one_in_memory(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, 300)
    held, stored = read_history(path), read_history(path, in_memory_max=100)
    assert (len(stored.calls), len(stored.ledger)) == (300, 300)
    assert list(stored.calls) == list(held.calls)
    assert invariants.answers_match_ledger(stored.calls, stored.ledger) == invariants.answers_match_ledger(
        held.calls, held.ledger
    )


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_million_calls_are_judged_within_500_mb(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, 1_000_000)
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=1500, check=True
    )
    print(ended.stdout)
    verdicts, megabytes = ended.stdout.rsplit(" ", 1)
    assert verdicts == "{'HELD'}"
    assert int(megabytes) <= 500
