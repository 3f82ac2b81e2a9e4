"""The ledger as the event loop sees it: futures in front of one writer thread with group commit.

Everything that touches the file goes through one bounded queue to one thread. The thread takes what has
gathered, runs it in one transaction, commits, and only then lets the loop settle the futures: one sync pays
for many charges, and nothing is acknowledged before it is durable. The order of the queue is the order of
effects, and the guard is looked up and written in the same transaction, so two calls with one key cannot
both pass it.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import apsw
from google.protobuf.message import Message

from downstream_service.book import Book, KeyPolicy, KeyReusedError, Page, PageQuery, Posted, Scope
from protos.downstream.v1 import payment_pb2

T = TypeVar("T")

GROUP_SIZE_MAX: Final = 256
PENDING_MAX: Final = 20_000
CLOSE_TIMEOUT_S: Final = 5.0


class LedgerError(Exception):
    """The ledger cannot be opened; the message says which file and why."""


class LedgerUnavailableError(Exception):
    """The ledger could not do this: its disk failed, too much waits for it, or it is closed."""


class LedgerClosingError(Exception):
    """Nothing new will come: the service shuts down."""


@dataclass(slots=True, eq=False)
class _Job:
    operation: Callable[[Book], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class Ledger:
    """At most one effect per key, durable before it is acknowledged. Used from one event loop.

    Mutable state: the queue's length, the newest sequence, the event that wakes followers, and two counts.
    """

    def __init__(self, path: str, key_policy: KeyPolicy) -> None:
        """Open the ledger at ``path`` (or ``":memory:"``) and start its writer; raises ``LedgerError``.

        Must be called with a running event loop.
        """
        try:
            self._book = Book(path, key_policy)
        except (apsw.Error, ValueError) as error:
            raise LedgerError(f"cannot use {path} as the ledger: {error}") from error
        self._key_policy = key_policy
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pending = 0
        self._closed = False
        self._last_sequence = self._book.last_sequence
        self._news = asyncio.Event()
        self._following = True
        self.effects = 0
        self.replays = 0
        self._writer = threading.Thread(target=self._write_groups, name="ledger-writer", daemon=True)
        self._writer.start()

    @property
    def key_policy(self) -> KeyPolicy:
        """What keys are good for in this ledger."""
        return self._key_policy

    def charge(self, request: payment_pb2.ChargeRequest, key: str) -> asyncio.Future[Posted]:
        """Apply one charge; the future fails with ``KeyReusedError`` or ``LedgerUnavailableError``."""
        return self._submit(lambda book: book.charge(request, key))

    def charge_batch(
        self, request: payment_pb2.ChargeBatchRequest, problems: dict[int, str], key: str
    ) -> asyncio.Future[Posted]:
        """Apply a batch; the future fails with ``KeyReusedError`` or ``LedgerUnavailableError``."""
        return self._submit(lambda book: book.charge_batch(request, problems, key))

    def find(self, scope: Scope, key: str, request: Message) -> asyncio.Future[Posted | None]:
        """Look for the first reply under a key; the future fails as that of ``charge``."""
        return self._submit(lambda book: book.find(scope, key, request))

    def page(self, query: PageQuery) -> asyncio.Future[Page]:
        """Read one page; the future fails with ``LedgerUnavailableError``."""
        return self._submit(lambda book: book.page(query))

    async def after(self, sequence: int, limit: int) -> list[payment_pb2.Charge]:
        """Wait until there are charges after ``sequence`` and return up to ``limit`` of them, oldest first.

        Raises ``LedgerClosingError`` once ``stop_following`` was called.
        """
        while self._following and self._last_sequence <= sequence:
            await self._news.wait()
        if not self._following:
            raise LedgerClosingError
        return await self._submit(lambda book: book.after(sequence, limit))

    def stop_following(self) -> None:
        """End every ``after`` that waits or will wait."""
        self._following = False
        self._wake_followers()

    async def close(self) -> None:
        """Finish what was handed in, close the file, end the thread; waits at most ``CLOSE_TIMEOUT_S``."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        # The thread is a daemon: should the disk be stuck for good, the process can still end.
        await asyncio.to_thread(self._writer.join, CLOSE_TIMEOUT_S)

    def _submit(self, operation: Callable[[Book], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(LedgerUnavailableError("the ledger is closed"))
        elif self._pending >= PENDING_MAX:
            future.set_exception(LedgerUnavailableError(f"{PENDING_MAX} operations wait for the ledger"))
        else:
            self._pending += 1
            self._jobs.put(_Job(operation, future))
        return future

    # On the loop

    def _settle(self, jobs: list[_Job], last_sequence: int) -> None:
        self._pending -= len(jobs)
        self.effects += last_sequence - self._last_sequence
        if last_sequence != self._last_sequence:
            self._last_sequence = last_sequence
            self._wake_followers()
        for job in jobs:
            if isinstance(job.result, Posted) and job.result.replayed:
                self.replays += 1
            if job.future.done():
                continue
            if job.error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(job.error)

    def _wake_followers(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # On the writer's thread

    def _write_groups(self) -> None:
        closing = False
        while not closing:
            jobs, closing = self._next_group()
            if jobs:
                self._run_group(jobs)
                # The loop is gone only if it was ended without close(); then nobody waits for the futures.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._settle, jobs, self._book.last_sequence)
        self._book.close()

    def _next_group(self) -> tuple[list[_Job], bool]:
        """Wait for one job and take all that have gathered meanwhile; says whether the ledger is closing."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == GROUP_SIZE_MAX:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _run_group(self, jobs: list[_Job]) -> None:
        try:
            self._book.begin()
            for job in jobs:
                try:
                    job.result = job.operation(self._book)
                except KeyReusedError as error:
                    # Raised before anything is written, so the others of the group are not concerned.
                    job.error = error
            self._book.commit()
        except Exception as error:  # noqa: BLE001 (a thread that dies would leave every caller waiting)
            self._undo(jobs, error)

    def _undo(self, jobs: list[_Job], cause: Exception) -> None:
        # Should even this fail, the next group's BEGIN fails and reports it.
        with contextlib.suppress(apsw.Error):
            self._book.rollback()
        for job in jobs:
            job.result, job.error = None, LedgerUnavailableError(f"the ledger could not write: {cause}")
