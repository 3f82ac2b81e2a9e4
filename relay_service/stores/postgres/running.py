"""Runs a transaction's statements on a PostgreSQL connection."""

import hashlib
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import asyncpg

from relay_service.stores.statements import (
    FOR_UPDATE,
    SKIP_LOCKED,
    LockOrder,
    NextFence,
    Notify,
    Rows,
    Run,
    Transaction,
)

T = TypeVar("T")
Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)


LOCK_ORDER = "SELECT pg_advisory_xact_lock($1)"


async def run(connection: Connection, transaction: Transaction[T], topics: set[str]) -> T:
    """To its end; what it notifies is added to ``topics``."""
    rows: Rows = ()
    try:
        effect = next(transaction)
        while True:
            match effect:
                case Run(sql, args):
                    rows = await connection.fetch(with_locks(sql), *map(storable, args))
                case NextFence():
                    rows = await connection.fetch("SELECT nextval('fences')")
                case LockOrder(tenant, order_key):
                    await connection.fetch(LOCK_ORDER, order_number(tenant, order_key))
                case Notify(topic):
                    topics.add(topic)
            effect = transaction.send(rows)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        transaction.close()


def order_number(tenant: str, order_key: str) -> int:
    """The number of an order key's lock."""
    return advisory_number("order", tenant, order_key)


def advisory_number(*names: str) -> int:
    """The number of a lock: the same in every relay, and hardly ever another's."""
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


@lru_cache(maxsize=512)
def with_locks(sql: str) -> str:
    """The statement with PostgreSQL's clauses for row locks."""
    return sql.replace(FOR_UPDATE, "FOR UPDATE").replace(SKIP_LOCKED, "FOR UPDATE SKIP LOCKED")


def storable(value: Any) -> Any:
    """The value as a column can hold it: PostgreSQL's text holds every character but one."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) and "\0" in value else value
