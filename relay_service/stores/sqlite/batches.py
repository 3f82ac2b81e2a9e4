"""Group commit: all writes that wait are one transaction, and a failing one hurts only its own caller."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import apsw

from relay_service.stores.interface import StoreError
from relay_service.stores.sqlite.clock import StoreClock
from relay_service.stores.sqlite.errors import as_store_error
from relay_service.stores.sqlite.lane import Outcome, Waiting
from relay_service.stores.sqlite.running import run
from relay_service.stores.statements import Rows

_RunOne: TypeAlias = Callable[[Waiting, float, set[str]], Outcome]
"""Runs one write of a batch, at the store's time; adds what it notifies."""


class _BatchLostError(Exception):
    """SQLite gave up the whole transaction, not one statement of it."""

    def __init__(self, cause: apsw.Error) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _OneFailedError(Exception):
    """A write failed without a savepoint to go back to: nothing of its batch can stay."""


GUARDED_AFTER_FAILURE = 100
"""Batches that have savepoints from the start after one in which a write failed: who fails comes again."""


class WriteBatches:
    """The one writer. State: the last fence, what went wrong last (`trouble`, empty after a commit), and how
    many batches more are guarded.

    Savepoints cost as much as the writes between them, and hardly any write fails. So a batch is first run
    without; should one of it fail, all is rolled back and run again, each write in a savepoint of its own.
    """

    def __init__(self, connection: apsw.Connection, path: str, clock: StoreClock) -> None:
        self._connection = connection
        self._path = path
        self._clock = clock
        rows: Rows = connection.execute("SELECT last_fence, clock FROM store").fetchall()
        self._last_fence: int = rows[0][0]
        self._fence_written = self._last_fence
        clock.anchor(rows[0][1])
        self.trouble = ""
        self._guarded_left = 0
        self.commits = 0
        self.rows = 0

    def run(self, batch: Sequence[Waiting]) -> tuple[Sequence[Outcome], set[str]]:
        """One commit for all. When that fails nobody's write happened, and everybody is told."""
        topics: set[str] = set()
        try:
            outcomes = self._commit_cheaply(batch, topics)
        except (apsw.Error, _BatchLostError) as error:
            self._roll_back()
            told = as_store_error(error.cause if isinstance(error, _BatchLostError) else error, self._path)
            self.trouble = str(told)
            return [Outcome(waiting.future, error=told) for waiting in batch], set()
        self.trouble = ""
        self.commits += 1
        self.rows += len(batch)
        return outcomes, topics

    def _commit_cheaply(self, batch: Sequence[Waiting], topics: set[str]) -> Sequence[Outcome]:
        if self._guarded_left == 0:
            try:
                return self._commit(batch, topics, self._unguarded)
            except _OneFailedError:
                self._roll_back()
                topics.clear()
                self._guarded_left = GUARDED_AFTER_FAILURE
        self._guarded_left -= 1
        return self._commit(batch, topics, self._guarded)

    def _commit(self, batch: Sequence[Waiting], topics: set[str], one: _RunOne) -> Sequence[Outcome]:
        now = self._clock.now()
        self._connection.execute("BEGIN IMMEDIATE")
        outcomes = [one(waiting, now, topics) for waiting in batch]
        mark = self._clock.mark_to_write(now)
        if mark is not None or self._last_fence != self._fence_written:
            self._connection.execute(
                "UPDATE store SET last_fence = ?1, clock = max(clock, ?2)", (self._last_fence, mark or 0.0)
            )
        self._connection.execute("COMMIT")
        self._fence_written = self._last_fence
        if mark is not None:
            self._clock.marked(mark)
        return outcomes

    def _unguarded(self, waiting: Waiting, now: float, topics: set[str]) -> Outcome:
        try:
            value = run(self._connection, waiting.operation(now), self._next_fence, topics)
        except apsw.Error as error:
            if not self._connection.in_transaction:
                raise _BatchLostError(error) from error
            raise _OneFailedError from error
        except Exception as error:
            raise _OneFailedError from error
        return Outcome(waiting.future, value)

    def _guarded(self, waiting: Waiting, now: float, topics: set[str]) -> Outcome:
        self._connection.execute("SAVEPOINT one")
        own_topics: set[str] = set()
        try:
            value = run(self._connection, waiting.operation(now), self._next_fence, own_topics)
        except apsw.Error as error:
            if not self._connection.in_transaction:
                raise _BatchLostError(error) from error
            return self._undone(waiting, as_store_error(error, self._path))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller; the thread lives on
            return self._undone(waiting, error)
        self._connection.execute("RELEASE one")
        topics |= own_topics
        return Outcome(waiting.future, value)

    def _undone(self, waiting: Waiting, error: Exception) -> Outcome:
        self._connection.execute("ROLLBACK TO one")
        self._connection.execute("RELEASE one")
        return Outcome(waiting.future, error=error)

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except apsw.Error as error:
                self.trouble = str(error)

    def _next_fence(self) -> int:
        self._last_fence += 1
        return self._last_fence


class ReadBatches:
    """Reads that wait together see one state of the store: the newest."""

    def __init__(self, connection: apsw.Connection, path: str, clock: StoreClock) -> None:
        self._connection = connection
        self._path = path
        self._clock = clock

    def run(self, batch: Sequence[Waiting]) -> tuple[Sequence[Outcome], set[str]]:
        """Each on its own: a failing read hurts only its caller."""
        try:
            self._connection.execute("BEGIN")
        except apsw.Error as error:
            told = as_store_error(error, self._path)
            return [Outcome(waiting.future, error=told) for waiting in batch], set()
        outcomes = [self._one(waiting) for waiting in batch]
        try:
            self._connection.execute("ROLLBACK")
        except apsw.Error as error:
            # The transaction is gone already; the reads have told their callers what went wrong.
            if self._connection.in_transaction:
                told = as_store_error(error, self._path)
                return [Outcome(outcome.future, error=told) for outcome in outcomes], set()
        return outcomes, set()

    def _one(self, waiting: Waiting) -> Outcome:
        try:
            value = run(self._connection, waiting.operation(self._clock.now()), _no_fence, set())
        except apsw.Error as error:
            return Outcome(waiting.future, error=as_store_error(error, self._path))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller; the thread lives on
            return Outcome(waiting.future, error=error)
        return Outcome(waiting.future, value)


def _no_fence() -> int:
    raise StoreError("a read takes no fence")
