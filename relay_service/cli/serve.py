"""``relay serve``: run the relay until it is told to stop."""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay_service.cli.failures import COULD_NOT_TELL, config_errors_told, fail
from relay_service.config.loading import policy_of
from relay_service.config.settings import Settings, read_settings, variable
from relay_service.core.policy import RelayPolicy

if TYPE_CHECKING:
    from relay_service.app import Addresses


def _option(name: str) -> Any:
    """A setting as a flag: its words and its variable come from `Settings`, its default stays there."""
    field = Settings.model_fields[name]
    default = "" if field.default is None else f" (default: {field.default})"
    return typer.Option(help=f"{field.description} ({variable(name)}){default}", show_default=False)


def serve(
    *,
    listen: Annotated[str | None, _option("listen")] = None,
    admin_listen: Annotated[str | None, _option("admin_listen")] = None,
    http_listen: Annotated[str | None, _option("http_listen")] = None,
    tls_certificate: Annotated[Path | None, _option("tls_certificate")] = None,
    tls_key: Annotated[Path | None, _option("tls_key")] = None,
    tls_client_ca: Annotated[Path | None, _option("tls_client_ca")] = None,
    upstream: Annotated[str | None, _option("upstream")] = None,
    policy: Annotated[str | None, _option("policy")] = None,
    store: Annotated[str | None, _option("store")] = None,
    state_dir: Annotated[Path | None, _option("state_dir")] = None,
    policy_poll: Annotated[float | None, _option("policy_poll_s")] = None,
    trace_file: Annotated[Path | None, _option("trace_file")] = None,
    otlp_endpoint: Annotated[str | None, _option("otlp_endpoint")] = None,
    sample_ratio: Annotated[float | None, _option("sample_ratio")] = None,
    alert_webhook: Annotated[str | None, _option("alert_webhook")] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
    shutdown_grace: Annotated[float | None, _option("shutdown_grace_s")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
    fault_point: Annotated[str | None, _option("fault_point")] = None,
    ready_json: Annotated[
        bool, typer.Option("--ready-json", help="Print one line of JSON with the addresses when ready.")
    ] = False,
) -> None:
    """Run the relay until SIGTERM or Ctrl-C."""
    flags = {
        "listen": listen,
        "admin_listen": admin_listen,
        "http_listen": http_listen,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "upstream": upstream,
        "policy": policy,
        "store": store,
        "state_dir": state_dir,
        "policy_poll_s": policy_poll,
        "trace_file": trace_file,
        "otlp_endpoint": otlp_endpoint,
        "sample_ratio": sample_ratio,
        "alert_webhook": alert_webhook,
        "log_level": log_level,
        "shutdown_grace_s": shutdown_grace,
        "seed": seed,
        "fault_point": fault_point,
    }
    with config_errors_told():
        settings = read_settings({name: value for name, value in flags.items() if value is not None})
        relay_policy = policy_of(settings)
    _run(settings, relay_policy, _print_ready_json if ready_json else _print_ready)


def _run(settings: Settings, policy: RelayPolicy, on_ready: "Callable[[Addresses], None]") -> None:
    from relay_service import app
    from relay_service.control.binding import BindError
    from relay_service.stores.interface import StoreError
    from relay_service.telemetry.settings import TelemetryError
    from relay_service.tls import TlsError

    try:
        _run_until_done(app.serve(settings, policy, on_ready))
    except (BindError, TelemetryError, StoreError, TlsError, OSError) as error:
        fail(f"cannot start: {error}", COULD_NOT_TELL)


def _run_until_done(work: Coroutine[Any, Any, None]) -> None:
    """On uvloop where there is one: it is faster, and not to be had on every platform."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


def _print_ready(addresses: "Addresses") -> None:
    typer.echo(
        f"relay ready: calls at {addresses.relay}, admin at {addresses.admin}, http at {addresses.http}",
        err=True,
    )


def _print_ready_json(addresses: "Addresses") -> None:
    line = {
        "relay": addresses.relay,
        "admin": addresses.admin,
        "http": addresses.http,
        "pid": os.getpid(),
    }
    # Whoever waits for this line reads from a pipe: it must leave the buffer now.
    print(json.dumps(line), flush=True)
