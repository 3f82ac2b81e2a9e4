"""Dead letters, as transactions (`relay_service.stores.statements`)."""

from collections.abc import Sequence
from dataclasses import replace

from relay_service.core.idempotency import RecordState, Scope
from relay_service.core.job import Cause, DeadLetter, LetterState, Try
from relay_service.core.status import Code
from relay_service.stores import keys
from relay_service.stores.interface import Burial, InvalidPageTokenError, LetterFilter, LetterGroup
from relay_service.stores.rows import (
    LETTER_COLUMNS,
    letter_of,
    letter_values,
    longer,
    replays_text,
    tries_text,
    with_outcome,
)
from relay_service.stores.statements import (
    FOR_UPDATE,
    SKIP_LOCKED,
    Conditions,
    Row,
    Run,
    Transaction,
    placeholders,
)

_BECOMES = {
    LetterState.HELD: (LetterState.OPEN, LetterState.HELD),
    LetterState.OPEN: (LetterState.HELD, LetterState.OPEN),
    LetterState.DISCARDED: (LetterState.OPEN, LetterState.HELD, LetterState.DISCARDED),
}
"""What an operator may make of a letter, and from which states; saying the same twice is no error."""


def code_of(burial: Burial) -> Code:
    """A code that gRPC does not know is UNKNOWN, as gRPC has it."""
    return Code(burial.code) if burial.code in set(Code) else Code.UNKNOWN


def insert(letter: DeadLetter) -> Transaction[bool]:
    """False when its id is known already."""
    columns = LETTER_COLUMNS.removeprefix("seq, ")
    values = letter_values(letter)
    rows = yield Run(
        f"INSERT INTO letters ({columns}) VALUES ({placeholders(len(values))})"
        " ON CONFLICT (id) DO NOTHING RETURNING seq",
        values,
    )
    return bool(rows)


def put(now: float, letter: DeadLetter, scope: Scope | None, fence: int, keep_s: float) -> Transaction[bool]:
    """A letter that no job left; with a scope its key is the letter's from now on, fenced."""
    if (yield from find(now, letter.id)) is not None:
        return True
    if scope is not None and not (yield from keys.dead_letter(now, scope, fence, letter.id)):
        return False
    yield from insert(replace(letter, expires_at=letter.died_at + keep_s))
    return True


def find(_now: float, letter_id: str) -> Transaction[DeadLetter | None]:
    """One letter."""
    return (yield from _find(letter_id, ""))


def reopen(letter_id: str, job_id: str, tried: Try | None, burial: Burial) -> Transaction[bool]:
    """A replay died: its letter is open again and remembers it. False when there is no such letter."""
    letter = yield from _find(letter_id, FOR_UPDATE)
    if letter is None:
        return False
    yield Run(
        "UPDATE letters SET state = 'open', cause = $2, code = $3, message = $4, tries = $5, replays = $6,"
        " attempts = attempts + $7 WHERE id = $1",
        (
            letter_id,
            burial.cause.value,
            int(code_of(burial)),
            burial.message,
            tries_text(longer(letter.tries, tried)),
            replays_text(with_outcome(letter.replays, job_id, burial.message or burial.cause.value)),
            1 if tried else 0,
        ),
    )
    return True


def settle_replay(now: float, letter_id: str, job_id: str, resolved: bool, outcome: str) -> Transaction[bool]:
    """RESOLVED, or OPEN again; only the replay under way can say so."""
    letter = yield from _find(letter_id, FOR_UPDATE)
    if letter is None or not letter.replays or letter.replays[-1].job_id != job_id:
        return False
    state = LetterState.RESOLVED if resolved else LetterState.OPEN
    if letter.state not in (LetterState.REPLAYING, state):
        return False
    yield Run(
        "UPDATE letters SET state = $2, replays = $3 WHERE id = $1",
        (letter_id, state.value, replays_text(with_outcome(letter.replays, job_id, outcome))),
    )
    scope = _scope(letter)
    if resolved:
        yield from keys.pass_on(
            now, scope, (RecordState.DEAD_LETTERED, letter_id), (RecordState.EXPIRED, letter_id)
        )
    else:
        for state_of_key in (RecordState.QUEUED, RecordState.AMBIGUOUS):
            yield from keys.pass_on(
                now, scope, (state_of_key, job_id), (RecordState.DEAD_LETTERED, letter_id)
            )
    return True


def set_state(now: float, letter_id: str, state: LetterState, note: str) -> Transaction[bool]:
    """What an operator decides; a letter given up leaves a tombstone of its key."""
    letter = yield from _find(letter_id, FOR_UPDATE)
    if letter is None or letter.state not in _BECOMES.get(state, ()):
        return False
    yield Run("UPDATE letters SET state = $2, note = $3 WHERE id = $1", (letter_id, state.value, note))
    if state is LetterState.DISCARDED:
        yield from _give_up_key(now, letter)
    return True


