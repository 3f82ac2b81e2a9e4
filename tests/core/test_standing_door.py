"""The door of a standing queue: who still joins it, and who is refused on arrival."""

from dataclasses import replace

import pytest

from relay_service.core.admission import PATIENCE, Admission, Admitted, Demand, Offer
from relay_service.core.criticality import Criticality
from relay_service.core.limit import LoadSign
from relay_service.core.policy import AdmissionPolicy, StandingShed
from relay_service.core.reason import Reason

SERVICE_S = 0.01
POLICY = AdmissionPolicy(queue_capacity=40, workers=1, standing_shed=StandingShed.DOOR)
IN_TARGET = round(POLICY.standing_target_s / SERVICE_S)
"""So many calls take as long as the target."""
STOOD_S = POLICY.standing_interval_s
PLAIN = Demand()


def busy_gate(policy: AdmissionPolicy = POLICY, service_s: float = SERVICE_S) -> Admission[str]:
    """It has seen a hundred attempts, back to back until time 0, and its only worker is taken."""
    gate: Admission[str] = Admission(policy, -100 * service_s)
    for number in range(100):
        gate.offer(f"before {number}", PLAIN, (number - 100) * service_s)
        gate.release(LoadSign.SUCCESS, service_s, (number - 99) * service_s)
        gate.grant((number - 99) * service_s)
    assert gate.offer("running", PLAIN, 0.0).admitted is Admitted.STARTED
    return gate


def fill(gate: Admission[str], calls: int, demand: Demand = PLAIN, now: float = 0.0) -> None:
    for number in range(calls):
        name = f"{demand.client!r} {demand.criticality} {number}"
        assert gate.offer(name, demand, now).admitted is Admitted.QUEUED


def test_a_burst_finds_the_whole_queue() -> None:
    gate = busy_gate()
    fill(gate, POLICY.queue_capacity)
    assert gate.offer("one more", PLAIN, 0.0).reason is Reason.QUEUE_FULL


def test_once_the_queue_has_stood_for_an_interval_a_newcomer_is_refused_at_the_door() -> None:
    gate = busy_gate()
    fill(gate, IN_TARGET)
    assert gate.refusal(PLAIN, STOOD_S - 0.01) is None
    assert gate.offer("late", PLAIN, STOOD_S) == Offer(Admitted.REFUSED, Reason.QUEUE_STANDING)
    state = gate.state()
    assert state.standing_shed == 1
    assert state.refused[Criticality.CRITICAL] == 1
    assert gate.queued == IN_TARGET


def test_a_queue_that_only_lower_classes_keep_from_emptying_has_an_open_door_for_higher_ones() -> None:
    gate = busy_gate()
    low, high = Demand(Criticality.SHEDDABLE), Demand(Criticality.CRITICAL)
    fill(gate, IN_TARGET, low)
    assert gate.refusal(low, STOOD_S) is Reason.QUEUE_STANDING
    fill(gate, IN_TARGET + 1, high, STOOD_S)
    assert gate.refusal(high, 2 * STOOD_S - 0.01) is None
    assert gate.refusal(high, 2 * STOOD_S) is Reason.QUEUE_STANDING, (
        "they have stood for an interval themselves"
    )


def test_a_higher_class_that_waits_shuts_the_door_to_lower_ones() -> None:
    gate = busy_gate()
    fill(gate, IN_TARGET, Demand(Criticality.CRITICAL))
    assert gate.refusal(Demand(Criticality.SHEDDABLE), STOOD_S) is Reason.QUEUE_STANDING


def test_a_queue_that_takes_less_than_the_target_lets_in_one_more_however_old_it_is() -> None:
    gate = busy_gate()
    fill(gate, IN_TARGET - 1)
    assert gate.offer("late", PLAIN, 10 * STOOD_S).admitted is Admitted.QUEUED


def test_a_queue_that_was_empty_since_is_a_new_one() -> None:
    gate = busy_gate()
    fill(gate, 1)
    gate.hand_back()
    assert gate.grant(STOOD_S) is not None
    fill(gate, IN_TARGET, now=STOOD_S)
    assert gate.refusal(PLAIN, 2 * STOOD_S - 0.01) is None
    assert gate.refusal(PLAIN, 2 * STOOD_S) is Reason.QUEUE_STANDING


def test_only_calls_of_a_class_and_those_above_shut_the_door_for_it() -> None:
    gate = busy_gate()
    fill(gate, IN_TARGET)
    assert gate.refusal(replace(PLAIN, criticality=Criticality.SHEDDABLE), STOOD_S) is Reason.QUEUE_STANDING
    assert gate.refusal(replace(PLAIN, criticality=Criticality.CRITICAL_PLUS), STOOD_S) is None


def test_another_client_waits_for_its_turn_and_not_for_what_a_noisy_one_has_waiting() -> None:
    gate = busy_gate()
    fill(gate, 3 * IN_TARGET, Demand(client=b"noisy"))
    assert gate.refusal(Demand(client=b"noisy"), STOOD_S) is Reason.QUEUE_STANDING
    assert gate.refusal(Demand(client=b"modest"), STOOD_S) is None


def test_who_comes_back_passes_the_door_in_the_place_of_the_newest_newcomer() -> None:
    gate = busy_gate()
    fill(gate, IN_TARGET - 1)
    gate.offer("newest", PLAIN, 0.0)
    offer = gate.offer("back", replace(PLAIN, returning=True), STOOD_S)
    assert offer == Offer(Admitted.QUEUED, Reason.QUEUE_STANDING, "newest")
    assert gate.queued == IN_TARGET


def test_a_caller_with_time_waits_for_a_quarter_of_it_where_one_in_a_hurry_is_refused() -> None:
    gate = busy_gate()
    fill(gate, IN_TARGET)
    enough_s = POLICY.standing_target_s / PATIENCE
    hasty, patient = Demand(deadline=STOOD_S + 0.9 * enough_s), Demand(deadline=STOOD_S + 1.7 * enough_s)
    assert gate.refusal(hasty, STOOD_S) is Reason.QUEUE_STANDING
    for number in range(IN_TARGET):
        offer = gate.offer(f"patient {number}", patient, STOOD_S)
        if offer.admitted is Admitted.REFUSED:
            break
    assert (number, offer.reason) == (round(0.8 * IN_TARGET), Reason.QUEUE_STANDING)


def test_a_wait_is_borne_that_is_no_longer_than_the_work() -> None:
    gate = busy_gate(service_s=1.0)
    assert gate.refusal(PLAIN, 10.0) is None
    fill(gate, 1)
    assert gate.refusal(PLAIN, 10.0) is Reason.QUEUE_STANDING


def test_while_nothing_is_known_of_the_service_the_door_is_open() -> None:
    gate: Admission[str] = Admission(POLICY, 0.0)
    gate.offer("running", PLAIN, 0.0)
    fill(gate, 20)
    assert gate.refusal(PLAIN, 10.0) is None


def test_a_policy_that_is_adopted_opens_and_shuts_the_door() -> None:
    gate = busy_gate()
    fill(gate, IN_TARGET)
    gate.adopt(replace(POLICY, standing_shed=StandingShed.NONE), STOOD_S)
    assert gate.refusal(PLAIN, STOOD_S) is None
    gate.adopt(POLICY, STOOD_S)
    assert gate.refusal(PLAIN, STOOD_S) is Reason.QUEUE_STANDING


def test_a_door_that_never_shuts_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "_door_is_shut", lambda *_: False)
    with pytest.raises(AssertionError):
        test_once_the_queue_has_stood_for_an_interval_a_newcomer_is_refused_at_the_door()
