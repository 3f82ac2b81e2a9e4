"""Envoy in the relay's place: what it is told, what it tells, how it is started and ended."""

import json
import sys

import pytest

from chaos.envoy import ADAPTIVE, EnvoySettings, configuration, find_envoy
from chaos.envoy.settings import EnvoySettingsError, from_document
from chaos.envoy.statistics import as_stats, parse
from chaos.observe import look_at_relay
from chaos.processes import ManagedProcess

UPSTREAM = "127.0.0.1:9"
FREE = "127.0.0.1:0"


def command(policy):
    listens = ("--listen", FREE, "--admin-listen", FREE, "--http-listen", FREE)
    told = ("--upstream", UPSTREAM, "--policy", str(policy), "--seed", "1", "--sample-ratio", "1.0")
    return [sys.executable, "-m", "chaos.envoy", "serve", "--ready-json", *listens, *told]


@pytest.fixture
def settings_file(tmp_path):
    path = tmp_path / "settings.json"
    settings = EnvoySettings(
        requests_max=ADAPTIVE, critical_requests_max=4, ejection_s=0.3, hedge_after_s=0.1
    )
    path.write_text(json.dumps(settings.document()))
    return path


def test_settings_survive_their_file_and_what_is_none_is_refused():
    settings = EnvoySettings(retries=1, requests_max=7, retry_budget_percent=None)
    assert from_document(json.loads(json.dumps(settings.document()))) == settings
    with pytest.raises(EnvoySettingsError, match="classes"):
        from_document({"classes": 4})


def test_every_pattern_is_off_until_it_is_asked_for():
    text = json.dumps(configuration(UPSTREAM, EnvoySettings(retries=0, retry_budget_percent=None)))
    for pattern in ("retry_policy", "retry_budget", "adaptive_concurrency", "outlier", "hedge", "HIGH"):
        assert pattern not in text
    everything = EnvoySettings(
        requests_max=ADAPTIVE, critical_requests_max=4, ejection_s=0.3, hedge_after_s=0.1
    )
    text = json.dumps(configuration(UPSTREAM, everything))
    for pattern in ("retry_policy", "retry_budget", "adaptive_concurrency", "outlier", "hedge", "HIGH"):
        assert pattern in text


def test_its_counters_are_told_in_the_words_of_a_relay():
    counted = parse(
        "cluster.upstream.upstream_rq_total: 130\n"
        "cluster.upstream.upstream_rq_retry: 30\n"
        "cluster.upstream.outlier_detection.ejections_active: 1\n"
        "http.relay.downstream_rq_total: 100\n"
        "http.relay.adaptive_concurrency.gradient_controller.concurrency_limit: 17\n"
        "http.relay.downstream_rq_time: No recorded values\n"
    )
    stats = as_stats(counted, 5, 1.5)
    assert (stats.calls.received, stats.methods[0].attempts, stats.methods[0].retries) == (100, 130, 30)
    assert stats.queue.workers == 17
    assert stats.upstreams[0].breakers[0].state == "OPEN"
    assert as_stats({}, 5, 1.5).queue.workers == 5


@pytest.mark.skipif(find_envoy() is None, reason="no Envoy here: `make bench` installs it")
async def test_it_is_started_watched_and_ended_like_a_relay(settings_file, tmp_path, watched):
    process = ManagedProcess("envoy", tmp_path / "envoy.log")
    ready = await process.start(command(settings_file))
    try:
        assert {"relay", "admin", "http"} <= set(ready)
        seen = await look_at_relay(ready["admin"], watched)
        assert seen is not None
        assert (seen.received, seen.breaker) == (0, "CLOSED")
        assert seen.workers > 0, "the limit that it found itself"
    finally:
        await process.stop()
    assert await process.wait() == 0
