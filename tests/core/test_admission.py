"""Workers, classes and places in the queue: who starts, who waits, who goes."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_service.core.admission import OBSERVATIONS_MIN, Admission, Admitted, Demand, Grant
from relay_service.core.criticality import Criticality
from relay_service.core.fair_queue import Which
from relay_service.core.limit import LoadSign
from relay_service.core.pace import ServiceTime
from relay_service.core.policy import AdmissionPolicy, QueueOrder, StandingShed
from relay_service.core.reason import Reason
from relay_service.core.turns import DO_NOT_RETURN, PUSHBACK_MAX_S, PUSHBACK_MIN_S, TURN_SLACK

PLAIN = Demand()
RETURNING = Demand(returning=True)
SHEDDABLE = Demand(Criticality.SHEDDABLE)
SHEDDABLE_PLUS = Demand(Criticality.SHEDDABLE_PLUS)
CRITICAL = Demand(Criticality.CRITICAL)
CRITICAL_PLUS = Demand(Criticality.CRITICAL_PLUS)


def handed(gate: Admission[Any], now: float = 0.0, held_s: float = 0.0) -> Any:
    """One worker given back; the ticket it went to."""
    gate.release(LoadSign.SUCCESS, held_s, now)
    grant = gate.grant(now)
    return grant.ticket if grant else None


def admission(workers: int = 2, queue: int = 3) -> Admission[int]:
    return Admission(AdmissionPolicy(queue_capacity=queue, workers=workers, max_streams=1), 0.0)


def test_work_is_refused_only_when_all_workers_are_busy_and_the_queue_is_full() -> None:
    gate = admission()
    offers = [gate.offer(ticket, PLAIN, 0.0).admitted for ticket in range(7)]
    assert offers == [Admitted.STARTED] * 2 + [Admitted.QUEUED] * 3 + [Admitted.REFUSED] * 2
    assert gate.refusal(PLAIN, 0.0) is Reason.QUEUE_FULL


def test_the_queue_is_first_in_first_out_and_a_worker_is_handed_on() -> None:
    gate = admission()
    for ticket in range(5):
        gate.offer(ticket, PLAIN, 0.0)
    assert [handed(gate) for _ in range(5)] == [2, 3, 4, None, None]
    assert (gate.busy, gate.queued) == (0, 0)


def test_who_left_the_queue_gets_no_worker() -> None:
    gate = admission()
    for ticket in range(5):
        gate.offer(ticket, PLAIN, 0.0)
    gate.withdraw(3)
    assert [handed(gate) for _ in range(2)] == [2, 4]


@given(st.lists(st.sampled_from(["offer", "release", "withdraw"]), max_size=200))
def test_workers_and_queue_never_exceed_their_limits(steps: list[str]) -> None:
    gate, running, waiting = admission(), 0, []
    for ticket, step in enumerate(steps):
        match step:
            case "offer":
                match gate.offer(ticket, PLAIN, 0.0).admitted:
                    case Admitted.STARTED:
                        running += 1
                    case Admitted.QUEUED:
                        waiting.append(ticket)
                    case Admitted.REFUSED:
                        assert (running, len(waiting)) == (2, 3)
            case "release" if running:
                ticket_ = handed(gate)
                assert ticket_ == (waiting.pop(0) if waiting else None)
                running -= ticket_ is None
            case "withdraw" if waiting:
                gate.withdraw(waiting.pop())
        assert (gate.busy, gate.queued) == (running, len(waiting))


def test_a_worker_that_is_not_needed_goes_to_the_next_and_teaches_nothing() -> None:
    gate = admission()
    for ticket in range(5):
        gate.offer(ticket, PLAIN, 0.0)
    tickets = [handed(gate)]
    for _ in range(3):
        gate.hand_back()
        grant = gate.grant(0.0)
        tickets.append(grant.ticket if grant else None)
    assert tickets == [2, 3, 4, None]
    assert (gate.busy, gate.drain_per_second(0.0)) == (1, 1.0)


def draining(per_second: int) -> tuple[Admission[int], float]:
    """A gate with ten waiting, which has drained steadily for three seconds; and the time."""
    gate = admission(workers=1, queue=10)
    for ticket in range(11):
        gate.offer(ticket, PLAIN, 0.0)
    now = 0.0
    for ticket in range(100, 100 + 3 * per_second):
        now += 1 / per_second
        handed(gate, now, held_s=1 / per_second)
        gate.offer(ticket, PLAIN, 0.0)
    return gate, now


def test_pushback_follows_the_drain_rate_and_is_jittered() -> None:
    told = [gate.pushback_s(now, Random(seed)) for seed in range(50) for gate, now in [draining(100)]]
    assert sum(told) / len(told) == pytest.approx(
        0.11 * TURN_SLACK, rel=0.15
    )  # eleven ahead, 100 a second, and some slack
    assert max(told) > 1.4 * min(told)


def test_callers_refused_together_are_told_to_return_one_after_another() -> None:
    gate, now = draining(100)
    rng = Random(2)
    told = [gate.pushback_s(now, rng) for _ in range(200)]
    late, early = sum(told[-20:]) / 20, sum(told[:20]) / 20
    assert late - early == pytest.approx(1.8 * TURN_SLACK, rel=0.2)  # 180 turns between them, 100 a second
    assert max(gate.pushback_s(now, rng) for _ in range(5_000)) <= PUSHBACK_MAX_S * 1.25


def test_when_every_turn_is_booked_nobody_is_told_to_come() -> None:
    gate, now = draining(10)
    told = [gate.pushback_s(now, Random(seed)) for seed in range(200)]
    booked = sum(each >= 0 for each in told)
    assert booked == pytest.approx(10 * PUSHBACK_MAX_S / TURN_SLACK - 10, abs=12), "ten a second, ten waiting"
    assert set(told[booked:]) == {DO_NOT_RETURN}
    later = [gate.pushback_s(now + 1.0, Random(seed)) for seed in range(20)]
    assert later[0] > 0 > later[-1], "a second later there are a second's turns again"


def test_an_attempt_that_fails_at_once_is_not_taken_for_plenty() -> None:
    gate, now = draining(100)
    for number in range(300):
        handed(gate, now + number / 100, held_s=0.0001)
        gate.offer(1000 + number, PLAIN, now)
    told = [gate.pushback_s(now + 3.0, Random(seed)) for seed in range(100)]
    assert max(told) > 100 / (3 * 100) * 0.75, "a hundred turns at thrice the rate that was seen, at least"


def test_who_comes_back_takes_the_place_of_the_newest_newcomer() -> None:
    gate = admission(workers=1, queue=3)
    for ticket in range(4):
        gate.offer(ticket, PLAIN, 0.0)
    assert gate.refusal(PLAIN, 0.0) is Reason.QUEUE_FULL
    assert gate.refusal(RETURNING, 0.0) is None
    offer = gate.offer(4, RETURNING, 0.0)
    assert (offer.admitted, offer.reason, offer.displaced) == (Admitted.QUEUED, Reason.QUEUE_FULL, 3)
    assert [gate.offer(ticket, RETURNING, 0.0).displaced for ticket in (5, 6)] == [2, 1]
    assert gate.offer(7, RETURNING, 0.0).reason is Reason.QUEUE_FULL, "all of them came back"
    assert [handed(gate) for _ in range(4)] == [4, 5, 6, None]
    assert (gate.queued, gate.busy) == (0, 0)


def test_a_newcomer_that_left_the_queue_has_no_place_to_lose() -> None:
    gate = admission(workers=1, queue=2)
    for ticket in range(3):
        gate.offer(ticket, PLAIN, 0.0)
    gate.withdraw(2)
    gate.offer(3, RETURNING, 0.0)
    assert handed(gate) == 3
    assert gate.offer(4, RETURNING, 0.0).displaced is None
    assert gate.offer(5, RETURNING, 0.0).displaced == 1
    assert gate.offer(6, RETURNING, 0.0).admitted is Admitted.REFUSED


def test_coming_back_takes_no_place_of_a_client_that_has_no_more() -> None:
    gate: Admission[str] = Admission(AdmissionPolicy(queue_capacity=4, workers=1, max_streams=1), 0.0)
    gate.offer("under way", PLAIN, 0.0)
    for number in range(2):
        gate.offer(f"noisy {number}", Demand(client=b"noisy", returning=True), 0.0)
        gate.offer(f"modest {number}", Demand(client=b"modest"), 0.0)
    assert gate.offer("noisy", Demand(client=b"noisy", returning=True), 0.0).reason is Reason.QUEUE_FULL


def test_coming_back_takes_the_newest_place_of_the_client_that_has_most() -> None:
    gate: Admission[str] = Admission(AdmissionPolicy(queue_capacity=5, workers=1, max_streams=1), 0.0)
    gate.offer("under way", PLAIN, 0.0)
    for number in range(3):
        gate.offer(f"most {number}", Demand(client=b"most"), 0.0)
    gate.offer("back 0", Demand(client=b"back", returning=True), 0.0)
    gate.offer("back 1", Demand(client=b"back", returning=True), 0.0)
    assert gate.offer("back 2", Demand(client=b"back", returning=True), 0.0).displaced == "most 2"
    assert gate.offer("back 3", Demand(client=b"back", returning=True), 0.0).admitted is Admitted.REFUSED


def test_who_comes_back_is_served_before_the_newcomers_of_its_client_and_shed_after_them() -> None:
    gate = admission(workers=1, queue=10)
    gate.offer("under way", PLAIN, 0.0)
    gate.offer("new", PLAIN, 0.0)
    gate.offer("back", RETURNING, 0.0)
    gate.offer("newer", PLAIN, 0.0)
    assert [handed(gate) for _ in range(3)] == ["back", "new", "newer"]


def test_pushback_is_bounded_when_nothing_drains() -> None:
    told = {admission().pushback_s(1e6, Random(seed)) for seed in range(20)}
    assert len(told) == 20
    assert max(told) <= 1.5
    gate = admission()
    for _ in range(100_000):
        gate.offer(1, PLAIN, 0.0)
        handed(gate)
    assert PUSHBACK_MIN_S * 0.75 <= gate.pushback_s(0.0, Random(1)) <= PUSHBACK_MIN_S * 1.25
    assert gate.pushback_s(60.0, Random(1)) <= PUSHBACK_MAX_S * 1.5


def test_streams_have_a_limit_of_their_own() -> None:
    gate = admission()
    assert gate.open_stream()
    assert not gate.open_stream()
    gate.close_stream()
    assert gate.open_stream()


# Classes --------------------------------------------------------------------------------------------


def busy(queue: int = 10) -> Admission[str]:
    """One worker, taken."""
    gate: Admission[str] = Admission(AdmissionPolicy(queue_capacity=queue, workers=1), 0.0)
    gate.offer("running", PLAIN, 0.0)
    return gate


def drained(gate: Admission[str]) -> list[str]:
    order = []
    while (ticket := handed(gate)) is not None:
        order.append(ticket)
    return order


def test_higher_classes_leave_the_queue_first_and_a_class_is_first_in_first_out() -> None:
    gate = busy(queue=20)
    for ticket, demand in (
        ("s1", SHEDDABLE),
        ("c1", CRITICAL),
        ("p1", SHEDDABLE_PLUS),
        ("c2", CRITICAL),
        ("!1", CRITICAL_PLUS),
        ("s2", SHEDDABLE),
    ):
        gate.offer(ticket, demand, 0.0)
    assert gate.state().queued == {
        Criticality.SHEDDABLE: 2,
        Criticality.SHEDDABLE_PLUS: 1,
        Criticality.CRITICAL: 2,
        Criticality.CRITICAL_PLUS: 1,
    }
    assert drained(gate) == ["!1", "c1", "c2", "p1", "s1", "s2"]


@pytest.mark.parametrize(
    ("demand", "room", "reason"),
    [
        (SHEDDABLE, 5, Reason.SHED_BY_CRITICALITY),
        (SHEDDABLE_PLUS, 8, Reason.SHED_BY_CRITICALITY),
        (CRITICAL, 10, Reason.QUEUE_FULL),
        (CRITICAL_PLUS, 10, Reason.QUEUE_FULL),
    ],
)
def test_a_class_is_refused_once_its_share_of_the_queue_is_filled(
    demand: Demand, room: int, reason: Reason
) -> None:
    gate = busy(queue=10)
    offers = [gate.offer(str(number), demand, 0.0) for number in range(room + 1)]
    assert [offer.admitted for offer in offers] == [Admitted.QUEUED] * room + [Admitted.REFUSED]
    assert offers[-1].reason is gate.refusal(demand, 0.0) is reason


def test_a_higher_class_takes_the_place_of_the_newest_of_the_lowest_when_the_queue_is_full() -> None:
    gate = busy(queue=4)
    for ticket, demand in (("s1", SHEDDABLE), ("s2", SHEDDABLE), ("p1", SHEDDABLE_PLUS), ("c1", CRITICAL)):
        gate.offer(ticket, demand, 0.0)
    offers = [gate.offer(f"c{number}", CRITICAL, 0.0) for number in (2, 3, 4, 5)]
    assert [offer.displaced for offer in offers] == ["s2", "s1", "p1", None]
    assert offers[-1].reason is Reason.QUEUE_FULL
    assert gate.offer("!1", CRITICAL_PLUS, 0.0).displaced == "c4"
    assert gate.state().displaced == 4
    assert drained(gate) == ["!1", "c1", "c2", "c3"]


def test_a_class_never_displaces_its_equals() -> None:
    gate = busy(queue=4)
    for number in range(3):
        gate.offer(f"s{number}", SHEDDABLE, 0.0)
    for ticket in ("c1", "c2"):
        assert gate.offer(ticket, CRITICAL, 0.0).displaced is None
    assert gate.offer("p1", SHEDDABLE_PLUS, 0.0).displaced == "s1"
    assert gate.offer("s9", SHEDDABLE, 0.0).admitted is Admitted.REFUSED


@given(
    st.lists(
        st.tuples(st.sampled_from(["offer", "release", "withdraw"]), st.sampled_from(list(Criticality))),
        max_size=200,
    )
)
def test_the_queue_agrees_with_a_sorted_list(steps: list[tuple[str, Criticality]]) -> None:
    """The model: waiting tickets as (class, number), the next is the highest class's lowest number."""
    gate: Admission[int] = Admission(AdmissionPolicy(queue_capacity=6, workers=1), 0.0)
    gate.offer(-1, PLAIN, 0.0)
    waiting: list[tuple[Criticality, int]] = []
    room = {Criticality.SHEDDABLE: 3, Criticality.SHEDDABLE_PLUS: 5}
    for number, (step, criticality) in enumerate(steps):
        match step:
            case "offer" if gate.busy:
                offer = gate.offer(number, Demand(criticality), 0.0)
                lower = [place for place in waiting if place[0] < criticality]
                if len(waiting) < room.get(criticality, 6):
                    assert (offer.admitted, offer.displaced) == (Admitted.QUEUED, None)
                elif lower:
                    lowest = min(place[0] for place in lower)
                    newest = max(place for place in lower if place[0] is lowest)
                    assert (offer.admitted, offer.displaced) == (Admitted.QUEUED, newest[1])
                    waiting.remove(newest)
                else:
                    assert offer.admitted is Admitted.REFUSED
                    continue
                waiting.append((criticality, number))
            case "release" if gate.busy and waiting:
                highest = max(place[0] for place in waiting)
                following = min(place for place in waiting if place[0] is highest)
                assert handed(gate) == following[1]
                waiting.remove(following)
            case "withdraw" if waiting:
                gate.withdraw(waiting.pop(len(waiting) // 2)[1])
        assert gate.queued == len(waiting)


# Clients and the order of the queue -----------------------------------------------------------------


def of(client: bytes, criticality: Criticality = Criticality.CRITICAL) -> Demand:
    return Demand(criticality, client=client)


def test_clients_take_turns_within_a_class() -> None:
    gate = busy(queue=10)
    for number in range(4):
        gate.offer(f"a{number}", of(b"a"), 0.0)
    gate.offer("b0", of(b"b"), 0.0)
    gate.offer("!0", of(b"c", Criticality.CRITICAL_PLUS), 0.0)
    assert drained(gate) == ["!0", "a0", "b0", "a1", "a2", "a3"]


def test_in_a_full_queue_the_client_with_the_most_gives_way_until_all_have_as_many() -> None:
    gate = busy(queue=4)
    for number in range(4):
        gate.offer(f"a{number}", of(b"a"), 0.0)
    assert gate.offer("a4", of(b"a"), 0.0).reason is Reason.QUEUE_FULL
    first = gate.offer("b0", of(b"b"), 0.0)
    assert (first.admitted, first.reason, first.displaced) == (Admitted.QUEUED, Reason.FAIR_SHARE, "a3")
    assert gate.offer("b1", of(b"b"), 0.0).displaced == "a2"
    assert gate.offer("b2", of(b"b"), 0.0).reason is Reason.QUEUE_FULL
    assert drained(gate) == ["a0", "b0", "a1", "b1"]
    assert gate.state().refused[Criticality.CRITICAL] == 4


def test_a_client_is_not_refused_for_the_time_that_another_ones_calls_need() -> None:
    gate = learned()
    for number in range(40):
        gate.offer(f"{number}", of(b"noisy"), 0.0)
    assert gate.offer("late", Demand(deadline=0.5, client=b"noisy"), 0.0).reason is Reason.DEADLINE_INFEASIBLE
    assert gate.offer("next", Demand(deadline=0.5, client=b"modest"), 0.0).admitted is Admitted.QUEUED


def served_every(step_s: float, shed: StandingShed = StandingShed.NONE) -> list[tuple[int, Reason | None]]:
    """Six calls that came at once; a worker is free for one of them every so often."""
    policy = AdmissionPolicy(
        queue_capacity=6, workers=1, queue_order=QueueOrder.ADAPTIVE_LIFO, standing_shed=shed
    )
    gate: Admission[int] = Admission(policy, 0.0)
    for ticket in range(-1, 6):
        gate.offer(ticket, PLAIN, 0.0)
    left, now = [], 0.0
    while gate.queued:
        now += step_s
        gate.hand_back()
        while (grant := gate.grant(now)) is not None:
            left.append((grant.ticket, grant.refusal))
    return left


def test_calls_leave_in_the_order_in_which_they_came_while_the_queue_does_not_stand() -> None:
    assert served_every(0.005) == [(ticket, None) for ticket in range(6)]


def test_the_newest_leaves_first_while_the_queue_stands() -> None:
    assert served_every(0.1) == [(ticket, None) for ticket in (0, 1, 5, 4, 3, 2)]


def test_what_is_shed_from_a_standing_queue_is_the_oldest_and_costs_no_worker() -> None:
    shed, served = (2, Reason.QUEUE_STANDING), (5, None)
    assert served_every(0.1, StandingShed.CODEL)[2:4] == [shed, served]


def test_newest_first_always_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "_serves", Which.NEWEST)
    with pytest.raises(AssertionError):
        test_calls_leave_in_the_order_in_which_they_came_while_the_queue_does_not_stand()


def test_another_policy_says_anew_when_a_queue_stands() -> None:
    policy = AdmissionPolicy(queue_capacity=3, workers=1, standing_target_s=10.0)
    gate: Admission[int] = Admission(policy, 0.0)
    for ticket in range(-1, 3):
        gate.offer(ticket, PLAIN, 0.0)
    gate.adopt(replace(policy, standing_target_s=0.05), 0.0)
    for now in (0.1, 0.4):  # the first look, and one more than an interval later
        handed(gate, now)
    assert gate.state().standing
    gate.adopt(replace(policy, standing_target_s=0.05, queue_capacity=5), 0.4)
    assert gate.state().standing, "what did not change is kept"


def test_a_full_queue_that_stands_gives_a_newcomer_the_place_of_the_oldest() -> None:
    policy = AdmissionPolicy(queue_capacity=3, workers=1, queue_order=QueueOrder.ADAPTIVE_LIFO)
    gate: Admission[int] = Admission(policy, 0.0)
    for ticket in range(-1, 3):
        gate.offer(ticket, PLAIN, 0.0)
    for now in (0.1, 0.4):  # the first look, and one more than an interval later
        handed(gate, now)
        gate.offer(int(now * 10) + 10, PLAIN, now)
    assert gate.state().standing
    offer = gate.offer(99, PLAIN, 0.4)
    assert (offer.admitted, offer.reason, offer.displaced) == (Admitted.QUEUED, Reason.QUEUE_STANDING, 1)


# Deadlines ------------------------------------------------------------------------------------------


def learned(observations: int = 100, *, workers: int = 1, quantile: float | None = 0.5) -> Admission[str]:
    """A gate that has seen attempts of 100 ms, back to back until time 0, and has its workers busy."""
    policy = AdmissionPolicy(queue_capacity=100, workers=workers, feasibility_quantile=quantile)
    gate: Admission[str] = Admission(policy, -0.1 * observations)
    for number in range(observations):
        gate.offer("past", PLAIN, 0.1 * (number - observations))
        gate.release(LoadSign.SUCCESS, 0.1, 0.1 * (number + 1 - observations))
    for number in range(workers):
        gate.offer(f"running {number}", PLAIN, 0.0)
    return gate


def test_a_call_that_cannot_end_in_time_is_refused_at_the_door() -> None:
    gate = learned()
    for number in range(9):
        gate.offer(f"{number}", PLAIN, 0.0)
    # Nine wait and one runs, each 0.1 s: the next would end about 1.1 s from now.
    assert gate.offer("late", Demand(deadline=0.95), 0.0).reason is Reason.DEADLINE_INFEASIBLE
    assert gate.offer("early", Demand(deadline=1.3), 0.0).admitted is Admitted.QUEUED


def test_only_calls_that_would_be_served_first_count_as_ahead() -> None:
    gate = learned()
    for number in range(9):
        gate.offer(f"{number}", CRITICAL, 0.0)
    hurry = 0.5
    assert gate.refusal(Demand(Criticality.CRITICAL, hurry), 0.0) is Reason.DEADLINE_INFEASIBLE
    assert gate.refusal(Demand(Criticality.CRITICAL_PLUS, hurry), 0.0) is None


def test_nothing_is_refused_for_its_deadline_while_little_is_known() -> None:
    assert learned(OBSERVATIONS_MIN - 1).refusal(Demand(deadline=0.01), 0.0) is None
    assert learned(OBSERVATIONS_MIN).refusal(Demand(deadline=0.01), 0.0) is Reason.DEADLINE_INFEASIBLE


def test_nothing_is_refused_for_its_deadline_when_that_is_switched_off() -> None:
    assert learned(quantile=None).refusal(Demand(deadline=0.01), 0.0) is None


def test_a_call_that_finds_a_worker_free_is_tried_however_little_time_it_has() -> None:
    gate = learned()
    gate.release(LoadSign.SUCCESS, 100.0, 0.0)
    assert gate.offer("short", Demand(deadline=0.001), 0.0).admitted is Admitted.STARTED


def test_a_quiet_time_does_not_make_the_queue_look_slow() -> None:
    """After a minute without departures the drain rate is nothing; the workers are as fast as before."""
    gate = learned(workers=10)
    assert gate.refusal(Demand(deadline=60.0 + 0.15), 60.0) is None


def test_expired_work_is_never_started_and_hopeless_work_is_told_so() -> None:
    gate = learned()
    gate.offer("expired", Demand(deadline=0.3), 0.0)
    gate.offer("hopeless", Demand(deadline=0.55), 0.0)
    gate.offer("fine", Demand(deadline=0.9), 0.0)
    gate.release(LoadSign.SUCCESS, 0.1, 0.5)
    assert gate.grant(0.5) == Grant("expired", Reason.DEADLINE_PASSED)
    assert gate.grant(0.5) == Grant("hopeless", Reason.DEADLINE_INFEASIBLE)
    assert gate.grant(0.5) == Grant("fine")
    assert (gate.grant(0.5), gate.queued, gate.busy) == (None, 0, 1)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_the_learned_service_time_is_the_quantile_asked_for_and_the_mean(quantile: float) -> None:
    rng, service = Random(5), ServiceTime(quantile)
    quantiles, means = [], []
    for number in range(20_000):
        service.observe(rng.expovariate(10.0))
        if number > 1000:
            quantiles.append(service.quantile_s)
            means.append(service.mean_s)
    assert sum(means) / len(means) == pytest.approx(0.1, rel=0.03)
    assert sorted(quantiles)[len(quantiles) // 2] == pytest.approx(-0.1 * math.log(1 - quantile), rel=0.1)
