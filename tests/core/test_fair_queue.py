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
    assert [queue.ahead_of_newcomer(cohort) for cohort in (0, 1, 2)] == [102, 6, 2]


def test_who_comes_back_goes_first_in_its_cohort_and_is_shed_last() -> None:
    queue = queue_of(a=3, b=1)
    queue.add_returned("a back", 0)
    queue.add_returned("a back again", 0)
    assert (queue.waiting_of(0), queue.newcomers_of(0), queue.ahead_of_returned(0)) == (5, 3, 6)
    assert [queue.take_from_longest(Which.OLDEST) for _ in range(2)] == ["a0", "a1"]
    assert queue.take_newcomer(0) == "a2"
    assert queue.take_from_longest(Which.OLDEST) == "a back again"
    queue.add("a3", 0)
    assert [queue.take(Which.NEWEST) for _ in range(3)] == ["a back", "b0", "a3"]


class Model:
    """The same by lists: for each cohort who came back and who is new, in the order of the cohorts' turns."""

    def __init__(self) -> None:
        self.cohorts: OrderedDict[int, tuple[list[int], list[int]]] = OrderedDict()

    def of(self, cohort: int) -> tuple[list[int], list[int]]:
        return self.cohorts.get(cohort, ([], []))

    def length(self, cohort: int) -> int:
        returned, new = self.of(cohort)
        return len(returned) + len(new)

    def most(self) -> int:
        return max(map(self.length, self.cohorts), default=0)

    def forget_empty(self) -> None:
        for empty in [cohort for cohort in self.cohorts if not self.length(cohort)]:
            del self.cohorts[empty]


STEPS = ("add", "add returned", "take", "newest", "longest", "newcomer", "remove")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 4))))
def test_the_queue_agrees_with_lists_of_tickets(steps: list[tuple[str, int]]) -> None:
    queue: FairQueue[int] = FairQueue()
    model = Model()
    for ticket, (step, cohort) in enumerate(steps):
        returned, new = model.of(cohort)
        match step:
            case "add":
                queue.add(ticket, cohort)
                model.cohorts.setdefault(cohort, ([], []))[1].append(ticket)
            case "add returned":
                queue.add_returned(ticket, cohort)
                model.cohorts.setdefault(cohort, ([], []))[0].append(ticket)
            case "take" | "newest" if model.cohorts:
                turn, (first, then) = next(iter(model.cohorts.items()))
                newest = -1 if step == "newest" else 0
                expected = first.pop(0) if first else then.pop(newest)
                assert queue.take(Which.NEWEST if step == "newest" else Which.OLDEST) == expected
                model.cohorts.move_to_end(turn)
            case "longest" if model.cohorts:
                longest = queue.longest_cohort
                assert longest is not None
                assert model.length(longest) == model.most()
                first, then = model.of(longest)
                assert queue.take_from_longest(Which.NEWEST) == (then or first).pop()
            case "newcomer" if new:
                assert queue.take_newcomer(cohort) == new.pop()
            case "remove" if returned or new:
                tickets = returned or new
                queue.remove(tickets.pop(len(tickets) // 2), cohort)
        model.forget_empty()
        assert queue.length == sum(map(model.length, model.cohorts))
        assert queue.longest == model.most()
        assert [queue.waiting_of(each) for each in range(5)] == [model.length(each) for each in range(5)]
        assert [queue.newcomers_of(each) for each in range(5)] == [
            len(model.of(each)[1]) for each in range(5)
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
