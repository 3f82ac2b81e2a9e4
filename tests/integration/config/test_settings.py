"""Settings: flag before environment before default, and every mistake with its source."""

import pytest

from relay_service.config.problems import ConfigError
from relay_service.config.settings import Settings, flag, read_settings, variable


def test_the_defaults_listen_on_the_loopback_only() -> None:
    settings = read_settings({})
    assert settings.listen == "127.0.0.1:50051"
    assert settings.admin_listen == "127.0.0.1:50055"
    assert settings.http_listen == "127.0.0.1:9464"
    assert settings.upstream == "127.0.0.1:50052"
    assert (settings.policy, settings.sample_ratio, settings.log_level) == ("default", 0.01, "info")
    assert settings.trace_file is settings.otlp_endpoint is settings.seed is None


def test_a_flag_goes_before_the_environment_and_that_before_the_default(monkeypatch) -> None:
    monkeypatch.setenv("RELAY_LISTEN", "127.0.0.1:1111")
    monkeypatch.setenv("RELAY_SEED", "7")
    monkeypatch.setenv("RELAY_SHUTDOWN_GRACE_S", "2.5")
    settings = read_settings({"listen": "127.0.0.1:2222"})
    assert (settings.listen, settings.seed, settings.shutdown_grace_s) == ("127.0.0.1:2222", 7, 2.5)


def test_an_empty_variable_is_an_unset_one(monkeypatch) -> None:
    monkeypatch.setenv("RELAY_LISTEN", "")
    assert read_settings({}).listen == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://any:1"}, "http://any:1"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://any:1",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:2",
            },
            "http://t:2",
        ),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:2", "RELAY_OTLP_ENDPOINT": "https://own:3"},
            "https://own:3",
        ),
    ],
)
def test_the_collector_is_ours_before_that_for_traces_before_that_for_everything(
    monkeypatch, environment: dict[str, str], endpoint: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_settings({}).otlp_endpoint == endpoint


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("listen", "nowhere", "must be host:port, [ipv6]:port or unix:path"),
        ("admin_listen", "h:70000", "with a port from 0 to 65535"),
        ("http_listen", ":1", "must be host:port"),
        ("upstream", "127.0.0.1:0", "with a port from 1 to 65535"),
        ("otlp_endpoint", "collector:4317", "must begin with http:// or https://"),
        ("sample_ratio", "1.5", "must be less than or equal to 1"),
        ("log_level", "loud", "must be 'debug', 'info', 'warning' or 'error'"),
        ("shutdown_grace_s", "-1", "must be greater than or equal to 0"),
        ("seed", "x", "must be a valid integer"),
    ],
)
def test_a_wrong_setting_is_told_with_its_source_value_and_what_is_allowed(
    monkeypatch, field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as by_flag:
        read_settings({field: value})
    monkeypatch.setenv(variable(field), value)
    with pytest.raises(ConfigError) as by_variable:
        read_settings({})
    for caught, source in ((by_flag, flag(field)), (by_variable, variable(field))):
        (problem,) = caught.value.problems
        assert (problem.where, problem.found) == (source, f'got "{value}"')
        assert allowed in problem.allowed


def test_a_wrong_standard_variable_is_told_by_its_own_name(monkeypatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
    with pytest.raises(ConfigError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: "):
        read_settings({})


def test_all_wrong_settings_are_told_at_once(monkeypatch) -> None:
    monkeypatch.setenv("RELAY_SEED", "x")
    with pytest.raises(ConfigError) as caught:
        read_settings({"listen": "x", "sample_ratio": 2})
    assert {problem.where for problem in caught.value.problems} == {
        "--listen",
        "--sample-ratio",
        "RELAY_SEED",
    }


@pytest.mark.parametrize("endpoint", ["http://user:secret@h:4317", "user:secret@h:4317", "user:se/cret@h"])
def test_credentials_are_never_shown(endpoint: str) -> None:
    try:
        shown = repr(read_settings({"otlp_endpoint": endpoint}))
    except ConfigError as error:
        shown = str(error)
    assert "secret" not in shown
    assert "user" not in shown
    assert "***" in shown


def test_every_default_address_is_one_that_could_be_given() -> None:
    for name in ("listen", "admin_listen", "http_listen", "upstream"):
        assert read_settings({name: Settings.model_fields[name].default})
