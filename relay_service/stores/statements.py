"""The language in which transactions are written once and run by every engine.

A transaction is a generator: it yields what it wants done, gets rows back, and returns its result. It
decides everything inside the store's transaction and touches no driver, so that the engines differ in how
they run it and not in what it means. SQL is the common subset of SQLite and PostgreSQL, with ``$1``
parameters and two comments that engines with row locks put their clauses in place of.
"""

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from relay_service.core.value import value

T = TypeVar("T")
Row: TypeAlias = Any
"""A driver's own row: unpacked and indexed like a tuple."""
Rows: TypeAlias = Sequence[Row]

FOR_UPDATE = "/* for update */"
"""Lock the rows found; waits for whoever holds them."""
SKIP_LOCKED = "/* skip locked */"
"""Lock the rows found and pass over those that somebody else holds."""


@value
class Run:
    """Run a statement; its rows come back."""

    sql: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class NextFence:
    """A number higher than all before, as the only column of the only row."""


@dataclass(frozen=True, slots=True)
class LockOrder:
    """Until the transaction ends, nobody else changes what is next for this order key. Taken before any
    row is locked, and several of them sorted, so that no two transactions wait for each other."""

    tenant: str
    order_key: str


@value
class Notify:
    """Once committed, wake whoever waits for this topic, in every relay."""

    topic: str


Effect: TypeAlias = Run | NextFence | LockOrder | Notify
Transaction: TypeAlias = Generator[Effect, Rows, T]
Operation: TypeAlias = Callable[[float], Transaction[T]]
"""Begins a transaction; the argument is the store's clock, read inside it."""


def placeholders(count: int, first: int = 1) -> str:
    """``$1, $2, …`` for a list of arguments."""
    return ", ".join(f"${number}" for number in range(first, first + count))


class Conditions:
    """A WHERE clause and its arguments, built together."""

    def __init__(self, *args: Any) -> None:
        self.args: list[Any] = list(args)
        self._terms: list[str] = []

    def add(self, term: str, *args: Any) -> None:
        """A term; each ``{}`` in it is the place of the next argument."""
        first = len(self.args) + 1
        self.args += args
        self._terms.append(term.format(*(f"${first + n}" for n in range(len(args)))))

    def among(self, column: str, values: Iterable[Any]) -> None:
        """The column is one of these; of none, never."""
        listed = list(values)
        self._terms.append(
            f"{column} IN ({placeholders(len(listed), len(self.args) + 1)})" if listed else "1 = 0"
        )
        self.args += listed

    def where(self) -> str:
        """The clause, or nothing."""
        return f" WHERE {' AND '.join(self._terms)}" if self._terms else ""


def compact_json(value: object) -> str:
    """JSON without the spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
