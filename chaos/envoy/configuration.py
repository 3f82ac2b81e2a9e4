"""From settings to Envoy's own configuration. Source: Envoy 1.40 API reference, v3."""

from typing import Any

from chaos.envoy.settings import ADAPTIVE, EnvoySettings

NEVER_LIMIT = 1_000_000
CONCURRENT_STREAMS_MAX = 100_000
STAT_PREFIX = "relay"
"""Of the listener's statistics."""
CLUSTER = "upstream"
FAILURES_IN_A_ROW = 5
"""What makes an upstream an outlier; Envoy's own default."""
FREE = "127.0.0.1:0"
LONGEST_S = 1_000_000


def configuration(
    upstream: str, settings: EnvoySettings, *, listen: str = FREE, admin: str = FREE
) -> dict[str, Any]:
    """A listener on ``listen`` before one ``upstream`` (``host:port``); port 0 takes a free one."""
    manager = _connection_manager(settings)
    return {
        "admin": {"address": _address(admin)},
        "static_resources": {
            "listeners": [
                {
                    "name": "relay",
                    "address": _address(listen),
                    "filter_chains": [{"filters": [manager]}],
                }
            ],
            "clusters": [_cluster(upstream, settings)],
        },
    }


def _address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _connection_manager(settings: EnvoySettings) -> dict[str, Any]:
    routes = [_route(settings, {"prefix": "/"}, "DEFAULT")]
    if settings.critical_requests_max is not None:
        critical = {"name": "relay-criticality", "string_match": {"exact": "CRITICAL"}}
        routes.insert(0, _route(settings, {"prefix": "/", "headers": [critical]}, "HIGH"))
    filters = [_adaptive_concurrency()] if settings.requests_max == ADAPTIVE else []
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": _type("filters.http.router.v3.Router")},
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": _type("filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": STAT_PREFIX,
            "codec_type": "HTTP2",
            "http2_protocol_options": {"max_concurrent_streams": CONCURRENT_STREAMS_MAX},
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [*filters, router],
        },
    }


def _route(settings: EnvoySettings, match: dict[str, Any], priority: str) -> dict[str, Any]:
    action: dict[str, Any] = {
        "cluster": CLUSTER,
        "priority": priority,
        # The caller's grpc-timeout is the deadline; without one the relay's default would apply.
        "max_stream_duration": {"grpc_timeout_header_max": "60s", "max_stream_duration": "15s"},
        "timeout": "0s",
    }
    if settings.retries:
        action["retry_policy"] = {
            "retry_on": "unavailable,connect-failure,refused-stream",
            "num_retries": settings.retries,
            "retry_back_off": {
                "base_interval": _seconds(settings.backoff_s),
                "max_interval": _seconds(settings.backoff_max_s),
            },
        }
        attempt_s = settings.attempt_timeout_s if settings.hedge_after_s is None else settings.hedge_after_s
        if attempt_s is not None:
            action["retry_policy"]["per_try_timeout"] = _seconds(attempt_s)
    if settings.hedge_after_s is not None:
        action["hedge_policy"] = {"hedge_on_per_try_timeout": True}
    return {"match": match, "route": action}


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


def _cluster(upstream: str, settings: EnvoySettings) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": _thresholds(settings)},
        "load_assignment": {
            "cluster_name": CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(upstream)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _type("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {
                    "http2_protocol_options": {"max_concurrent_streams": CONCURRENT_STREAMS_MAX}
                },
            }
        },
    }
    if settings.ejection_s is not None:
        cluster["outlier_detection"] = _outlier_detection(settings.ejection_s)
        # An upstream without a healthy host is not tried in panic; its calls fail at once.
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
    return cluster


def _thresholds(settings: EnvoySettings) -> list[dict[str, Any]]:
    told = settings.requests_max if isinstance(settings.requests_max, int) else None
    thresholds = [_threshold("DEFAULT", told, settings)]
    if settings.critical_requests_max is not None:
        thresholds.append(_threshold("HIGH", settings.critical_requests_max, settings))
    return thresholds


def _threshold(priority: str, requests_max: int | None, settings: EnvoySettings) -> dict[str, Any]:
    most = NEVER_LIMIT if requests_max is None else requests_max
    threshold: dict[str, Any] = {
        "priority": priority,
        "max_connections": NEVER_LIMIT,
        "max_pending_requests": most,
        "max_requests": most,
    }
    if settings.retry_budget_percent is None:
        threshold["max_retries"] = NEVER_LIMIT
    else:
        threshold["retry_budget"] = {
            "budget_percent": {"value": settings.retry_budget_percent},
            "min_retry_concurrency": settings.retry_concurrency_min,
        }
    return threshold


def _outlier_detection(ejection_s: float) -> dict[str, Any]:
    return {
        "consecutive_5xx": FAILURES_IN_A_ROW,
        "enforcing_consecutive_5xx": 100,
        "interval": "0.1s",
        "base_ejection_time": _seconds(ejection_s),
        "max_ejection_time": _seconds(10 * ejection_s),
        "max_ejection_percent": 100,
    }


def _seconds(value_s: float) -> str:
    return f"{min(value_s, LONGEST_S):g}s"


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.{name}"
