"""What every engine promises of idempotency keys."""

import asyncio
from typing import Any

import pytest

from relay_service.core.idempotency import Afterwards, Decision, RecordState
from relay_service.stores.interface import InvalidPageTokenError, Store

DAY_S = 24 * 3600.0


async def test_a_thousand_claims_of_one_key_over_two_relays_execute_once(
    store: Store, other: Store, make: Any
) -> None:
    wanted = make.claim(make.scope())
    claimed = await asyncio.gather(*(relay.claim(wanted) for _ in range(500) for relay in (store, other)))
    decisions = [each.decision for each in claimed]
    assert decisions.count(Decision.EXECUTE) == 1
    assert decisions.count(Decision.WAIT) == 999


async def test_a_finished_key_replays_the_same_bytes(store: Store, other: Store, make: Any) -> None:
    scope = make.scope(b"\x00\xffkey")
    answer = bytes(range(256)) * 100
    first = await store.claim(make.claim(scope))
    assert await store.finish(scope, first.record.fence, answer, DAY_S)
    again = await other.claim(make.claim(scope))
    assert again.decision is Decision.REPLAY
    assert again.record.answer == answer
    assert again.record.first_seen == first.record.first_seen
    looked_up = await other.look_up(scope)
    assert looked_up == again.record


async def test_scopes_have_nothing_in_common(store: Store, make: Any) -> None:
    for tenant in ("a", "b"):
        assert (await store.claim(make.claim(make.scope(b"k", tenant=tenant)))).decision is Decision.EXECUTE


async def test_another_payload_under_a_key_is_told(store: Store, make: Any) -> None:
    scope = make.scope()
    await store.claim(make.claim(scope))
    again = await store.claim(make.claim(scope, request=b"other"))
    assert again.decision is Decision.KEY_REUSED


async def test_a_lease_that_ran_out_is_an_unknown_outcome_not_a_free_key(
    store: Store, make: Any, passed: Any
) -> None:
    scope = make.scope()
    first = await store.claim(make.claim(scope, lease_s=0.02))
    await passed(store, first.record.lease_until)
    assert (await store.claim(make.claim(scope))).decision is Decision.UNKNOWN
    again = await store.claim(make.claim(scope, repeatable=True, owner="relay-2"))
    assert again.decision is Decision.EXECUTE
    assert again.was_ambiguous
    assert again.record.fence > first.record.fence
    assert again.record.attempts == 2
    assert again.record.first_seen == first.record.first_seen


async def test_a_stale_fence_changes_nothing(store: Store, other: Store, make: Any, passed: Any) -> None:
    scope = make.scope()
    old = (await store.claim(make.claim(scope, lease_s=0.02))).record
    await passed(store, old.lease_until)
    new = (await other.claim(make.claim(scope, repeatable=True, owner="relay-2"))).record
    assert not await store.finish(scope, old.fence, b"stale", DAY_S)
    assert not await store.leave_ambiguous(scope, old.fence)
    assert not await store.release(scope, old.fence)
    assert not await store.put_letter(make.letter(died_at=store.now()), scope, old.fence, DAY_S)
    await store.renew("relay-1", [(scope, old.fence)], 10 * DAY_S)
    await store.renew("relay-2", [(scope, old.fence)], 10 * DAY_S)
    assert await store.look_up(scope) == new


async def test_a_fence_is_never_used_again_even_for_a_key_that_was_forgotten(store: Store, make: Any) -> None:
    scope = make.scope()
    first = (await store.claim(make.claim(scope))).record
    assert await store.release(scope, first.fence)
    assert await store.look_up(scope) is None
    second = (await store.claim(make.claim(scope))).record
    assert second.fence > first.fence
    assert not await store.finish(scope, first.fence, b"stale", DAY_S)


async def test_release_restores_ambiguity(store: Store, make: Any) -> None:
    scope = make.scope()
    first = (await store.claim(make.claim(scope))).record
    assert await store.leave_ambiguous(scope, first.fence)
    second = await store.claim(make.claim(scope, repeatable=True))
    assert second.was_ambiguous
    assert await store.release(scope, second.record.fence)
    record = await store.look_up(scope)
    assert record is not None
    assert record.state is RecordState.AMBIGUOUS
    assert (await store.claim(make.claim(scope))).decision is Decision.UNKNOWN


async def test_an_ambiguous_key_is_settled_by_the_answer_that_came_late(store: Store, make: Any) -> None:
    scope = make.scope()
    fence = (await store.claim(make.claim(scope))).record.fence
    assert await store.leave_ambiguous(scope, fence)
    assert await store.finish(scope, fence, b"late", DAY_S)
    assert (await store.claim(make.claim(scope))).decision is Decision.REPLAY


