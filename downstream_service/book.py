"""The ledger's tables and every statement on them: the synchronous side, used by one thread.

Two tables. ``charges`` is what happened. ``first_replies`` is the guard: its primary key lets a key in
once, and it keeps the reply, so that a duplicate gets the same bytes. Both are written in one transaction,
so there is never a charge without its guard or a guard without its charge, wherever a crash falls.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import apsw
import grpc
from google.protobuf.message import Message

from protos.downstream.v1 import payment_pb2

IN_MEMORY: Final = ":memory:"
SCHEMA_VERSION: Final = 1
LOCK_WAIT_MS: Final = 1_000
WAL_CHECKPOINT_PAGES: Final = 4_000

# `item` tells effects under one key apart: items under their batch's key have an index, the rest -1.
SINGLE_ITEM: Final = -1

_SCHEMA: Final = """
CREATE TABLE charges (
    sequence        INTEGER PRIMARY KEY,
    charge_id       TEXT    NOT NULL UNIQUE,
    account         TEXT    NOT NULL,
    amount_minor    INTEGER NOT NULL,
    currency        TEXT    NOT NULL,
    note            TEXT    NOT NULL,
    idempotency_key TEXT    NOT NULL,
    item            INTEGER NOT NULL,
    created_ns      INTEGER NOT NULL
) STRICT;
CREATE INDEX charges_by_key ON charges (idempotency_key, item) WHERE idempotency_key <> '';
CREATE INDEX charges_by_account ON charges (account, sequence);
CREATE TABLE first_replies (
    scope           TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    fingerprint     BLOB NOT NULL,
    reply           BLOB NOT NULL,
    PRIMARY KEY (scope, idempotency_key)
) STRICT, WITHOUT ROWID;
"""

_COLUMNS: Final = "sequence, charge_id, account, amount_minor, currency, note, idempotency_key, created_ns"
_INSERT: Final = f"INSERT INTO charges ({_COLUMNS}, item) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 (constants)


class KeyPolicy(Enum):
    """What an idempotency key is good for."""

    ENFORCE = "at most one effect per key"
    RECORD_ONLY = "every call is an effect; keys are written down, so that duplicates can be counted"


class Scope(Enum):
    """Keys of single charges and of whole batches do not meet."""

    CHARGE = "charge"
    BATCH = "batch"


class KeyReusedError(Exception):
    """The key came before with another request."""

    def __init__(self) -> None:
        super().__init__("the idempotency key was first used with another request")


@dataclass(frozen=True, slots=True)
class Posted:
    """An effect in the ledger: the reply's bytes, its last sequence, whether it was there before."""

    reply: bytes
    sequence: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class PageQuery:
    """One page of the ledger, newest first; 0 and empty mean no restriction."""

    limit: int
    before_sequence: int = 0
    account: str = ""
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Charges newest first, whether older ones remain, and the state of the whole ledger."""

    charges: tuple[payment_pb2.Charge, ...]
    has_more: bool
    total_charges: int
    duplicate_keys: int


def fingerprint(request: Message) -> bytes:
    """Return the SHA-256 of a request's bytes in their canonical order."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


