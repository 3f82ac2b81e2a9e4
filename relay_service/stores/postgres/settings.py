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
    idle_transaction_s: float = 2.0
    """The server gives up a transaction whose relay says nothing for so long: one that was stopped in the
    middle of it (SIGSTOP, a suspended machine) would hold its locks, and with them every other relay."""
    queue_limit: int = 10_000
    """Operations that may wait for a connection; beyond it callers are refused."""
    batch_limit: int = 64
    """Writes of one kind that one commit joins at most."""
    lanes: int = 2
    """Transactions of joined writes of one kind that may be under way at a time."""
    lock_patience_s: float = 0.25
    """How long joined writes wait for somebody else's lock before each goes alone."""
    safety_poll_s: float = 5.0
    """How long a waiter trusts that every notification reached it."""
    health_check_s: float = 2.0
    """How often the listening connection is asked whether it is alive; its answer also sets the clock."""
    reconnect_first_s: float = 0.05
    reconnect_most_s: float = 1.0
    """Waits between attempts to reach a lost server: doubled from the first to the most, jittered."""
    retries: int = 5
    """How often a transaction that lost to another (serialization, deadlock) is tried again."""
