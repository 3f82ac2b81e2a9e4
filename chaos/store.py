"""Where the relay of a stack keeps keys and jobs: nowhere, in a file, or in a PostgreSQL of its own."""

import asyncio
import shutil
import socket
import tempfile
from enum import Enum
from pathlib import Path

from chaos import postgres
from chaos.processes import ManagedProcess, ProcessError

SQLITE_FILE = "relay.sqlite"


class StoreEngine(Enum):
    """The engines that a stack can have."""

    SQLITE = "sqlite"
    """A file of the run's folder."""
    POSTGRES = "postgres"
    """A server that lives and dies with the run, behind a proxy of its own."""


class PostgresServer(ManagedProcess):
    """A throw-away PostgreSQL that keeps its data and its address over restarts.

    State: the folder of its data, which is outside the run's (root's server runs as another user, who must
    be able to enter it), and its address.
    """

    def __init__(self, log_path: Path) -> None:
        super().__init__("store", log_path)
        self.address = ""
        self._folder: Path | None = None

    async def launch(self) -> None:
        """Start, or start again. Raises `ProcessError`."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="relay-chaos-store-"))
            self.address = f"127.0.0.1:{_free_port()}"
        try:
            command = postgres.command(self._folder, self.address)
        except postgres.PostgresMissingError as error:
            raise ProcessError(self.name, f"cannot be started: {error}", self.log_path) from error
        await self.start(command, postgres.START_TIMEOUT_S)

    async def remove(self) -> None:
        """Stop it and take its data away."""
        try:
            await self.stop()
        finally:
            folder, self._folder = self._folder, None
            if folder is not None:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _free_port() -> int:
    """PostgreSQL takes no port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