class Book:
    """An open ledger file. Not thread-safe: its owner serialises the calls.

    Mutable state beside the file: the last sequence and the number of keys charged more than once, both read
    from the file at the start and again after a rollback.
    """

    def __init__(self, path: str, key_policy: KeyPolicy, now_ns: Callable[[], int] = time.time_ns) -> None:
        """Open or create the ledger; raises ``apsw.Error``, or ``ValueError`` for a file of another kind."""
        self._now_ns = now_ns
        self._key_policy = key_policy
        self._db = apsw.Connection(path)
        try:
            self._prepare()
            self._recount()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file; committed work is safe with or without it."""
        self._db.close()

    # Transactions

    def begin(self) -> None:
        """Start a transaction; reads see what was written in it."""
        self._db.execute("BEGIN")

    def commit(self) -> None:
        """Make the transaction durable: it survives a crash, and power loss if the disk keeps its word."""
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, if SQLite has not done so itself."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._recount()

    # Effects

    def charge(self, request: payment_pb2.ChargeRequest, key: str) -> Posted:
        """Write one charge, unless ``key`` has one. Raises ``KeyReusedError``."""
        if (first := self.find(Scope.CHARGE, key, request)) is not None:
            return first
        charge = self._insert(request, key, SINGLE_ITEM)
        reply = payment_pb2.ChargeResponse(charge=charge).SerializeToString(deterministic=True)
        self._guard(Scope.CHARGE, key, request, reply)
        return Posted(reply, charge.sequence, replayed=False)

    def charge_batch(
        self, request: payment_pb2.ChargeBatchRequest, problems: dict[int, str], key: str
    ) -> Posted:
        """Write the valid items, in order, unless ``key`` has a batch. Raises ``KeyReusedError``.

        ``problems`` says by index which items are invalid, and why.
        """
        if (first := self.find(Scope.BATCH, key, request)) is not None:
            return first
        reply = payment_pb2.ChargeBatchResponse()
        for index, item in enumerate(request.items):
            if index in problems:
                reply.results.add(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message=problems[index])
            else:
                reply.results.append(self._charge_item(item, key, index))
        encoded = reply.SerializeToString(deterministic=True)
        self._guard(Scope.BATCH, key, request, encoded)
        return Posted(encoded, self.last_sequence, replayed=False)

    def find(self, scope: Scope, key: str, request: Message) -> Posted | None:
        """Return the first reply under ``key``, if it has one that counts. Raises ``KeyReusedError``."""
        if not key or self._key_policy is KeyPolicy.RECORD_ONLY:
            return None
        row = self._row(
            "SELECT fingerprint, reply FROM first_replies WHERE scope = ? AND idempotency_key = ?",
            (scope.value, key),
        )
        if row is None:
            return None
        first_fingerprint, reply = row
        if first_fingerprint != fingerprint(request):
            raise KeyReusedError
        return Posted(reply, 0, replayed=True)

    # Reads

    def page(self, query: PageQuery) -> Page:
        """Read one page, newest first."""
        conditions, values = ["1"], list[str | int]()
        if query.before_sequence:
            conditions.append("sequence < ?")
            values.append(query.before_sequence)
        if query.account:
            conditions.append("account = ?")
            values.append(query.account)
        if query.idempotency_key:
            conditions.append("idempotency_key = ? AND idempotency_key <> ''")
            values.append(query.idempotency_key)
        rows = self._db.execute(
            # One more than asked for tells whether the page is the last.
            f"SELECT {_COLUMNS} FROM charges WHERE {' AND '.join(conditions)} "  # noqa: S608 (constants only)
            "ORDER BY sequence DESC LIMIT ?",
            (*values, query.limit + 1),
        ).fetchall()
        charges = tuple(_charge(row) for row in rows[: query.limit])
        return Page(charges, len(rows) > query.limit, self.last_sequence, self.duplicate_keys)

    def after(self, sequence: int, limit: int) -> list[payment_pb2.Charge]:
        """Read up to ``limit`` charges after ``sequence``, oldest first."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM charges WHERE sequence > ? ORDER BY sequence LIMIT ?",  # noqa: S608 (constants only)
            (sequence, limit),
        )
        return [_charge(row) for row in rows]

    # Insides

    def _prepare(self) -> None:
        self._db.set_busy_timeout(LOCK_WAIT_MS)
        # Two services on one file would number charges alike. The lock ends with the process, even killed.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        # FULL syncs every commit: what was acknowledged survives a power cut, not only a kill.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {WAL_CHECKPOINT_PAGES}")
        with self._db:
            version = self._number("PRAGMA user_version")
            tables = self._number("SELECT count(*) FROM sqlite_schema")
            if version == 0 and tables == 0:
                self._db.execute(_SCHEMA)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise ValueError(
                    f"a database, but no ledger of version {SCHEMA_VERSION} (its user_version is {version})"
                )
            else:
                # A file that cannot be written is to be found out now, not by the first charge.
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _recount(self) -> None:
        self.last_sequence = self._number("SELECT coalesce(max(sequence), 0) FROM charges")
        self.duplicate_keys = self._number(
            "SELECT count(*) FROM (SELECT 1 FROM charges WHERE idempotency_key <> '' "
            "GROUP BY idempotency_key, item HAVING count(*) > 1)"
        )

    def _charge_item(
        self, item: payment_pb2.ChargeBatchItem, batch_key: str, index: int
    ) -> payment_pb2.ChargeBatchResult:
        if not item.idempotency_key:
            return payment_pb2.ChargeBatchResult(charge=self._insert(item.charge, batch_key, index))
        try:
            posted = self.charge(item.charge, item.idempotency_key)
        except KeyReusedError as error:
            code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
            return payment_pb2.ChargeBatchResult(code=code, message=str(error))
        charge = payment_pb2.ChargeResponse.FromString(posted.reply).charge
        return payment_pb2.ChargeBatchResult(charge=charge, replayed=posted.replayed)

    def _insert(self, request: payment_pb2.ChargeRequest, key: str, item: int) -> payment_pb2.Charge:
        sequence = self.last_sequence + 1
        row = (
            sequence,
            f"ch_{sequence:010d}",
            request.account,
            request.amount_minor,
            request.currency,
            request.note,
            key,
            self._now_ns(),
        )
        self._db.execute(_INSERT, (*row, item))
        self.last_sequence = sequence
        if key and self._count_of(key, item) == 2:
            self.duplicate_keys += 1
        return _charge(row)

    def _count_of(self, key: str, item: int) -> int:
        # Looked up, not derived from the guard: the count is there to catch a guard that fails.
        return self._number(
            "SELECT count(*) FROM (SELECT 1 FROM charges "
            "WHERE idempotency_key = ? AND idempotency_key <> '' AND item = ? LIMIT 3)",
            (key, item),
        )

    def _guard(self, scope: Scope, key: str, request: Message, reply: bytes) -> None:
        if key and self._key_policy is KeyPolicy.ENFORCE:
            self._db.execute(
                "INSERT INTO first_replies (scope, idempotency_key, fingerprint, reply) VALUES (?, ?, ?, ?)",
                (scope.value, key, fingerprint(request), reply),
            )

    def _row(self, statement: str, values: tuple[str | int, ...] = ()) -> tuple[Any, ...] | None:
        return self._db.execute(statement, values).fetchone()

    def _number(self, statement: str, values: tuple[str | int, ...] = ()) -> int:
        row = self._row(statement, values)
        if row is None:
            raise RuntimeError(f"no row from: {statement}")
        return int(row[0])


def _charge(row: tuple[Any, ...]) -> payment_pb2.Charge:
    sequence, charge_id, account, amount_minor, currency, note, key, created_ns = row
    charge = payment_pb2.Charge(
        charge_id=charge_id,
        sequence=sequence,
        account=account,
        amount_minor=amount_minor,
        currency=currency,
        note=note,
        idempotency_key=key,
    )
    charge.create_time.FromNanoseconds(created_ns)
    return charge
