"""What every engine promises of dead letters."""

from dataclasses import replace
from typing import Any

import pytest

from relay_service.core.idempotency import Decision, RecordState
from relay_service.core.job import Cause, JobState, LetterState, Replay
from relay_service.core.status import Code
from relay_service.stores.interface import InvalidPageTokenError, KeyTakenError, LetterFilter, Store

pytestmark = pytest.mark.usefixtures("counted")
DAY_S = 24 * 3600.0


async def buried(store: Store, make: Any, take: Any, letter_id: str, **job: Any) -> str:
    """A job that died; its id."""
    await store.submit([make.job(priority=100, **job)])
    leased = await take(store)
    assert await store.bury(leased.id, leased.fence, make.tried(), make.burial(letter_id))
    return leased.id


async def test_a_job_and_its_letter_die_in_one_commit_with_all_that_is_known(
    store: Store, other: Store, make: Any, take: Any
) -> None:
    job_id = await buried(store, make, take, "letter", key=b"k", order_key="o", metadata=(("m", b"v"),))
    job, letter = await other.job(job_id), await other.letter("letter")
    assert job is not None
    assert letter is not None
    assert (job.state, job.dead_letter_id) == (JobState.DEAD, "letter")
    assert letter.work == job.work
    assert (letter.state, letter.cause, letter.code) == (
        LetterState.OPEN,
        Cause.RETRIES_EXHAUSTED,
        Code.UNAVAILABLE,
    )
    assert letter.tries == (make.tried(),)
    assert (letter.job_id, letter.attempts, letter.policy) == (job_id, 1, '{"maxAttempts":4}')
    assert letter.expires_at == pytest.approx(letter.died_at + 3600)
    claimed = await store.claim(make.claim(make.scope(b"k")))
    assert (claimed.decision, claimed.record.reference) == (Decision.DEAD_LETTERED, "letter")


async def test_a_synchronous_calls_letter_takes_its_key(store: Store, make: Any) -> None:
    scope = make.scope(b"k")
    fence = (await store.claim(make.claim(scope))).record.fence
    letter = make.letter(letter_id="letter", died_at=store.now())
    assert await store.put_letter(letter, scope, fence, DAY_S)
    assert await store.put_letter(letter, scope, fence, DAY_S)
    assert await store.letter("letter") == replace(letter, expires_at=letter.died_at + DAY_S)
    assert (await store.claim(make.claim(scope))).decision is Decision.DEAD_LETTERED


async def test_a_replay_runs_under_the_same_key_and_resolves_its_letter(
    store: Store, make: Any, take: Any
) -> None:
    await buried(store, make, take, "letter", key=b"k")
    letter = await store.letter("letter")
    assert letter is not None
    again = replace(make.job(job_id="again"), work=letter.work)
    begun = Replay(store.now(), "operator", "again")
    assert await store.replay("letter", begun, again)
    assert await store.replay("letter", begun, again)
    assert not await store.replay("letter", replace(begun, job_id="third"), make.job(job_id="third"))
    assert (await store.claim(make.claim(make.scope(b"k")))).decision is Decision.QUEUED
    job = await take(store)
    assert (job.id, job.work) == ("again", letter.work)
    assert await store.complete(job.id, job.fence, make.tried("done"), b"answer", DAY_S)
    assert await store.settle_replay("letter", "again", resolved=True, outcome="OK")
    resolved = await store.letter("letter")
    assert resolved is not None
    assert resolved.state is LetterState.RESOLVED
    assert resolved.replays == (replace(begun, outcome="OK"),)
    claimed = await store.claim(make.claim(make.scope(b"k")))
    assert (claimed.decision, claimed.record.answer) == (Decision.REPLAY, b"answer")


async def test_a_replay_that_dies_opens_its_letter_again(store: Store, make: Any, take: Any) -> None:
    await buried(store, make, take, "letter", key=b"k")
    letter = await store.letter("letter")
    assert letter is not None
    await store.replay(
        "letter",
        Replay(store.now(), "operator", "again"),
        replace(make.job(job_id="again"), work=letter.work),
    )
    job = await take(store)
    assert await store.bury(job.id, job.fence, make.tried("still down"), make.burial("letter"))
    opened = await store.letter("letter")
    assert opened is not None
    assert opened.state is LetterState.OPEN
    assert [tried.message for tried in opened.tries] == ["down", "still down"]
    assert opened.replays[0].outcome
    assert opened.died_at == letter.died_at
    claimed = await store.claim(make.claim(make.scope(b"k")))
    assert (claimed.decision, claimed.record.reference) == (Decision.DEAD_LETTERED, "letter")
    assert sum((await store.counts()).letters.values()) == 1


async def test_a_replay_that_was_cancelled_opens_its_letter_again(store: Store, make: Any, take: Any) -> None:
    await buried(store, make, take, "letter", key=b"k")
    letter = await store.letter("letter")
    assert letter is not None
    await store.replay(
        "letter",
        Replay(store.now(), "operator", "again"),
        replace(make.job(job_id="again"), work=letter.work),
    )
    await store.cancel("again")
    assert not await store.settle_replay("letter", "other", resolved=False, outcome="x")
    assert await store.settle_replay("letter", "again", resolved=False, outcome="cancelled")
    opened = await store.letter("letter")
    assert opened is not None
    assert (opened.state, opened.replays[0].outcome) == (LetterState.OPEN, "cancelled")
    assert (await store.claim(make.claim(make.scope(b"k")))).decision is Decision.DEAD_LETTERED


