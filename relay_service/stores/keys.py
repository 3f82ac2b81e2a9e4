"""What may happen to an idempotency key, as transactions (`relay_service.stores.statements`)."""

import hashlib
import math
from collections.abc import Collection, Sequence

from relay_service.core.idempotency import Afterwards, Decision, Record, RecordState, Scope, decide
from relay_service.stores.interface import Claim, Claimed, InvalidPageTokenError, StoreUnavailableError
from relay_service.stores.rows import RECORD_COLUMNS, record_id, record_of, was_ambiguous
from relay_service.stores.statements import (
    FOR_UPDATE,
    SKIP_LOCKED,
    Conditions,
    NextFence,
    Notify,
    Row,
    Run,
    Transaction,
)

CLAIM_ROUNDS = 5
"""How often a claim that lost the race for a new key looks again."""
_CONTENDED = "a key changed hands too often while it was being claimed: try again"
TOMBSTONE_S = 30 * 24 * 3600.0
"""How long a key is remembered whose dead letter was given up."""

_SCOPE = "tenant = $1 AND method = $2 AND key = $3"
_INSERT = (
    "INSERT INTO keys (tenant, method, key, fingerprint, state, fence, owner, first_seen, changed_at,"
    " lease_until, expires_at, answer, reference, attempts, afterwards, was_ambiguous)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, NULL, $12, $13, 'tombstone', 0)"
    f" ON CONFLICT (tenant, method, key) DO NOTHING RETURNING {RECORD_COLUMNS}"
)


def topic_of(scope: Scope) -> str:
    """What those who wait for a key listen to."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (scope.tenant.encode(), scope.method.encode(), scope.key):
        digest.update(len(part).to_bytes(4))
        digest.update(part)
    return f"key:{digest.hexdigest()}"


def look_up(_now: float, scope: Scope) -> Transaction[Record | None]:
    """What is known of a key."""
    row = yield from _find(scope)
    return record_of(row) if row else None


def claim(now: float, wanted: Claim) -> Transaction[Claimed]:
    """Decide, and take the key when it is to be executed. Most keys are new, so that is tried first."""
    for _round in range(CLAIM_ROUNDS):
        taken = yield from _take_new(now, wanted)
        if taken is not None:
            return taken
        row = yield from _find(wanted.scope, FOR_UPDATE)
        if row is None:  # it was released in between
            continue
        record = record_of(row)
        decision = decide(record, wanted.fingerprint, now, repeatable=wanted.repeatable)
        if decision is not Decision.EXECUTE:
            return Claimed(decision, record)
        return (yield from _take_over(now, wanted, record))
    raise StoreUnavailableError(_CONTENDED)


def _take_new(now: float, wanted: Claim) -> Transaction[Claimed | None]:
    """None when the key is known."""
    fence = (yield NextFence())[0][0]
    rows = yield Run(
        _INSERT,
        (
            *_of(wanted.scope),
            wanted.fingerprint,
            RecordState.IN_PROGRESS.value,
            fence,
            wanted.owner,
            now,
            now,
            now + wanted.lease_s,
            math.inf,
            "",
            1,
        ),
    )
    return Claimed(Decision.EXECUTE, record_of(rows[0])) if rows else None


def _take_over(now: float, wanted: Claim, old: Record) -> Transaction[Claimed]:
    """The row is locked already. A forgotten answer starts afresh; anything else was of unknown outcome."""
    fence = (yield NextFence())[0][0]
    afresh = old.state is RecordState.DONE
    rows = yield Run(
        "UPDATE keys SET fingerprint = $4, state = 'in_progress', fence = $5, owner = $6, first_seen = $7,"
        " changed_at = $8, lease_until = $9, expires_at = $10, answer = NULL, reference = '', attempts = $11,"
        f" afterwards = 'tombstone', was_ambiguous = $12 WHERE {_SCOPE} RETURNING {RECORD_COLUMNS}",
        (
            *_of(wanted.scope),
            wanted.fingerprint,
            fence,
            wanted.owner,
            now if afresh else old.first_seen,
            now,
            now + wanted.lease_s,
            math.inf,
            1 if afresh else old.attempts + 1,
            0 if afresh else 1,
        ),
    )
    return Claimed(Decision.EXECUTE, record_of(rows[0]), was_ambiguous(rows[0]))


def renew(now: float, owner: str, claims: Collection[tuple[Scope, int]], lease_s: float) -> Transaction[None]:
    """Sorted, so that two relays' renewals never wait for each other crosswise."""
    for scope, fence in sorted(claims, key=lambda held: _of(held[0])):
        yield Run(
            f"UPDATE keys SET lease_until = $6 WHERE {_SCOPE}"
            " AND fence = $4 AND owner = $5 AND state = 'in_progress'",
            (*_of(scope), fence, owner, now + lease_s),
        )


