"""Sessions of relays that stopped in the middle of a transaction: another relay finds and ends them.

A relay that is stopped (SIGSTOP, a suspended machine) keeps its sockets open, and with them its transactions
and their row locks. The server ends most of these by itself (``idle_in_transaction_session_timeout``), but
not all: once a statement was parsed and before it is bound, or while an answer that nobody reads fills the
socket, the session counts as active, and neither that limit nor ``statement_timeout`` ends it (seen with
PostgreSQL 18; ``transaction_timeout`` would end the first kind, from 17 on). Rows locked so were passed over
by every lease until the stopped process was resumed or killed.
"""

import logging

from relay_service.stores.postgres.running import Connection

APPLICATION = "resilient-relay"
"""How the sessions of relays are named in the server's list."""

_END = """
WITH stalled AS MATERIALIZED (
  SELECT pid, extract(epoch FROM clock_timestamp() - state_change)::float8 AS silent_s
  FROM pg_stat_activity
  WHERE application_name = $1 AND datname = current_database() AND usename = current_user
    AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND wait_event_type = 'Client'
    AND state_change < clock_timestamp()
      - make_interval(secs => CASE wait_event WHEN 'ClientRead' THEN $2::float8 ELSE $3::float8 END)
)
SELECT pid, silent_s FROM stalled WHERE pg_terminate_backend(pid)
"""
# Materialized: the order in which conditions of one WHERE are looked at is the planner's.

log = logging.getLogger(__name__)


async def end_stalled(connection: Connection, *, silent_s: float, unread_s: float) -> int:
    """End sessions with an open transaction whose relay says nothing for ``silent_s``, or does not read
    what the server says for ``unread_s``; returns how many.

    A relay that wakes up finds its connection closed and its transaction undone, as after any loss of the
    server. Sees the sessions of its own database role only.
    """
    ended = await connection.fetch(_END, APPLICATION, silent_s, unread_s)
    for pid, for_s in ended:
        log.warning("a stopped relay's session %d was ended: %.1f s silent in a transaction", pid, for_s)
    return len(ended)
