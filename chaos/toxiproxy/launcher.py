"""Finds a Toxiproxy, starts it where it must be started, and stops it for certain."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from chaos.ports import free_port
from chaos.processes import guarded
from chaos.toxiproxy.client import ToxiproxyClient
from chaos.toxiproxy.errors import DiedError, LaunchError, RequestError
from chaos.toxiproxy.identity import EMBEDDED_SERVER
from chaos.toxiproxy.install import BINARY, cache_dir

URL_VARIABLE: Final = "TOXIPROXY_URL"
KIND_VARIABLE: Final = "RELAY_CHAOS_TOXIPROXY"
"""``embedded`` passes over every real one."""
READY_TIMEOUT_S: Final = 10.0
READY_POLL_S: Final = 0.02
PROBE_TIMEOUT_S: Final = 1.0
STOP_TIMEOUT_S: Final = 3.0
LAUNCH_ATTEMPTS: Final = 3
LOG_CHARS_SHOWN: Final = 1000
# What the real server prints when its port is taken; it does not exit then.
LISTEN_FAILED: Final = "Server finished with error"

Kind = Literal["real", "embedded"]


@dataclass(frozen=True, slots=True)
class Running:
    """A Toxiproxy that somebody else runs."""

    url: str

    def __str__(self) -> str:
        return f"the Toxiproxy at {self.url} ({URL_VARIABLE})"


@dataclass(frozen=True, slots=True)
class Binary:
    """A real Toxiproxy on this machine."""

    path: Path

    def __str__(self) -> str:
        return f"the real Toxiproxy, {self.path}"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The project's own server, run as a process of its own."""

    def __str__(self) -> str:
        return "the embedded server"


Choice = Running | Binary | Embedded


