"""A history says the same after it was written and read back, whatever became of its writer."""

import pytest

from chaos.history import (
    CallRecord,
    FaultWindow,
    HistoryError,
    HistoryWriter,
    LedgerEntry,
    LoadSample,
    Outcome,
    Phase,
    RunHead,
    decode,
    encode,
    read_entries,
    read_history,
)

HEAD = RunHead("test", 3, "embedded", began_unix_ns=1_700_000_000_000_000_000)
CALL = CallRecord(
    id=1,
    phase="p",
    operation="op",
    method="a.B/C",
    intended_s=0.25,
    done_s=0.5,
    code="UNKNOWN",
    outcome=Outcome.UNKNOWN,
    trace_id="ab" * 16,
    sent_s=0.26,
    timeout_s=1.0,
    key="k",
    client_try=2,
    message="lost",
    reason="OUTCOME_UNKNOWN",
    attempts=3,
    origin="relay",
    decision="d",
    pushback_ms=-1,
    idempotency="unknown",
    traced=True,
)
ENTRIES = [
    HEAD,
    CALL,
    Phase("p", "phase", 0.0, 1.0),
    FaultWindow("f", "fault", 0.1, 0.2),
    LoadSample(0.1, 5, 4, 1, 2, 3),
    LedgerEntry(1, "c1", "op", "k"),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_every_kind_of_entry_comes_back_as_it_went(entry):
    assert decode(encode(entry)) == entry


def test_a_written_history_is_read_back_whole(tmp_path):
    path = tmp_path / "run" / "history.jsonl"
    with HistoryWriter(path, HEAD) as writer:
        for entry in ENTRIES[1:]:
            writer.add(entry)
        assert writer.take() == (CALL,)
        assert writer.take() == ()
    history = read_history(path)
    assert history.head == HEAD
    assert history.in_phase("p") == (CALL,)
    assert (len(history.phases), len(history.faults), len(history.loads), len(history.ledger)) == (1, 1, 1, 1)


def test_an_unknown_outcome_stays_unknown():
    assert decode(encode(CALL)).outcome is Outcome.UNKNOWN


def test_a_torn_last_line_ends_the_history_instead_of_spoiling_it(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(f"{encode(HEAD)}\n{encode(CALL)}\n{encode(CALL)[:30]}")
    assert len(list(read_entries(path))) == 2


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"kind":"call"}', '{"kind":"spell"}'])
def test_a_line_that_is_no_entry_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text(f"{encode(HEAD)}\n{line}\n")
    with pytest.raises(HistoryError, match=r"history\.jsonl:2: not a history entry"):
        read_history(path)


def test_two_runs_in_one_file_are_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(f"{encode(HEAD)}\n{encode(HEAD)}\n")
    with pytest.raises(HistoryError, match="2 run heads"):
        read_history(path)


def test_latency_counts_from_the_intended_time():
    assert CALL.latency_s == pytest.approx(0.25)
