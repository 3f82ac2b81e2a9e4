"""Stock gRPC clients before a relay that is asked for too much: who comes back when told is served.

They do what gRFC A6 says: after a refusal with pushback the library waits exactly so long and sends the call
again, with ``grpc-previous-rpc-attempts``, at most five times in all and only within the deadline.
"""

from collections import Counter

import pytest
from overload import METHOD, CountedReply, Group, Overload
from world import framed

from relay_service.core.admission import Admission
from relay_service.core.fair_queue import FairQueue
from relay_service.core.policy import AdmissionPolicy
from relay_service.core.turns import PUSHBACK_MAX_S
from relay_service.ports import CallHead

TRIES_MAX = 5
SEEDS = range(3)
CAPACITY_SHARE_MIN = 0.9
OFFERED_S = 8.0


class StockClients(Overload):
    """Every group's calls are made by such clients; ``told`` counts how the tries ended that were told."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, AdmissionPolicy(queue_capacity=20, workers=10))
        self.told: Counter[str] = Counter()

    def call(self, group: Group) -> None:
        group.offered += 1
        self.attempt(group, self.clock.now + group.timeout_s, 1)

    def attempt(self, group: Group, deadline: float, number: int) -> None:
        now = self.clock.now
        left_s = deadline - now
        reply = ObeyingReply(self, group, deadline, number)
        head = CallHead(METHOD, list(group.metadata), left_s, now, "caller:1", retried=number > 1)
        call = self.relay.on_call(head, reply)
        if call is not None:
            call.on_request_data(framed(b"x"), end=True)


class ObeyingReply(CountedReply):
    """Sends its call again when it is told to."""

    def __init__(self, world: StockClients, group: Group, deadline: float, number: int) -> None:
        super().__init__(world, group)
        self._clients, self._deadline, self._number = world, deadline, number

    def send_trailers(self, code, message, trailers):  # type: ignore[no-untyped-def]
        super().send_trailers(code, message, trailers)
        if self._number > 1:
            self._clients.told[code.name] += 1
        told_ms = int(self.trailers.get(b"grpc-retry-pushback-ms", b"-1"))
        back_at = self._clients.clock.now + told_ms / 1000
        if told_ms >= 0 and back_at < self._deadline and self._number < TRIES_MAX:
            again = self._clients.attempt
            self._clients.clock.call_at(
                back_at, lambda _: again(self._group, self._deadline, self._number + 1), None
            )


@pytest.mark.parametrize("times", [1.1, 1.5, 3, 10])
@pytest.mark.parametrize("seed", SEEDS)
def test_nine_in_ten_told_retries_succeed_however_much_is_offered(times: float, seed: int) -> None:
    world = StockClients(seed)
    capacity_per_s = world.server.capacity_per_s
    callers = Group("callers", times * capacity_per_s, timeout_s=15.0)
    world.run(OFFERED_S, callers)
    share = world.told["OK"] / world.told.total()
    goodput = callers.ok_between(1.0, OFFERED_S) / ((OFFERED_S - 1.0) * capacity_per_s)
    print(
        f"seed {seed}, {times:g}x: {share:.3f} of {world.told.total()}, goodput {goodput:.3f}, {world.told}"
    )
    assert world.told.total() > 100, seed
    assert share >= 0.9, seed
    assert goodput > CAPACITY_SHARE_MIN, seed


@pytest.mark.parametrize("seed", SEEDS)
def test_who_is_told_after_a_spike_is_served(seed: int) -> None:
    world = StockClients(seed)
    capacity_per_s = world.server.capacity_per_s
    usual = Group("usual", 0.4 * capacity_per_s, timeout_s=15.0)
    spike = Group("spike", 4 * capacity_per_s, timeout_s=15.0, since_s=2.0, until_s=3.5)
    world.run(8.0, usual, spike)
    share = world.told["OK"] / world.told.total()
    print(f"seed {seed}: {share:.3f} of {world.told.total()}, {world.told}")
    assert share >= 0.9, seed


def test_callers_who_never_come_back_cost_no_goodput() -> None:
    """Turns are booked for them all the same, but a booked turn holds no place free."""
    world = Overload(1, AdmissionPolicy(queue_capacity=20, workers=10))
    callers = Group("callers", 3 * world.server.capacity_per_s, timeout_s=5.0)
    world.run(OFFERED_S, callers)
    assert (
        callers.ok_between(1.0, OFFERED_S) / ((OFFERED_S - 1.0) * world.server.capacity_per_s)
        > CAPACITY_SHARE_MIN
    )
    assert world.pushbacks_ms.count(-1) > 100, "every turn of the next ten seconds is booked"
    assert max(world.pushbacks_ms) <= 1250 * PUSHBACK_MAX_S


@pytest.mark.parametrize(
    ("mutant", "times"), [("no place for who comes back", 1.5), ("turns beyond the horizon", 10)]
)
def test_without_either_half_of_it_the_told_are_refused_again(
    mutant: str, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mutant == "no place for who comes back":
        monkeypatch.setattr(FairQueue, "add_returned", FairQueue.add)
        monkeypatch.setattr(Admission, "_yields_to", lambda *_: None)
    else:
        monkeypatch.setattr("relay_service.core.turns.DO_NOT_RETURN", 0.8 * PUSHBACK_MAX_S)
    with pytest.raises(AssertionError):
        test_nine_in_ten_told_retries_succeed_however_much_is_offered(times, 1)
