"""Transactions of one kind, run side by side on one connection: each statement is sent once for all of them.

Step by step every transaction says what it wants done; those that want the same statement have it bound and
executed for each of their arguments in one exchange with the server. A hundred claims so cost as many round
trips as one. They must not touch the same rows: between two steps of one, the others take theirs.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from relay_service.stores.postgres.running import LOCK_ORDER, Connection, order_number, storable, with_locks
from relay_service.stores.statements import Effect, LockOrder, NextFence, Notify, Rows, Run, Transaction

_FENCES = "SELECT nextval('fences') FROM generate_series(1, $1)"

_Wish: TypeAlias = Run | NextFence | LockOrder


async def run_in_step(
    connection: Connection, transactions: Sequence[Transaction[Any]], topics: set[str]
) -> list[Any]:
    """All to their ends; each one's result. What they notify is added to ``topics``."""
    marchers = [_Marcher(transaction, topics) for transaction in transactions]
    try:
        for marcher in marchers:
            marcher.go(())
        while under_way := [marcher for marcher in marchers if marcher.wish is not None]:
            await _step(connection, under_way)
        return [marcher.result for marcher in marchers]
    finally:
        for transaction in transactions:
            transaction.close()


class _Marcher:
    """One transaction. State: what it wants next (nothing at its end), and its result."""

    __slots__ = ("_topics", "_transaction", "result", "wish")

    def __init__(self, transaction: Transaction[Any], topics: set[str]) -> None:
        self._transaction = transaction
        self._topics = topics
        self.wish: _Wish | None = None
        self.result: Any = None

    def go(self, rows: Rows) -> None:
        """On to its next wish that only the server can grant."""
        try:
            effect: Effect = next(self._transaction) if self.wish is None else self._transaction.send(rows)
            while isinstance(effect, Notify):
                self._topics.add(effect.topic)
                effect = self._transaction.send(rows)
        except StopIteration as stop:
            self.wish, self.result = None, stop.value
        else:
            self.wish = effect


async def _step(connection: Connection, marchers: Sequence[_Marcher]) -> None:
    """One wish of each."""
    alike: dict[str, list[_Marcher]] = {}
    for marcher in marchers:
        alike.setdefault(_statement(marcher.wish), []).append(marcher)
    for sql, group in alike.items():
        answers = (
            await _fences(connection, len(group)) if sql == _FENCES else await _many(connection, sql, group)
        )
        for marcher, rows in zip(group, answers, strict=True):
            marcher.go(rows)


def _statement(wish: _Wish | None) -> str:
    match wish:
        case Run(sql, _):
            return sql
        case LockOrder():
            return LOCK_ORDER
        case _:
            return _FENCES


async def _fences(connection: Connection, count: int) -> list[Rows]:
    return [(row,) for row in await connection.fetch(_FENCES, count)]


async def _many(connection: Connection, sql: str, group: Sequence[_Marcher]) -> list[Rows]:
    """The rows that came back for each, told apart by a number in front of them."""
    each = [_arguments(marcher.wish) for marcher in group]
    numbered, tells = _numbered(sql, len(each[0]) + 1)
    arguments = [(*args, number) for number, args in enumerate(each)] if tells else each
    answers: list[list[Any]] = [[] for _ in group]
    for row in await connection.fetchmany(numbered, arguments):
        answers[row[0]].append(row[1:])
    return list(answers)


def _arguments(wish: _Wish | None) -> tuple[Any, ...]:
    match wish:
        case Run(_, args):
            return tuple(map(storable, args))
        case LockOrder(tenant, order_key):
            return (order_number(tenant, order_key),)
        case _:
            raise AssertionError("fences are not asked for one by one")


@lru_cache(maxsize=512)
def _numbered(sql: str, place: int) -> tuple[str, bool]:
    """The statement with its argument at ``place`` in front of every row that it returns, and whether it
    returns any."""
    sql = with_locks(sql)
    if sql.startswith("SELECT "):
        return f"SELECT ${place}::int, {sql.removeprefix('SELECT ')}", True
    head, returning, columns = sql.rpartition(" RETURNING ")
    return (f"{head}{returning}${place}::int, {columns}", True) if returning else (sql, False)
