"""The ledger by itself, on real files: one effect per key, nothing acknowledged that is not durable."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import apsw
import pytest

from downstream_service.book import Book, KeyPolicy, KeyReusedError, PageQuery, Posted, Scope
from downstream_service.ledger import Ledger, LedgerClosingError, LedgerError, LedgerUnavailableError
from protos.downstream.v1 import payment_pb2

Purchase = Callable[..., payment_pb2.ChargeRequest]


@asynccontextmanager
async def opened(path: Path | str, policy: KeyPolicy = KeyPolicy.ENFORCE) -> AsyncIterator[Ledger]:
    ledger = Ledger(str(path), policy)
    try:
        yield ledger
    finally:
        await ledger.close()


def sequences_in(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("SELECT sequence FROM charges ORDER BY sequence")]


@pytest.mark.parametrize("where", ["file", "memory"])
async def test_200_duplicates_at_once_make_one_effect_and_one_answer(
    where: str, tmp_path: Path, purchase: Purchase
) -> None:
    async with opened(tmp_path / "ledger.db" if where == "file" else ":memory:") as ledger:
        posted = await asyncio.gather(*(ledger.charge(purchase(), "k") for _ in range(200)))
        page = await ledger.page(PageQuery(limit=10))
    assert len({each.reply for each in posted}) == 1
    assert sorted(each.replayed for each in posted) == [False] + [True] * 199
    assert (page.total_charges, page.duplicate_keys) == (1, 0)
    assert (ledger.effects, ledger.replays) == (1, 199)


async def test_a_replay_after_a_restart_has_the_same_bytes(tmp_path: Path, purchase: Purchase) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        first = await ledger.charge(purchase(), "k")
    async with opened(path) as ledger:
        again = await ledger.charge(purchase(), "k")
    assert (again.reply, again.replayed) == (first.reply, True)


async def test_ignoring_keys_charges_again_and_counts_the_duplicates(
    tmp_path: Path, purchase: Purchase
) -> None:
    async with opened(tmp_path / "ledger.db", KeyPolicy.RECORD_ONLY) as ledger:
        await asyncio.gather(
            *(ledger.charge(purchase(), key) for key in ["twice", "twice", "thrice", "thrice"])
        )
        await ledger.charge(purchase(), "thrice")
        await asyncio.gather(ledger.charge(purchase(), "once"), ledger.charge(purchase(), ""))
        page = await ledger.page(PageQuery(limit=10))
    assert (page.total_charges, page.duplicate_keys) == (7, 2)
    async with opened(tmp_path / "ledger.db") as ledger:
        assert (await ledger.page(PageQuery(limit=1))).duplicate_keys == 2


async def test_a_key_with_another_request_is_refused_and_the_rest_of_its_group_is_not(
    purchase: Purchase,
) -> None:
    async with opened(":memory:") as ledger:
        results = await asyncio.gather(
            ledger.charge(purchase("alice"), "k"),
            ledger.charge(purchase("bob"), "k"),
            ledger.charge(purchase("carol"), "other"),
            return_exceptions=True,
        )
        page = await ledger.page(PageQuery(limit=10))
    assert [type(result) for result in results] == [Posted, KeyReusedError, Posted]
    assert [charge.account for charge in page.charges] == ["carol", "alice"]


async def test_sequences_have_no_gaps_whatever_fails_between(tmp_path: Path, purchase: Purchase) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        await ledger.charge(purchase(), "")
        # A number SQLite cannot hold fails the statement, and with it the transaction of its group.
        failing = [ledger.charge(purchase(), ""), ledger._submit(lambda book: book.after(1 << 70, 1))]
        for result in await asyncio.gather(*failing, return_exceptions=True):
            assert isinstance(result, LedgerUnavailableError)
        await ledger.charge(purchase(), "")
    assert sequences_in(path) == [1, 2]


async def test_a_batch_is_one_effect_under_its_key_and_shares_item_keys_with_single_charges(
    purchase: Purchase,
) -> None:
    batch = payment_pb2.ChargeBatchRequest(
        items=[
            payment_pb2.ChargeBatchItem(charge=purchase("a")),
            payment_pb2.ChargeBatchItem(charge=purchase("b"), idempotency_key="single"),
            payment_pb2.ChargeBatchItem(charge=purchase("invalid")),
            payment_pb2.ChargeBatchItem(charge=purchase("x"), idempotency_key="single"),
        ]
    )
    async with opened(":memory:") as ledger:
        await ledger.charge(purchase("b"), "single")
        first = await ledger.charge_batch(batch, {2: "not like this"}, "batch")
        again = await ledger.charge_batch(batch, {2: "not like this"}, "batch")
        page = await ledger.page(PageQuery(limit=10))
    results = payment_pb2.ChargeBatchResponse.FromString(first.reply).results
    assert [result.code for result in results] == [0, 0, 3, 9]
    assert [result.replayed for result in results] == [False, True, False, False]
    assert (again.reply, again.replayed) == (first.reply, True)
    assert (page.total_charges, page.duplicate_keys) == (2, 0)


async def test_pages_restricted_by_account_and_key_join_to_the_whole(purchase: Purchase) -> None:
    async with opened(":memory:") as ledger:
        for index in range(10):
            await ledger.charge(purchase("even" if index % 2 == 0 else "odd"), f"k{index}")
        first = await ledger.page(PageQuery(limit=3, account="even"))
        rest = await ledger.page(
            PageQuery(limit=3, account="even", before_sequence=first.charges[-1].sequence)
        )
        one = await ledger.page(PageQuery(limit=3, idempotency_key="k4"))
    assert [charge.sequence for charge in first.charges + rest.charges] == [9, 7, 5, 3, 1]
    assert (first.has_more, rest.has_more) == (True, False)
    assert [charge.sequence for charge in one.charges] == [5]


async def test_a_follower_wakes_for_news_and_when_following_ends(purchase: Purchase) -> None:
    async with opened(":memory:") as ledger:
        following = asyncio.create_task(ledger.after(0, 10))
        await asyncio.sleep(0)
        await ledger.charge(purchase("news"), "")
        assert [charge.account for charge in await asyncio.wait_for(following, 5)] == ["news"]
        following = asyncio.create_task(ledger.after(1, 10))
        await asyncio.sleep(0)
        ledger.stop_following()
        with pytest.raises(LedgerClosingError):
            await asyncio.wait_for(following, 5)


async def test_a_closed_ledger_has_done_what_it_was_given_and_refuses_more(
    tmp_path: Path, purchase: Purchase
) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"), KeyPolicy.ENFORCE)
    given = [ledger.charge(purchase(), "") for _ in range(1_000)]
    await ledger.close()
    await asyncio.gather(*given)
    assert len(sequences_in(tmp_path / "ledger.db")) == 1_000
    with pytest.raises(LedgerUnavailableError):
        await ledger.charge(purchase(), "")


async def test_a_second_service_on_the_same_file_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "ledger.db"):
        with pytest.raises(LedgerError, match="locked"):
            Ledger(str(tmp_path / "ledger.db"), KeyPolicy.ENFORCE)


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger(str(path), KeyPolicy.ENFORCE)
    with closing(sqlite3.connect(path)) as database:
        assert [row[0] for row in database.execute("SELECT name FROM sqlite_schema")] == ["recipes"]


def test_the_guard_and_the_charge_are_in_one_transaction(tmp_path: Path, purchase: Purchase) -> None:
    path = str(tmp_path / "ledger.db")
    book = Book(path, KeyPolicy.ENFORCE)
    book.begin()
    book.charge(purchase(), "k")
    book.rollback()
    assert book.last_sequence == 0
    book.begin()
    assert not book.charge(purchase(), "k").replayed
    book.commit()
    with pytest.raises(apsw.ConstraintError):
        # What a second effect under the key would have to pass.
        book._guard(Scope.CHARGE, "k", purchase(), b"")
    book.close()
