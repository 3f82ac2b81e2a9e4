"""What an operation of the admission costs does not depend on how much waits.

Lines run and tickets looked at are counted, not time.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from relay_service.core.admission import Admission, Demand
from relay_service.core.criticality import Criticality
from relay_service.core.limit import LoadSign
from relay_service.core.policy import AdmissionPolicy, QueueOrder, StandingShed

CORE = "relay_service/core"
FEW, MANY = 50, 5_000


class Ticket:
    """Counts how often any ticket is looked at."""

    looks = 0

    def __hash__(self) -> int:
        Ticket.looks += 1
        return id(self)

    def __eq__(self, other: object) -> bool:
        Ticket.looks += 1
        return self is other


def steps(action: Callable[[], object]) -> int:
    """Lines of the core that are run, and looks at tickets."""
    lines = 0

    def local(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return local

    def entered(frame: FrameType, _event: str, _arg: object) -> Any:
        return local if CORE in frame.f_code.co_filename else None

    before = Ticket.looks
    tracing = sys.gettrace()
    sys.settrace(entered)
    try:
        action()
    finally:
        sys.settrace(tracing)
    return lines + Ticket.looks - before


def filled(waiting: int, *, full: bool, shed: StandingShed = StandingShed.CODEL) -> Admission[Ticket]:
    """So many wait, of all classes and fifty clients; ``full`` leaves no room for another."""
    policy = AdmissionPolicy(
        queue_capacity=waiting if full else 2 * waiting,
        workers=1,
        sheddable_share=1.0,
        sheddable_plus_share=1.0,
        queue_order=QueueOrder.ADAPTIVE_LIFO,
        standing_shed=shed,
    )
    gate: Admission[Ticket] = Admission(policy, 0.0, b"secret")
    gate.offer(Ticket(), Demand(), 0.0)
    for number in range(waiting):
        gate.offer(Ticket(), demand(number), 0.0)
    assert gate.queued == waiting
    return gate


def demand(number: int) -> Demand:
    return Demand(Criticality(number % 4), 100.0, b"client %d" % (number // 4 % 50))


HIGHEST = Demand(Criticality.CRITICAL_PLUS, 100.0, b"client 7")


def join(gate: Admission[Ticket]) -> None:
    gate.offer(Ticket(), HIGHEST, 1.0)


def look(gate: Admission[Ticket]) -> None:
    gate.turn_away(HIGHEST, 1.0)


def end_and_grant(gate: Admission[Ticket]) -> None:
    gate.release(LoadSign.SUCCESS, 0.1, 1.0)
    assert gate.grant(1.0) is not None


def leave(gate: Admission[Ticket]) -> None:
    gate.withdraw(next(reversed(gate._waiting)))


@pytest.mark.parametrize("operation", [join, look, end_and_grant, leave])
@pytest.mark.parametrize("full", [False, True], ids=["with-room", "full"])
@pytest.mark.parametrize("shed", [StandingShed.CODEL, StandingShed.DOOR])
def test_what_an_operation_costs_does_not_grow_with_the_queue(
    operation: Callable[[Admission[Ticket]], None], full: bool, shed: StandingShed
) -> None:
    few, many = filled(FEW, full=full, shed=shed), filled(MANY, full=full, shed=shed)
    for round_ in range(5):
        cheap, dear = steps(lambda: operation(few)), steps(lambda: operation(many))
        print(f"round {round_}: {cheap} steps with {FEW} waiting, {dear} with {MANY}")
        assert 0 < dear <= cheap + 5


def test_a_search_through_the_queue_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw = Admission.withdraw

    def searched(self: Admission[Ticket], ticket: Ticket) -> None:
        withdraw(self, next(each for each in self._waiting if each == ticket))

    monkeypatch.setattr(Admission, "withdraw", searched)
    few, many = filled(FEW, full=False), filled(MANY, full=False)
    assert steps(lambda: leave(few)) < steps(lambda: leave(many)) / 10
