"""The bench as it is called, very short, on what every machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import envoy
from tests.bench.processes import ROOT, CouldNotStartError
from tests.bench.subjects import start_envoy

BENCH = [sys.executable, "-m", "tests.bench"]


def bench(*options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*BENCH, "--quick", "--rounds", "1", "--duration-s", "0.2", *options]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_a_run_measures_shows_and_writes(tmp_path):
    done = bench("--only", "bare,direct", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Absolute" in done.stdout
    assert "Memory at 1,000 calls in flight" in done.stdout
    written = json.loads((tmp_path / "latest.json").read_text())
    assert written["settings"]["subjects"] == ["bare", "direct"]
    assert written["problems"] == []
    bare = [m for m in written["measurements"] if m["subject"] == "bare"]
    assert [m["workload"] for m in bare] == [
        "c 1, 100 B",
        "c 16, 100 B",
        "c 128, 100 B",
        "1,000/s open loop, 100 B",
    ]
    assert all(m["calls_per_s"] > 0 and m["cpu_us_per_call"] > 0 for m in bare)
    (memory,) = written["memory"]
    assert memory["calls"] == 1000
    assert memory["peak_mib"] >= memory["idle_mib"] > 1
    assert (tmp_path / "latest.md").read_text().startswith("## ")


def test_a_subject_that_cannot_start_is_named_and_the_exit_code_is_2(tmp_path):
    done = bench("--only", "envoy", "--out", str(tmp_path), env={envoy.ENVOY_ENV: "/no/such/envoy"})
    assert done.returncode == 2
    assert "could not measure: envoy" in done.stdout


def test_an_unknown_subject_is_refused(tmp_path):
    done = bench("--only", "nginx", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "unknown: nginx" in done.stderr


def test_envoy_accepts_its_configuration_and_serves(tmp_path: Path):
    if envoy.find_envoy() is None:
        pytest.skip(f"no Envoy here: `make bench` installs it, or set {envoy.ENVOY_ENV}")
    running = start_envoy("127.0.0.1:1", tmp_path, frozenset())
    try:
        assert running.port > 0
    finally:
        running.stop()

    # So that the above proves something: what Envoy does not accept is told.
    with pytest.raises(CouldNotStartError, match="ended with 1"):
        start_envoy("no-ip-address:1", tmp_path / "bad", frozenset())


def test_the_cost_of_the_policy_is_a_row_of_its_own(tmp_path):
    done = bench("--policy-cost", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Policy cost" in done.stdout
    written = json.loads((tmp_path / "latest.json").read_text())
    cost = written["policy_cost"]
    assert written["measurements"] == []
    assert cost["policy_us"]["median"] > 0 < cost["minimal_us"]["median"]
    difference = cost["policy_us"]["median"] - cost["minimal_us"]["median"]
    assert cost["difference_us"]["median"] == pytest.approx(difference), "one round"