async def test_finishing_twice_with_the_same_answer_is_no_error_and_with_another_changes_nothing(
    store: Store, make: Any
) -> None:
    scope = make.scope()
    fence = (await store.claim(make.claim(scope))).record.fence
    assert await store.finish(scope, fence, b"answer", DAY_S)
    assert await store.finish(scope, fence, b"answer", DAY_S)
    assert not await store.finish(scope, fence, b"another", DAY_S)
    record = await store.look_up(scope)
    assert record is not None
    assert record.answer == b"answer"


async def test_renewing_keeps_a_claim_beyond_its_first_lease(store: Store, make: Any, passed: Any) -> None:
    scope = make.scope()
    first = (await store.claim(make.claim(scope, lease_s=0.05))).record
    await store.renew("relay-1", [(scope, first.fence)], DAY_S)
    await passed(store, first.lease_until)
    assert (await store.claim(make.claim(scope, repeatable=True))).decision is Decision.WAIT


async def test_an_expired_answer_leaves_a_tombstone_and_the_tombstone_goes_in_its_time(
    store: Store, make: Any, passed: Any
) -> None:
    scope = make.scope()
    fence = (await store.claim(make.claim(scope))).record.fence
    await store.finish(scope, fence, b"answer", 0.01)
    await passed(store, store.now() + 0.01)
    assert (await store.claim(make.claim(scope))).decision is Decision.KEY_EXPIRED
    assert await store.sweep_keys(tombstone_s=0.01, limit=10) == 1
    record = await store.look_up(scope)
    assert record is not None
    assert (record.state, record.answer) == (RecordState.EXPIRED, None)
    assert (await store.claim(make.claim(scope))).decision is Decision.KEY_EXPIRED
    await passed(store, record.expires_at)
    assert await store.sweep_keys(tombstone_s=0.01, limit=10) == 1
    assert await store.look_up(scope) is None
    assert await store.sweep_keys(tombstone_s=0.01, limit=10) == 0


async def test_a_refusal_that_expired_leaves_nothing(store: Store, make: Any, passed: Any) -> None:
    swept, claimed = make.scope(), make.scope()
    for scope in (swept, claimed):
        fence = (await store.claim(make.claim(scope))).record.fence
        await store.finish(scope, fence, b"refused", 0.01, Afterwards.FORGOTTEN)
    assert (await store.look_up(swept)).then is Afterwards.FORGOTTEN
    await passed(store, store.now() + 0.01)
    again = await store.claim(make.claim(claimed, request=b"corrected"))
    assert again.decision is Decision.EXECUTE
    assert not again.was_ambiguous
    assert again.record.attempts == 1
    assert await store.sweep_keys(tombstone_s=DAY_S, limit=10) == 1
    assert await store.look_up(swept) is None


async def test_who_waits_for_a_key_learns_of_its_answer_through_whichever_relay(
    store: Store, other: Store, make: Any
) -> None:
    scope = make.scope()
    fence = (await store.claim(make.claim(scope))).record.fence
    waiting = [asyncio.create_task(relay.changed(scope, fence, 20.0)) for relay in (store, other)]
    await asyncio.gather(store.look_up(scope), other.look_up(scope))
    assert await other.finish(scope, fence, b"answer", DAY_S)
    for record in await asyncio.gather(*waiting):
        assert record is not None
        assert record.answer == b"answer"


async def test_waiting_for_a_key_ends_with_its_time_and_with_the_lease(store: Store, make: Any) -> None:
    scope = make.scope()
    fence = (await store.claim(make.claim(scope))).record.fence
    record = await store.changed(scope, fence, 0.01)
    assert record is not None
    assert record.state is RecordState.IN_PROGRESS
    short = make.scope()
    lapsing = (await store.claim(make.claim(short, lease_s=0.05))).record
    async with asyncio.timeout(10):
        record = await store.changed(short, lapsing.fence, 600.0)
    assert record is not None
    assert store.now() >= record.lease_until


async def test_unknown_outcomes_are_listed_in_pages_lapsed_leases_included(
    store: Store, make: Any, passed: Any
) -> None:
    expected = []
    for number in range(7):
        scope = make.scope(tenant="even" if number % 2 == 0 else "odd")
        record = (await store.claim(make.claim(scope, lease_s=0.01 if number < 3 else DAY_S))).record
        if number >= 3:
            await store.leave_ambiguous(scope, record.fence)
        expected.append(scope)
    await store.claim(make.claim(make.scope()))
    await passed(store, store.now() + 0.02)
    listed, token, pages = [], "", 0
    while pages == 0 or token:
        page, token = await store.ambiguous(tenant=None, after=token, limit=3)
        listed += [record.scope for record in page]
        pages += 1
    assert listed == expected
    assert pages == 3
    odd, _ = await store.ambiguous(tenant="odd", after="", limit=10)
    assert [record.scope for record in odd] == expected[1::2]


async def test_a_page_token_that_nobody_gave_out_is_refused(store: Store) -> None:
    with pytest.raises(InvalidPageTokenError):
        await store.ambiguous(tenant=None, after="nonsense", limit=3)
