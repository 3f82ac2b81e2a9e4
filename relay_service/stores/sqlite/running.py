"""Runs a transaction's statements on a SQLite connection."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import apsw

from relay_service.stores.statements import NextFence, Notify, Rows, Run, Transaction

T = TypeVar("T")


def run(
    connection: apsw.Connection, transaction: Transaction[T], next_fence: Callable[[], int], topics: set[str]
) -> T:
    """To its end; what it notifies is added to ``topics``."""
    rows: Rows = ()
    try:
        effect = next(transaction)
        while True:
            if isinstance(effect, Run):
                rows = connection.execute(_numbered(effect.sql), effect.args).fetchall()
            elif isinstance(effect, NextFence):
                rows = ((next_fence(),),)
            elif isinstance(effect, Notify):
                topics.add(effect.topic)
            # LockOrder: there is one writer, so every order is locked already.
            effect = transaction.send(rows)
    except StopIteration as stop:
        result: T = stop.value
        return result


@lru_cache(maxsize=512)
def _numbered(sql: str) -> str:
    """``$1`` means the first argument; to SQLite it would be a name, numbered by where it first stands."""
    return re.sub(r"\$(\d+)", r"?\1", sql)
