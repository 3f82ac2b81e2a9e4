"""A run from outside: what it leaves in its folder, how it ends, and what is left when it is interrupted."""

import json
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree as ET

import pytest

from chaos.history import read_history
from chaos.mutants import MUTANTS

pytestmark = pytest.mark.timeout(300)


def test_a_run_leaves_history_spans_logs_summary_junit_and_report(lab, tmp_path, left_of):
    ended = lab("run", "fail-after", "--short", "--seed", "3", "--json", "--out", str(tmp_path))
    folder = tmp_path / "fail-after"
    summary = json.loads(ended.stdout)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (summary["scenario"], summary["seed"], summary["mutant"]) == ("fail-after", 3, None)
    assert ended.returncode == {"held": 0, "broken": 1, "could_not_tell": 2}[summary["verdict"]]
    assert {each["id"] for each in summary["invariants"]} >= {"I1", "I2", "I4", "I6", "I7", "control"}
    assert summary["measures"]["fault.calls"] > 0
    if sys.platform == "linux":
        assert 10 < summary["measures"]["relay_memory_peak_mb"] < 500
    suite = ET.parse(folder / "junit.xml").getroot()[0]  # noqa: S314 (our own file)
    assert int(suite.get("tests")) == len(summary["invariants"])
    assert summary["replay"] in (folder / "report.html").read_text().replace("&#39;", "'")
    history = read_history(folder / "history.jsonl")
    assert [phase.name for phase in history.phases] == ["steady", "fault", "recovery"]
    assert history.relays
    assert (folder / "logs" / "relay.log").exists()
    for name in ("relay.jsonl", "downstream.jsonl", "client.jsonl", "plan.json", "schedule.json"):
        assert (folder / name).stat().st_size > 0
    assert left_of(str(tmp_path)) == []


def test_ctrl_c_in_the_middle_of_a_fault_leaves_no_process(tmp_path, left_of):
    command = [sys.executable, "-m", "chaos", "run", "stop-downstream", "--for", "60", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        stopped = False
        give_up_s = time.monotonic() + 90
        while not stopped and time.monotonic() < give_up_s:
            stopped = any(_is_stopped(pid) for pid in left_of(f"{tmp_path}/stop-downstream/ledger"))
            time.sleep(0.05)
        assert stopped, "the downstream was never stopped"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert "faults are undone" in told
    assert left_of(str(tmp_path)) == []


def _is_stopped(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:  # noqa: PTH123 (no path of ours)
        return stat.read().rpartition(")")[2].split()[0] == "T"


def test_a_plan_is_printed_and_nothing_is_started(lab, tmp_path):
    plans = [lab("run", "flapping", "--plan", "--seed", "9", "--out", str(tmp_path)) for _ in range(2)]
    assert plans[0].stdout == plans[1].stdout
    assert json.loads(plans[0].stdout)["schedule"]["faults"][0]["fault"]["kind"] == "flapping"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [("run", "no-such-scenario"), ("run", "latency", "--mutant", "nobody"), ("explore", "nothing")]
)
def test_what_is_not_known_is_told_and_ends_with_two(lab, words):
    ended = lab(*words)
    assert ended.returncode == 2
    assert "relay-chaos: no " in ended.stderr


def test_every_scenario_is_listed_with_its_hypothesis(lab):
    listed = json.loads(lab("list", "--json").stdout)
    assert {"latency", "kill-relay", "overload-10x", "drawn"} <= {each["name"] for each in listed}
    assert all(each["hypothesis"] for each in listed)


@pytest.mark.parametrize("name", ["new-key-each-attempt"])
def test_a_relay_without_a_protection_is_caught(lab, tmp_path, name):
    ended = lab("mutants", "--only", name, "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.startswith("broken")


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_caught(lab, tmp_path, mutant):
    ended = lab("mutants", "--only", mutant.name, "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stdout


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 120))
def test_drawn_schedules_hold(lab, tmp_path, seed):
    ended = lab("run", "drawn", "--seed", str(seed), "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stdout