def find(environ: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Choice:
    """Which Toxiproxy to use: TOXIPROXY_URL, else a binary (PATH, then cache), else the embedded server.

    With ``RELAY_CHAOS_TOXIPROXY=embedded`` the embedded one in any case.
    """
    if environ.get(KIND_VARIABLE, "") == "embedded":
        return Embedded()
    url = environ.get(URL_VARIABLE, "")
    if url:
        return Running(url)
    binary = find_binary(environ, cwd)
    return Binary(binary) if binary else Embedded()


def find_binary(environ: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Path | None:
    """A `toxiproxy-server` on PATH, else in the project's cache, else None."""
    places = (environ.get("PATH", ""), str(cache_dir(environ, cwd)))
    found = (shutil.which(BINARY, path=place) for place in places if place)
    return next((Path(path) for path in found if path), None)


class Toxiproxy:
    """A Toxiproxy to talk to. As a context manager it stops on leaving.

    `kind` says which it is. `pid` and `log_path` are None where somebody else runs it; `stop` leaves it be.
    """

    def __init__(
        self,
        *,
        url: str,
        kind: Kind,
        version: str,
        process: subprocess.Popen[bytes] | None = None,
        log_path: Path | None = None,
    ) -> None:
        self.url = url
        self.kind: Kind = kind
        self.version = version
        self.log_path = log_path
        self._process = process

    def __repr__(self) -> str:
        return f"<Toxiproxy {self.kind} {self.version} at {self.url}>"

    @property
    def pid(self) -> int | None:
        """The process started for it, if one was."""
        return self._process.pid if self._process else None

    def client(self, timeout_s: float = 5.0) -> ToxiproxyClient:
        """A client for its API."""
        return ToxiproxyClient(self.url, timeout_s)

    def check(self) -> None:
        """Raise DiedError if its process has ended, or nobody answers at its URL any more."""
        if self._process is not None and self._process.poll() is not None:
            raise DiedError(
                f"the {self.kind} Toxiproxy at {self.url} (pid {self.pid}) has ended with exit code "
                f"{self._process.returncode}; {_log_tail(self.log_path)}"
            )
        try:
            self.client(PROBE_TIMEOUT_S).version()
        except RequestError as error:
            raise DiedError(f"the {self.kind} Toxiproxy at {self.url} does not answer: {error}") from None

    def stop(self) -> None:
        """End the process if it was started here: politely, and after 3 s for certain. Idempotent."""
        if self._process is not None:
            _end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()


def launch(
    choice: Choice | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    seed: int = 0,
    log_dir: Path | None = None,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Toxiproxy:
    """Start the chosen Toxiproxy (by default the one `find` names), or join the running one; ready on return.

    Port 0 takes a free one. `seed` decides the embedded server's draws; the real one has no use for it. Its
    output goes to a file in `log_dir` (by default a new temporary directory). Raises LaunchError where it is
    not ready within `ready_timeout_s`; no process is left then.
    On Linux the process dies with the thread that called this, if that ends without stopping it.
    """
    choice = choice or find()
    if isinstance(choice, Running):
        return _join(choice)
    log_dir = log_dir or Path(tempfile.mkdtemp(prefix="toxiproxy-"))
    log_dir.mkdir(parents=True, exist_ok=True)
    attempts = LAUNCH_ATTEMPTS if port == 0 else 1
    for attempt in range(1, attempts + 1):
        # The real server would not say what it got for port 0. So a free one is looked for, which may be lost
        # again before it is bound.
        command = _command(choice, host, port or free_port(host), seed)
        try:
            return _start(command, log_dir, ready_timeout_s)
        except _PortLostError as error:
            if attempt == attempts:
                raise LaunchError(str(error)) from None
    raise AssertionError("unreachable: the last attempt returns or raises")


class _PortLostError(Exception):
    """The port was taken before the server could have it."""


def _join(choice: Running) -> Toxiproxy:
    try:
        client = ToxiproxyClient(choice.url, PROBE_TIMEOUT_S)
        version, maker = client.version(), client.server_header()
    except (RequestError, ValueError) as error:
        why = error.message if isinstance(error, RequestError) else error
        raise LaunchError(
            f"{URL_VARIABLE} is {choice.url} and no Toxiproxy answers there: {why}; "
            f"start it, or unset {URL_VARIABLE} to let one be started"
        ) from None
    kind: Kind = "embedded" if maker == EMBEDDED_SERVER else "real"
    return Toxiproxy(url=client.url, kind=kind, version=version)


@dataclass(frozen=True, slots=True)
class _Command:
    """What is run, and where it will answer."""

    arguments: list[str]
    kind: Kind
    url: str
    log_name: str


def _command(choice: Binary | Embedded, host: str, port: int, seed: int) -> _Command:
    options = ["--host", host, "--port", str(port), "--seed", str(seed)]
    kind: Kind
    match choice:
        case Binary(path):
            kind, program = "real", [str(path)]
        case Embedded():
            kind, program = "embedded", [sys.executable, "-m", "chaos.toxiproxy", "serve"]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return _Command([*program, *options], kind, url, f"toxiproxy-{kind}-{port}.log")


def _start(command: _Command, log_dir: Path, ready_timeout_s: float) -> Toxiproxy:
    log_path = log_dir / command.log_name
    process = _spawn(command, log_path)
    try:
        version = _await_ready(process, command.url, log_path, ready_timeout_s)
    except BaseException:
        _end(process)
        raise
    return Toxiproxy(url=command.url, kind=command.kind, version=version, process=process, log_path=log_path)


def _spawn(command: _Command, log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("wb") as log:
        return subprocess.Popen(
            guarded(command.arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C must not take it away from whoever uses it to wind down in order.
            start_new_session=True,
        )


def _await_ready(process: subprocess.Popen[bytes], url: str, log_path: Path, timeout_s: float) -> str:
    """The version, as soon as it answers. Raises _PortLostError and LaunchError."""
    client = ToxiproxyClient(url, PROBE_TIMEOUT_S)
    give_up_at_s = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at_s:
        log = log_path.read_text(errors="replace")
        if LISTEN_FAILED in log or (process.poll() is not None and "address already in use" in log):
            raise _PortLostError(f"Toxiproxy could not listen at {url}; {_log_tail(log_path)}")
        if process.poll() is not None:
            ended = f"Toxiproxy ended with exit code {process.returncode} before it was ready"
            raise LaunchError(f"{ended}; {_log_tail(log_path)}")
        try:
            return client.version()
        except RequestError:
            time.sleep(READY_POLL_S)
    raise LaunchError(f"no Toxiproxy answered at {url} within {timeout_s:g} s; {_log_tail(log_path)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_S)


def _log_tail(log_path: Path | None) -> str:
    if log_path is None:
        return "its log is not ours to read"
    tail = log_path.read_text(errors="replace").strip()[-LOG_CHARS_SHOWN:]
    return f"its log, {log_path}, ends:\n{tail}" if tail else f"its log, {log_path}, is empty"
