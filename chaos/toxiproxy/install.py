"""Where the project keeps a Toxiproxy of its own, and how one gets there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from chaos.toxiproxy.errors import GoMissingError, InstallError
from chaos.toxiproxy.identity import VERSION

BINARY: Final = "toxiproxy-server"
INSTALL_TIMEOUT_S: Final = 600.0
OUTPUT_CHARS_SHOWN: Final = 2000

_PROJECT: Final = "resilient-relay"
_MODULE: Final = "github.com/Shopify/toxiproxy/v2"


def cache_dir(environ: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Path:
    """Where the binary is kept; it need not exist yet.

    `.cache/toxiproxy` of the checkout the working directory is in; outside of one `resilient-relay/toxiproxy`
    under XDG_CACHE_HOME (by default ~/.cache).
    """
    cwd = cwd or Path.cwd()
    for directory in (cwd, *cwd.parents):
        if _is_checkout(directory):
            return directory / ".cache" / "toxiproxy"
    home = environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home else Path.home() / ".cache"
    return base / _PROJECT / "toxiproxy"


def install(
    target_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    timeout_s: float = INSTALL_TIMEOUT_S,
) -> Path:
    """Build the real Toxiproxy with `go install` and return the path of its binary.

    Takes half a minute and fetches sources through Go's module proxy. The binary appears whole or not at all,
    and an earlier one is replaced. Raises GoMissingError and InstallError.
    """
    go = shutil.which("go", path=environ.get("PATH", ""))
    if go is None:
        raise GoMissingError(
            "building Toxiproxy needs Go and no `go` is on PATH: install Go (https://go.dev/dl), or put a "
            f"{BINARY} {VERSION} on PATH, or do without: the embedded server needs neither"
        )
    target_dir = target_dir or cache_dir(environ)
    target_dir.mkdir(parents=True, exist_ok=True)
    # A GOBIN of its own: the binary is called just `server`, and a half-written one must not be found.
    with tempfile.TemporaryDirectory(dir=target_dir, prefix="build-") as gobin:
        _go_install(go, {**environ, "GOBIN": gobin}, timeout_s)
        installed = target_dir / BINARY
        (Path(gobin) / "server").replace(installed)
    return installed


def _go_install(go: str, environ: Mapping[str, str], timeout_s: float) -> None:
    # Without the flag the binary says its version is "git": only Toxiproxy's own release build sets it.
    flags = f"-X {_MODULE}.Version={VERSION}"
    command = [go, "install", "-ldflags", flags, f"{_MODULE}/cmd/server@v{VERSION}"]
    try:
        done = subprocess.run(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InstallError(
            f"`{' '.join(command)}` did not finish within {timeout_s:g} s; try again"
        ) from None
    if done.returncode != 0:
        said = done.stderr.strip()[-OUTPUT_CHARS_SHOWN:]
        raise InstallError(f"`{' '.join(command)}` failed with exit code {done.returncode}:\n{said}")


def _is_checkout(directory: Path) -> bool:
    pyproject = directory / "pyproject.toml"
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return False
    return isinstance(project, dict) and project.get("name") == _PROJECT