async def test_an_edited_replay_has_a_key_of_its_own_and_takes_none_that_is_in_use(
    store: Store, make: Any, take: Any
) -> None:
    await buried(store, make, take, "letter", key=b"k")
    await store.claim(make.claim(make.scope(b"taken")))
    begun = Replay(store.now(), "operator", "again")
    with pytest.raises(KeyTakenError):
        await store.replay("letter", begun, make.job(job_id="again", key=b"taken"))
    assert (await store.letter("letter")).state is LetterState.OPEN
    assert await store.replay("letter", begun, make.job(job_id="again", key=b"new", request=b"edited"))
    job = await take(store)
    await store.complete(job.id, job.fence, make.tried(), b"answer", DAY_S)
    await store.settle_replay("letter", "again", resolved=True, outcome="OK")
    assert (await store.claim(make.claim(make.scope(b"k")))).decision is Decision.KEY_EXPIRED


async def test_held_letters_are_neither_replayed_nor_expired_until_released(
    store: Store, make: Any, passed: Any
) -> None:
    await store.put_letter(make.letter(letter_id="held", died_at=store.now()), None, 0, 0.01)
    assert await store.set_state("held", LetterState.HELD, "ask finance")
    await passed(store, store.now() + 0.01)
    assert await store.sweep_letters(limit=10) == []
    assert not await store.replay("held", Replay(store.now(), "operator", "again"), make.job(job_id="again"))
    held = await store.letter("held")
    assert held is not None
    assert held.note == "ask finance"
    assert await store.set_state("held", LetterState.OPEN, "")
    assert [letter.id for letter in await store.sweep_letters(limit=10)] == ["held"]
    assert await store.letter("held") is None


async def test_a_discarded_letter_leaves_a_tombstone_of_its_key(store: Store, make: Any, take: Any) -> None:
    await buried(store, make, take, "letter", key=b"k")
    assert await store.set_state("letter", LetterState.DISCARDED, "customer left")
    assert not await store.set_state("letter", LetterState.OPEN, "")
    assert not await store.set_state("letter", LetterState.RESOLVED, "")
    assert not await store.set_state("unknown", LetterState.HELD, "")
    record = await store.look_up(make.scope(b"k"))
    assert record is not None
    assert record.state is RecordState.EXPIRED
    assert record.expires_at > store.now() + 29 * DAY_S


async def test_an_expired_letter_is_handed_out_once_and_leaves_a_tombstone(
    store: Store, make: Any, passed: Any
) -> None:
    scope = make.scope(b"k")
    fence = (await store.claim(make.claim(scope))).record.fence
    letter = make.letter(letter_id="letter", died_at=store.now(), key=b"k")
    await store.put_letter(letter, scope, fence, 0.01)
    await passed(store, store.now() + 0.01)
    (gone,) = await store.sweep_letters(limit=10)
    assert gone.work == letter.work
    assert await store.sweep_letters(limit=10) == []
    assert (await store.claim(make.claim(scope))).decision is Decision.KEY_EXPIRED


async def test_letters_are_listed_newest_first_in_stable_pages_by_filter(store: Store, make: Any) -> None:
    for number in range(10):
        await store.put_letter(
            make.letter(
                letter_id=f"l{number}",
                died_at=1000.0 + number // 2,
                tenant="t" if number == 3 else "",
                method="b/B" if number == 4 else "a/A",
                cause=Cause.POISON if number == 5 else Cause.DEADLINE,
            ),
            None,
            0,
            DAY_S,
        )
    seen, token = [], ""
    while True:
        page, token = await store.letters(LetterFilter(), after=token, limit=3)
        seen += [letter.id for letter in page]
        if not token:
            break
        await store.put_letter(make.letter(died_at=5000.0), None, 0, DAY_S)
    assert [name for name in seen if name.startswith("l") and len(name) == 2] == [
        f"l{n}" for n in reversed(range(10))
    ]

    async def ids(**which: Any) -> list[str]:
        return sorted(
            letter.id for letter in (await store.letters(LetterFilter(**which), after="", limit=50))[0]
        )

    assert await ids(tenant="t") == ["l3"]
    assert await ids(method="b/B") == ["l4"]
    assert await ids(causes=frozenset({Cause.POISON})) == ["l5"]
    assert await ids(ids=frozenset({"l1", "l2", "none"})) == ["l1", "l2"]
    assert await ids(ids=frozenset()) == []
    assert await ids(died_after=1003.5, died_before=1005.0) == ["l8", "l9"]
    assert await ids(states=frozenset({LetterState.HELD})) == []
    assert await ids(code=int(Code.INTERNAL)) == []
    for bad in ("nonsense", "1.0:x", "x:1"):
        with pytest.raises(InvalidPageTokenError):
            await store.letters(LetterFilter(), after=bad, limit=3)


async def test_groups_are_what_the_letters_are(store: Store, make: Any) -> None:
    for number in range(12):
        await store.put_letter(
            make.letter(
                letter_id=f"l{number}",
                died_at=100.0 + number,
                method="a/A" if number % 3 else "b/B",
                tenant="t" if number == 11 else "",
                message=f"m{number}",
            ),
            None,
            0,
            DAY_S,
        )
    await store.set_state("l1", LetterState.HELD, "")
    groups = {(group.method, group.state): group for group in await store.groups(LetterFilter())}
    assert {key: group.count for key, group in groups.items()} == {
        ("a/A", LetterState.OPEN): 7,
        ("a/A", LetterState.HELD): 1,
        ("b/B", LetterState.OPEN): 4,
    }
    largest = groups["a/A", LetterState.OPEN]
    assert (largest.oldest, largest.newest, largest.sample_id, largest.sample_message) == (
        102.0,
        111.0,
        "l11",
        "m11",
    )
    assert [group.count for group in await store.groups(LetterFilter(tenant="t"))] == [1]
    assert [group.count for group in await store.groups(LetterFilter(died_after=108.5))] == [2, 1]
    assert await store.groups(LetterFilter(method="none")) == []