def sweep(now: float, limit: int) -> Transaction[Sequence[DeadLetter]]:
    """Letters past their time, removed."""
    rows = yield Run(
        f"SELECT {LETTER_COLUMNS} FROM letters WHERE state IN ('open', 'resolved', 'discarded')"
        f" AND expires_at <= $1 ORDER BY expires_at LIMIT $2 {SKIP_LOCKED}",
        (now, limit),
    )
    gone = [letter_of(row) for row in rows]
    for letter in gone:
        yield Run("DELETE FROM letters WHERE id = $1", (letter.id,))
        yield from _give_up_key(now, letter)
    return gone


def page(
    _now: float, which: LetterFilter, after: str, limit: int
) -> Transaction[tuple[Sequence[DeadLetter], str]]:
    """Newest first, by time of death and number."""
    found = _matching(which)
    if after:
        found.add("(died_at, seq) < ({}, {})", *_token(after))
    found.args.append(limit)
    rows = yield Run(
        f"SELECT {LETTER_COLUMNS} FROM letters{found.where()} ORDER BY died_at DESC, seq DESC"
        f" LIMIT ${len(found.args)}",
        tuple(found.args),
    )
    token = f"{rows[-1][13]!r}:{rows[-1][0]}" if len(rows) == limit else ""
    return [letter_of(row) for row in rows], token


def groups(_now: float, which: LetterFilter) -> Transaction[Sequence[LetterGroup]]:
    """By method, cause, code and state. What the kept counts know is read from them; ids and times are
    counted over an index."""
    kept = which.ids is None and which.died_after is None and which.died_before is None
    rows = yield from (_kept_groups(which) if kept else _counted_groups(which))
    found = []
    for method, cause, code, state, count in rows:
        group = replace(
            which,
            method=method,
            causes=frozenset({Cause(cause)}),
            code=code,
            states=frozenset({LetterState(state)}),
        )
        newest = (yield from _end_of(group, "DESC"))[0]
        oldest = (yield from _end_of(group, "ASC"))[0]
        found.append(
            LetterGroup(
                method,
                Cause(cause),
                code,
                LetterState(state),
                int(count),
                oldest[0],
                newest[0],
                newest[1],
                newest[2],
            )
        )
    return found


def _kept_groups(which: LetterFilter) -> Transaction[Sequence[Row]]:
    found = _matching(which)
    return (
        yield Run(
            f"SELECT method, cause, code, state, sum(n) FROM letter_counts{found.where()}"
            " GROUP BY method, cause, code, state HAVING sum(n) > 0 ORDER BY 5 DESC, 1, 2, 3, 4",
            tuple(found.args),
        )
    )


def _counted_groups(which: LetterFilter) -> Transaction[Sequence[Row]]:
    found = _matching(which)
    return (
        yield Run(
            f"SELECT method, cause, code, state, count(*) FROM letters{found.where()}"
            " GROUP BY method, cause, code, state ORDER BY 5 DESC, 1, 2, 3, 4",
            tuple(found.args),
        )
    )


def _end_of(group: LetterFilter, direction: str) -> Transaction[Sequence[Row]]:
    found = _matching(group)
    return (
        yield Run(
            f"SELECT died_at, id, message FROM letters{found.where()}"
            f" ORDER BY died_at {direction}, seq {direction} LIMIT 1",
            tuple(found.args),
        )
    )


def _matching(which: LetterFilter) -> Conditions:
    found = Conditions()
    if which.ids is not None:
        found.among("id", sorted(which.ids))
    if which.tenant is not None:
        found.add("tenant = {}", which.tenant)
    if which.method is not None:
        found.add("method = {}", which.method)
    if which.causes is not None:
        found.among("cause", sorted(cause.value for cause in which.causes))
    if which.states is not None:
        found.among("state", sorted(state.value for state in which.states))
    if which.code is not None:
        found.add("code = {}", which.code)
    if which.died_after is not None:
        found.add("died_at > {}", which.died_after)
    if which.died_before is not None:
        found.add("died_at < {}", which.died_before)
    return found


def _token(token: str) -> tuple[float, int]:
    at, _, number = token.partition(":")
    try:
        return float(at), keys.number_token(number)
    except ValueError:
        raise InvalidPageTokenError(f"{token!r} is not a page token that was given out") from None


def _give_up_key(now: float, letter: DeadLetter) -> Transaction[None]:
    yield from keys.pass_on(
        now, _scope(letter), (RecordState.DEAD_LETTERED, letter.id), (RecordState.EXPIRED, letter.id)
    )


def _find(letter_id: str, lock: str) -> Transaction[DeadLetter | None]:
    rows = yield Run(f"SELECT {LETTER_COLUMNS} FROM letters WHERE id = $1 {lock}", (letter_id,))
    return letter_of(rows[0]) if rows else None


def _scope(letter: DeadLetter) -> Scope:
    return Scope(letter.work.tenant, letter.work.method, letter.work.key)
