"""Fixtures of the bench's own tests: load tools of both makes, an echo, a way to run the generator."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.bench.processes import Process, run_once
from tests.bench.subjects import start_echo
from tests.bench.toolchain import Tools, find_tools, python_tools

EVERYWHERE: frozenset[int] = frozenset()


@pytest.fixture(scope="session")
def best_tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return find_tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture(params=["native", "python"])
def tools(request: pytest.FixtureRequest, best_tools: Tools) -> Tools:
    if request.param == "python":
        return python_tools()
    if not best_tools.native:
        pytest.skip(best_tools.note)
    return best_tools


Echo = Callable[..., tuple[str, Process]]
Generate = Callable[..., Mapping[str, Any]]


@pytest.fixture
def echo(tools: Tools, tmp_path: Path) -> Iterator[Echo]:
    """Start an echo with these options; it is stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> tuple[str, Process]:
            address, process = start_echo(tools, tmp_path, EVERYWHERE, *options)
            stack.callback(process.stop)
            return address, process

        yield start


@pytest.fixture
def generate(tools: Tools) -> Generate:
    """Run the generator against an address with these options and return its JSON."""

    def run(address: str, *options: str) -> Mapping[str, Any]:
        port = address.rpartition(":")[2]
        defaults = ("--warmup-s", "0.05", "--duration-s", "0.3")
        return run_once(
            "generator", [*tools.loadgen, "--port", port, *defaults, *options], EVERYWHERE, timeout_s=30
        )

    return run


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that is bound, so that nobody else takes it, and on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
