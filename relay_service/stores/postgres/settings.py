"""Where the server is and how much of it a relay may use."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """Times in seconds. Tables go into the first schema of the ``search_path`` that the address may name
    (``?search_path=relay``)."""

    url: str
    pool_min: int = 2
    pool_max: int = 10
    connect_timeout_s: float = 5.0
    statement_timeout_s: float = 10.0
    """The server ends a statement that takes longer, waiting for a lock included."""
    queue_limit: int = 10_000
    """Operations that may wait for a connection; beyond it callers are refused."""
    safety_poll_s: float = 5.0
    """How long a waiter trusts that every notification reached it."""
    health_check_s: float = 2.0
    """How often the listening connection is asked whether it is alive; its answer also sets the clock."""
    reconnect_first_s: float = 0.05
    reconnect_most_s: float = 1.0
    """Waits between attempts to reach a lost server: doubled from the first to the most, jittered."""
    retries: int = 5
    """How often a transaction that lost to another (serialization, deadlock) is tried again."""
