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


async def run(connection: Connection, transaction: Transaction[T], topics: set[str]) -> T:
    """To its end; what it notifies is added to ``topics``."""
    rows: Rows = ()
    try:
        effect = next(transaction)
        while True:
            match effect:
                case Run(sql, args):
                    rows = await connection.fetch(_with_locks(sql), *map(_storable, args))
                case NextFence():
                    rows = await connection.fetch("SELECT nextval('fences')")
                case LockOrder(tenant, order_key):
                    number = advisory_number("order", tenant, order_key)
                    await connection.fetch("SELECT pg_advisory_xact_lock($1)", number)
                case Notify(topic):
                    topics.add(topic)
            effect = transaction.send(rows)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        transaction.close()


def advisory_number(*names: str) -> int:
    """The number of a lock: the same in every relay, and hardly ever another's."""
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


@lru_cache(maxsize=512)
def _with_locks(sql: str) -> str:
    return sql.replace(FOR_UPDATE, "FOR UPDATE").replace(SKIP_LOCKED, "FOR UPDATE SKIP LOCKED")


def _storable(value: Any) -> Any:
    """PostgreSQL's text holds every character but this one."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) and "\0" in value else value
