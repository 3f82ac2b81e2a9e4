"""The generator and the echo count right; run for the native pair and for its Python stand-in."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.bench import proc
from tests.bench.processes import ROOT, CouldNotStartError


def test_a_closed_loop_is_answered_whole(echo, generate):
    address, process = echo()
    got = generate(address, "--concurrency", "8", "--payload-bytes", "10000", "--watch", str(process.pid))
    assert got["ok"] > 0
    assert got["status"] == {"0": got["ok"]}
    assert (got["corrupt"], got["expired"], got["lost"], got["unsent"], got["left_in_flight"]) == (
        0,
        0,
        0,
        0,
        0,
    )
    assert got["in_flight_peak"] == 8
    assert got["answered"] == got["ok"]
    assert got["window_s"] >= 0.29


def test_a_queue_of_known_capacity_sets_rate_and_latency(echo, generate):
    # Two workers of 20 ms serve 100/s at most, and ten callers wait for ten services by two workers: 100 ms.
    address, _ = echo("--service-us", "20000", "--workers", "2")
    got = generate(address, "--concurrency", "10", "--duration-s", "0.6")
    assert 0 < got["ok"] <= 66
    assert got["latency_ms"]["p50"] >= 95


def test_a_full_queue_refuses_with_resource_exhausted(echo, generate):
    address, _ = echo("--service-us", "50000", "--workers", "1", "--queue", "1")
    got = generate(address, "--concurrency", "8")
    assert got["status"]["8"] > 0
    assert got["ok"] > 0
    assert got["refusal_ms"] is not None


def test_an_open_loop_offers_its_rate_however_slow_the_answers_are(echo, generate):
    address, _ = echo("--service-us", "200000")
    got = generate(address, "--rate", "400", "--duration-s", "0.5", "--seed", "7")
    # Poisson with mean 200: six standard deviations.
    assert 200 - 6 * 200**0.5 <= got["offered"] <= 200 + 6 * 200**0.5
    assert got["ok"] == got["offered"]
    assert got["in_flight_peak"] >= 20


def test_an_open_loop_counts_latency_from_the_intended_send_time(tools, echo):
    address, upstream = echo()
    port = address.rpartition(":")[2]
    options = ("--port", port, "--rate", "200", "--warmup-s", "0", "--duration-s", "2")
    idle_s = proc.cpu_s(upstream.pid)
    generator = subprocess.Popen([*tools.loadgen, *options], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        while proc.cpu_s(upstream.pid) < idle_s + 0.002:  # until calls flow
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # The upstream's CPU also tells of the connecting, before any call is due: hence several stalls.
        for _ in range(3):
            os.kill(generator.pid, signal.SIGSTOP)
            time.sleep(0.4)  # the stall itself
            os.kill(generator.pid, signal.SIGCONT)
            time.sleep(0.2)
        got = json.loads(generator.communicate(timeout=20)[0])
    finally:
        generator.kill()
        generator.wait()
    # The calls that were due while the generator stood still were sent late, and count as long as they took.
    assert got["send_lag_ms"]["max"] >= 300
    assert got["latency_ms"]["max"] >= 300
    assert got["ok"] == got["offered"]


def test_calls_past_their_deadline_are_cancelled_and_counted(echo, generate):
    address, _ = echo("--service-us", "2000000")
    got = generate(address, "--rate", "100", "--deadline-ms", "50")
    assert got["offered"] > 0
    assert got["ok"] == 0
    # The upstream may say DEADLINE_EXCEEDED in the moment in which the generator gives up.
    assert got["expired"] + got["status"].get("4", 0) == got["offered"]


def test_arrivals_beyond_the_limit_in_flight_are_counted_and_not_sent(echo, generate):
    address, _ = echo("--service-us", "400000")
    got = generate(address, "--rate", "300", "--in-flight-max", "5")
    assert got["in_flight_peak"] == 5
    assert got["unsent"] > 0
    assert got["unsent"] + got["ok"] == got["offered"]


def test_cpu_is_that_of_the_watched_process_in_the_window(echo, generate):
    address, process = echo()
    before_s = proc.cpu_s(process.pid)
    got = generate(address, "--concurrency", "8", "--watch", str(process.pid))
    all_s = proc.cpu_s(process.pid) - before_s
    in_window_s = got["cpu_s"][str(process.pid)]
    assert 0 < in_window_s <= all_s
    # Warm-up and drain are short: most of it must have been seen.
    assert in_window_s >= 0.3 * all_s
    assert got["generator_cpu_s"] > 0


def test_cpu_clock_and_proc_stat_tell_the_same(echo, generate):
    address, process = echo()
    generate(address, "--concurrency", "8")
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    ticks_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    assert proc.cpu_s(process.pid) == pytest.approx(ticks_s, abs=0.05)


def test_an_unknown_method_is_unimplemented(echo, generate):
    address, _ = echo()
    got = generate(address, "--concurrency", "4", "--path", "/bench.Echo/Other")
    assert got["ok"] == 0
    assert set(got["status"]) == {"12"}


def test_a_subject_that_is_not_there_cannot_be_measured(generate, unused_port):
    with pytest.raises(CouldNotStartError, match="ended with 2: connecting"):
        generate(f"127.0.0.1:{unused_port}", "--concurrency", "1")


@pytest.mark.parametrize("flags", [["--concurrency", "1", "--rate", "5"], ["--concurrency", "x"], []])
def test_senseless_flags_are_refused(generate, flags):
    with pytest.raises(CouldNotStartError, match="ended with 2"):
        generate("127.0.0.1:1", *flags)
