"""An Envoy's command line, and how one knows that it serves."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG_FILE = "envoy.json"
ADMIN_FILE = "envoy-admin"
ASK_TIMEOUT_S = 2.0


def command(binary: Path, directory: Path, config: Mapping[str, Any]) -> list[str]:
    """Write the configuration and return the command line that serves it on one worker thread."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / CONFIG_FILE
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    address_file = directory / ADMIN_FILE
    address_file.unlink(missing_ok=True)
    return [
        str(binary),
        *("--config-path", str(path), "--concurrency", "1", "--admin-address-path", str(address_file)),
        *("--disable-hot-restart", "--log-level", "warning"),
    ]


def admin_address(directory: Path) -> str | None:
    """``host:port`` of the admin pages, once they are there."""
    try:
        return (directory / ADMIN_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def listening_address(directory: Path) -> str | None:
    """``host:port`` of the listener once Envoy is ready to serve on it, else None."""
    admin = admin_address(directory)
    if admin is None:
        return None
    try:
        if ask(admin, "/ready").strip() != "LIVE":
            return None
        (listener,) = json.loads(ask(admin, "/listeners?format=json"))["listener_statuses"]
    except (OSError, urllib.error.URLError, ValueError):
        return None
    address = listener["local_address"]["socket_address"]
    return f"{address['address']}:{address['port_value']}"


def ask(admin: str, path: str) -> str:
    """What the admin pages say. Raises `OSError` when they do not."""
    with urllib.request.urlopen(f"http://{admin}{path}", timeout=ASK_TIMEOUT_S) as response:
        return str(response.read().decode())