def finish(
    now: float, scope: Scope, fence: int, *, answer: bytes, keep_s: float, then: Afterwards
) -> Transaction[bool]:
    """DONE under this fence; a second time with the same answer is no error."""
    rows = yield Run(
        "UPDATE keys SET state = 'done', answer = $5, expires_at = $6, changed_at = $7, lease_until = 0,"
        f" afterwards = $8 WHERE {_SCOPE} AND fence = $4 AND state IN ('in_progress', 'ambiguous')"
        " RETURNING fence",
        (*_of(scope), fence, answer, now + keep_s, now, then.value),
    )
    if rows:
        yield Notify(topic_of(scope))
        return True
    row = yield from _find(scope)
    if row is None:
        return False
    record = record_of(row)
    return record.state is RecordState.DONE and record.fence == fence and record.answer == answer


def leave_ambiguous(now: float, scope: Scope, fence: int) -> Transaction[bool]:
    """AMBIGUOUS under this fence."""
    rows = yield Run(
        "UPDATE keys SET state = 'ambiguous', changed_at = $5, lease_until = 0"
        f" WHERE {_SCOPE} AND fence = $4 AND state IN ('in_progress', 'ambiguous') RETURNING fence",
        (*_of(scope), fence, now),
    )
    yield Notify(topic_of(scope))
    return bool(rows)


def release(now: float, scope: Scope, fence: int) -> Transaction[bool]:
    """Forget the claim; what was ambiguous before it is ambiguous again."""
    held = f"{_SCOPE} AND fence = $4 AND state = 'in_progress'"
    rows = yield Run(
        f"DELETE FROM keys WHERE {held} AND was_ambiguous = 0 RETURNING fence", (*_of(scope), fence)
    )
    if not rows:
        rows = yield Run(
            f"UPDATE keys SET state = 'ambiguous', changed_at = $5, lease_until = 0 WHERE {held}"
            " RETURNING fence",
            (*_of(scope), fence, now),
        )
    yield Notify(topic_of(scope))
    return bool(rows)


def ambiguous(
    now: float, tenant: str | None, after: str, limit: int
) -> Transaction[tuple[Sequence[Record], str]]:
    """Keys whose outcome is unknown, in the order in which they were first claimed."""
    found = Conditions()
    found.add("state IN ('in_progress', 'ambiguous')")
    found.add("(state = 'ambiguous' OR lease_until <= {})", now)
    found.add("id > {}", number_token(after))
    if tenant is not None:
        found.add("tenant = {}", tenant)
    found.args.append(limit)
    rows = yield Run(
        f"SELECT {RECORD_COLUMNS} FROM keys{found.where()} ORDER BY id LIMIT ${len(found.args)}",
        tuple(found.args),
    )
    token = str(record_id(rows[-1])) if len(rows) == limit else ""
    return [record_of(row) for row in rows], token


