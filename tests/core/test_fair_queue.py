"""Turns between cohorts, and clients' cohorts."""

from collections import Counter, OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from relay_service.core.cohorts import COHORTS, RESHUFFLE_S, Cohorts
from relay_service.core.fair_queue import FairQueue, Which


def queue_of(**counts: int) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for cohort, (name, count) in enumerate(counts.items()):
        for number in range(count):
            queue.add(f"{name}{number}", cohort)
    return queue


def test_cohorts_take_turns_whatever_the_number_of_their_calls() -> None:
    queue = queue_of(a=100, b=2, c=1)
    assert [queue.take(Which.OLDEST) for _ in range(6)] == ["a0", "b0", "c0", "a1", "b1", "a2"]


def test_the_newest_of_a_cohort_may_be_asked_for() -> None:
    queue = queue_of(a=3, b=2)
    assert [queue.take(Which.NEWEST) for _ in range(4)] == ["a2", "b1", "a1", "b0"]


def test_a_newcomer_waits_for_its_own_calls_and_for_one_of_each_other_between_them() -> None:
    queue = queue_of(a=100, b=2)
    assert [queue.ahead_of_next(cohort) for cohort in (0, 1, 2)] == [102, 6, 2]


@given(
    st.lists(st.tuples(st.sampled_from(["add", "take", "newest", "longest", "remove"]), st.integers(0, 4)))
)
def test_the_queue_agrees_with_lists_of_tickets(steps: list[tuple[str, int]]) -> None:
    """The model: a list for each cohort, in the order of their turns."""
    queue: FairQueue[int] = FairQueue()
    model: OrderedDict[int, list[int]] = OrderedDict()
    for ticket, (step, cohort) in enumerate(steps):
        match step:
            case "add":
                queue.add(ticket, cohort)
                model.setdefault(cohort, []).append(ticket)
            case "take" | "newest" if model:
                turn = next(iter(model))
                which = Which.OLDEST if step == "take" else Which.NEWEST
                assert queue.take(which) == model[turn].pop(0 if which is Which.OLDEST else -1)
                model.move_to_end(turn)
            case "longest" if model:
                taken = queue.take_from_longest(Which.NEWEST)
                most = max(map(len, model.values()))
                assert [taken] in [tickets[-1:] for tickets in model.values() if len(tickets) == most]
                next(tickets for tickets in model.values() if taken in tickets).remove(taken)
            case "remove" if model.get(cohort):
                queue.remove(model[cohort].pop(len(model[cohort]) // 2), cohort)
        for empty in [each for each, tickets in model.items() if not tickets]:
            del model[empty]
        assert len(queue) == sum(map(len, model.values()))
        assert queue.longest == max(map(len, model.values()), default=0)
        assert [queue.waiting_of(each) for each in range(5)] == [
            len(model.get(each, [])) for each in range(5)
        ]


def test_made_up_names_fall_into_a_bounded_number_of_cohorts_alike() -> None:
    cohorts = Cohorts(b"secret")
    found = Counter(cohorts.of(b"client %d" % number, 0.0) for number in range(64_000))
    assert set(found) == set(range(COHORTS))
    assert min(found.values()) > 850
    assert max(found.values()) < 1150


def test_a_client_keeps_its_cohort_for_a_while_and_two_do_not_share_one_for_ever() -> None:
    cohorts = Cohorts(b"secret")
    neighbours = [
        name for name in (b"%d" % n for n in range(2000)) if cohorts.of(name, 1.0) == cohorts.of(b"me", 1.0)
    ]
    assert {cohorts.of(b"me", at) for at in (0.0, 5.0, RESHUFFLE_S - 0.1)} == {cohorts.of(b"me", 1.0)}
    later = 1.0 + RESHUFFLE_S
    still = [name for name in neighbours if cohorts.of(name, later) == cohorts.of(b"me", later)]
    assert len(still) < len(neighbours) / 4


def test_who_shares_a_cohort_depends_on_the_secret() -> None:
    drawn = {Cohorts(bytes([secret])).of(b"me", 0.0) for secret in range(100)}
    assert len(drawn) > 30
