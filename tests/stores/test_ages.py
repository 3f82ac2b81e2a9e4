"""How long jobs and dead letters have waited, on every engine."""

from typing import Any

from relay_service.core.job import Cause, LetterState
from relay_service.stores.interface import Store

DAY_S = 86_400.0


async def test_a_ready_job_grows_old_and_one_that_is_not_ready_does_not(
    store: Store, make: Any, take: Any, passed: Any
) -> None:
    assert (await store.counts()).oldest_ready_s == 0.0
    began = store.now()
    await store.submit([make.job(delay_s=DAY_S / 48)])
    assert (await store.counts()).oldest_ready_s == 0.0
    await store.submit([make.job(order_key="held"), make.job(order_key="held"), make.job(delay_s=0.05)])
    await passed(store, began + 0.2)
    age_s = (await store.counts()).oldest_ready_s
    assert 0.0 < age_s <= store.now() - began
    # Neither runs: one is behind the job that was taken, one's delay is over and nobody has let it pass.
    await take(store)
    assert 0.0 < (await store.counts()).oldest_ready_s < store.now() - began - 0.05


async def test_unsettled_letters_are_counted_by_cause_with_the_age_of_the_oldest(
    store: Store, make: Any
) -> None:
    now = store.now()
    for age_s, cause, method, state in (
        (50, Cause.AMBIGUOUS, "shop.Payments/Charge", LetterState.OPEN),
        (90, Cause.AMBIGUOUS, "shop.Payments/Refund", LetterState.OPEN),
        (70, Cause.AMBIGUOUS, "shop.Payments/Refund", LetterState.HELD),
        (500, Cause.AMBIGUOUS, "shop.Payments/Refund", LetterState.DISCARDED),
        (30, Cause.POISON, "shop.Payments/Charge", LetterState.OPEN),
    ):
        letter = make.letter(died_at=now - age_s, cause=cause, method=method)
        await store.put_letter(letter, None, 0, DAY_S)
        if state is not LetterState.OPEN:
            await store.set_state(letter.id, state, "")
    unsettled = (await store.counts()).unsettled
    assert {cause: backlog.count for cause, backlog in unsettled.items()} == {
        Cause.AMBIGUOUS: 3,
        Cause.POISON: 1,
    }
    since_s = store.now() - now
    assert 90 <= unsettled[Cause.AMBIGUOUS].oldest_s <= 90 + since_s
    assert 30 <= unsettled[Cause.POISON].oldest_s <= 30 + since_s