def sweep(now: float, tombstone_s: float, limit: int) -> Transaction[int]:
    """Expired answers become tombstones, or nothing; old tombstones go."""
    rows = yield Run(
        "SELECT id, state, afterwards FROM keys WHERE state IN ('done', 'expired') AND expires_at <= $1"
        f" ORDER BY expires_at LIMIT $2 {SKIP_LOCKED}",
        (now, limit),
    )
    for number, state, afterwards in rows:
        if state == RecordState.EXPIRED.value or afterwards == Afterwards.FORGOTTEN.value:
            yield Run("DELETE FROM keys WHERE id = $1", (number,))
        else:
            yield Run(
                "UPDATE keys SET state = 'expired', answer = NULL, changed_at = $2, expires_at = $3"
                " WHERE id = $1",
                (number, now, now + tombstone_s),
            )
    return len(rows)


def queue(now: float, scope: Scope, fingerprint: bytes, job_id: str) -> Transaction[Record | None]:
    """A new key becomes a job's; when it is known already, the record that is in the way."""
    fence = (yield NextFence())[0][0]
    args = (fingerprint, RecordState.QUEUED.value, fence, "", now, now, 0.0, math.inf, job_id, 0)
    for _round in range(CLAIM_ROUNDS):
        if (yield Run(_INSERT, (*_of(scope), *args))):
            return None
        row = yield from _find(scope, FOR_UPDATE)
        if row is not None:
            return record_of(row)
    raise StoreUnavailableError(_CONTENDED)


def pass_on(
    now: float, scope: Scope, owned_by: tuple[RecordState, str], to: tuple[RecordState, str]
) -> Transaction[bool]:
    """A record owned by a job or letter (state, reference) becomes another's."""
    state, reference = to
    expires_at = now + TOMBSTONE_S if state is RecordState.EXPIRED else math.inf
    rows = yield Run(
        "UPDATE keys SET state = $6, reference = $7, changed_at = $8, expires_at = $9, lease_until = 0"
        f" WHERE {_SCOPE} AND state = $4 AND reference = $5 RETURNING id",
        (*_of(scope), owned_by[0].value, owned_by[1], state.value, reference, now, expires_at),
    )
    yield Notify(topic_of(scope))
    return bool(rows)


def answer_for_job(
    now: float, scope: Scope, job_id: str, *, answer: bytes, keep_s: float
) -> Transaction[None]:
    """The job that owns the key has its answer."""
    yield Run(
        "UPDATE keys SET state = 'done', answer = $5, changed_at = $6, expires_at = $7"
        f" WHERE {_SCOPE} AND state = 'queued' AND reference = $4",
        (*_of(scope), job_id, answer, now, now + keep_s),
    )
    yield Notify(topic_of(scope))


def forget_for_job(scope: Scope, job_id: str, since: float) -> Transaction[None]:
    """The job that brought the key was never attempted and never will be."""
    yield Run(
        f"DELETE FROM keys WHERE {_SCOPE} AND state = 'queued' AND reference = $4 AND first_seen >= $5",
        (*_of(scope), job_id, since),
    )
    yield Notify(topic_of(scope))


def dead_letter(now: float, scope: Scope, fence: int, letter_id: str) -> Transaction[bool]:
    """A synchronous call's key belongs to its dead letter, fenced."""
    rows = yield Run(
        "UPDATE keys SET state = 'dead_lettered', reference = $5, changed_at = $6, lease_until = 0"
        f" WHERE {_SCOPE} AND fence = $4 AND state IN ('in_progress', 'ambiguous') RETURNING id",
        (*_of(scope), fence, letter_id, now),
    )
    yield Notify(topic_of(scope))
    return bool(rows)


def number_token(token: str) -> int:
    """The page token of a listing by number. Raises `InvalidPageTokenError`."""
    if not token:
        return 0
    if not (token.isascii() and token.isdigit() and len(token) < 19):
        raise InvalidPageTokenError(f"{token!r} is not a page token that was given out")
    return int(token)


def _find(scope: Scope, lock: str = "") -> Transaction[Row | None]:
    rows = yield Run(f"SELECT {RECORD_COLUMNS} FROM keys WHERE {_SCOPE} {lock}", _of(scope))
    return rows[0] if rows else None


def _of(scope: Scope) -> tuple[str, str, bytes]:
    return scope.tenant, scope.method, scope.key
