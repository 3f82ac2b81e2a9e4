"""The compose file agrees with the defaults of the code, and with what containers should be."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from relay_service.config.addresses import TcpAddress, parse_address
from relay_service.config.settings import PREFIX, Settings


def default_port(setting: str) -> int:
    address = parse_address(Settings.model_fields[setting].default)
    assert isinstance(address, TcpAddress)
    return address.port


def published(compose: dict[str, Any], service: str) -> dict[int, tuple[str, int]]:
    """Container port → (host address, host port)."""
    split = (port.rsplit(":", 2) for port in compose["services"][service]["ports"])
    return {int(container): (host, int(port)) for host, port, container in split}


def environment(compose: dict[str, Any], service: str) -> dict[str, str]:
    return compose["services"][service].get("environment", {})


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def works(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("command", [["docker", "compose"], ["docker-compose"]])
def test_composes_own_validation_accepts_it(root, command):
    if not works([*command, "version"]):
        pytest.skip(f"no `{' '.join(command)}` on this machine")
    config = [*command, "--file", str(root / "docker-compose.yml"), "config", "--quiet"]
    done = subprocess.run(config, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_it_brings_relay_downstream_toxiproxy_and_jaeger_in_pinned_versions(compose):
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert images["toxiproxy"] == "ghcr.io/shopify/toxiproxy:2.12.0"
    assert images["jaeger"] == "jaegertracing/jaeger:2.20.0"
    assert images["relay"] == images["downstream"]
    assert set(images) == {"relay", "downstream", "toxiproxy", "jaeger"}


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        ("listen", "RELAY_LISTEN"),
        ("admin_listen", "RELAY_ADMIN_LISTEN"),
        ("http_listen", "RELAY_HTTP_LISTEN"),
    ],
)
def test_the_relays_ports_are_the_defaults_of_the_code(compose, setting, variable):
    port = default_port(setting)
    assert environment(compose, "relay")[variable] == f"0.0.0.0:{port}"
    assert published(compose, "relay")[port] == ("127.0.0.1", port)


def test_the_downstreams_port_is_the_default_of_the_code(compose):
    import typer.main

    from downstream_service.cli import app

    serve = typer.main.get_command(app).commands["serve"]
    (listen,) = (parameter.default for parameter in serve.params if parameter.name == "listen")
    port = int(listen.rpartition(":")[2])
    assert environment(compose, "downstream")["RELAY_DOWNSTREAM_LISTEN"] == f"0.0.0.0:{port}"
    assert published(compose, "downstream")[port] == ("127.0.0.1", port)


def test_calls_go_from_relay_through_toxiproxy_to_downstream(compose, root):
    (proxy,) = json.loads((root / "deploy/toxiproxy.json").read_text())
    assert (proxy["name"], proxy["enabled"]) == ("downstream", True)
    proxy_port = proxy["listen"].rpartition(":")[2]
    assert environment(compose, "relay")["RELAY_UPSTREAM"] == f"toxiproxy:{proxy_port}"
    downstream_port = environment(compose, "downstream")["RELAY_DOWNSTREAM_LISTEN"].rpartition(":")[2]
    assert proxy["upstream"] == f"downstream:{downstream_port}"
    assert published(compose, "toxiproxy") == {8474: ("127.0.0.1", 8474), 50053: ("127.0.0.1", 50053)}


def test_toxiproxy_reads_the_file_that_is_mounted(compose, root):
    toxiproxy = compose["services"]["toxiproxy"]
    (config,) = (
        word.removeprefix("-config=") for word in toxiproxy["command"] if word.startswith("-config=")
    )
    source, target, mode = toxiproxy["volumes"][0].split(":")
    assert (target, mode) == (config, "ro")
    assert (root / source).is_file()


def test_spans_of_both_services_go_to_jaeger(compose):
    assert environment(compose, "relay")["RELAY_OTLP_ENDPOINT"] == "http://jaeger:4317"
    assert environment(compose, "downstream")["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4317"
    assert published(compose, "jaeger") == {16686: ("127.0.0.1", 16686), 4317: ("127.0.0.1", 4317)}


def test_the_relays_environment_is_what_its_settings_know(compose, monkeypatch):
    for name, value in environment(compose, "relay").items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(environment(compose, "relay")) <= known
    assert settings.upstream == "toxiproxy:50053"
    assert settings.otlp_endpoint == "http://jaeger:4317"


def test_the_downstreams_environment_is_what_its_command_line_knows(compose):
    import typer.main

    from downstream_service.cli import app

    known = {parameter.envvar for parameter in typer.main.get_command(app).commands["serve"].params}
    ours = {name for name in environment(compose, "downstream") if not name.startswith("OTEL_")}
    assert ours <= known


@pytest.mark.parametrize("service", ["relay", "downstream", "toxiproxy", "jaeger"])
def test_every_service_has_a_health_check_without_a_shell_and_hardly_any_rights(compose, service):
    spec = compose["services"][service]
    assert spec["healthcheck"]["test"][0] == "CMD"
    assert seconds(spec["healthcheck"]["timeout"]) <= seconds(spec["healthcheck"]["interval"])
    assert spec["read_only"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert spec["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in spec


def test_services_start_in_the_order_of_their_needs(compose):
    needs = {name: set(spec.get("depends_on", {})) for name, spec in compose["services"].items()}
    assert needs == {
        "relay": {"toxiproxy", "jaeger"},
        "toxiproxy": {"downstream"},
        "downstream": {"jaeger"},
        "jaeger": set(),
    }
    for spec in compose["services"].values():
        for dependency in spec.get("depends_on", {}).values():
            assert dependency == {"condition": "service_healthy"}


@pytest.mark.parametrize(
    ("service", "variable"), [("relay", "RELAY_SHUTDOWN_GRACE_S"), ("downstream", "RELAY_DOWNSTREAM_GRACE")]
)
def test_the_engine_waits_longer_than_the_service_drains(compose, service, variable):
    grace_s = float(environment(compose, service)[variable])
    assert seconds(compose["services"][service]["stop_grace_period"]) > grace_s


def test_everything_is_published_on_the_loopback_only(compose):
    hosts = {host for service in compose["services"] for host, _ in published(compose, service).values()}
    assert hosts == {"127.0.0.1"}


def test_every_volume_and_every_mounted_file_exists(compose, root):
    for name, spec in compose["services"].items():
        for volume in spec.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or Path(root, source).exists(), (name, volume)
    used = {v.split(":")[0] for s in compose["services"].values() for v in s.get("volumes", [])}
    assert set(compose["volumes"]) <= used
