"""When a queue stands, and the pace at which it is shed from."""

import math
from itertools import pairwise

import pytest

from relay_service.core.codel import StandingQueue

TARGET_S, INTERVAL_S = 0.05, 0.2


def looked_at(queue: StandingQueue, wait_s: float, since: float, until: float) -> list[float]:
    """Every millisecond the oldest has waited for so long; when calls were shed."""
    shed = []
    for step in range(round((until - since) * 1000)):
        now = since + step / 1000
        queue.observe(wait_s, now)
        if queue.shed_one(now):
            shed.append(now)
    return shed


def test_a_queue_that_empties_now_and_then_does_not_stand() -> None:
    queue = StandingQueue(TARGET_S, INTERVAL_S)
    for second in range(5):
        assert looked_at(queue, 1.0, second, second + 0.19) == []
        assert looked_at(queue, TARGET_S, second + 0.19, second + 0.2) == []
        assert not queue.standing


def test_a_standing_queue_is_shed_from_sooner_and_sooner() -> None:
    queue = StandingQueue(TARGET_S, INTERVAL_S)
    shed = looked_at(queue, 1.0, 0.0, 3.0)
    assert shed[0] == pytest.approx(INTERVAL_S, abs=0.002)
    gaps = [later - earlier for earlier, later in pairwise(shed)]
    for number, gap in enumerate(gaps[:20], start=1):
        assert gap == pytest.approx(INTERVAL_S / math.sqrt(number), abs=0.002)


def test_shedding_ends_as_soon_as_the_queue_does_not_stand() -> None:
    queue = StandingQueue(TARGET_S, INTERVAL_S)
    looked_at(queue, 1.0, 0.0, 1.0)
    assert looked_at(queue, 0.01, 1.0, 2.0) == []
    assert not queue.standing


def test_a_queue_that_stands_again_soon_is_shed_from_about_as_fast_as_before() -> None:
    soon, late = StandingQueue(TARGET_S, INTERVAL_S), StandingQueue(TARGET_S, INTERVAL_S)
    for queue in (soon, late):
        looked_at(queue, 1.0, 0.0, 2.0)
        looked_at(queue, 0.0, 2.0, 2.1)
    again = looked_at(soon, 1.0, 2.1, 2.6)
    afterwards = looked_at(late, 1.0, 102.1, 102.6)
    assert len(again) > 2 * len(afterwards) > 0


def test_a_queue_that_never_stops_shedding_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    observe = StandingQueue.observe

    def observed(self: StandingQueue, oldest_wait_s: float, now: float) -> None:
        stood = self.standing
        observe(self, oldest_wait_s, now)
        self.standing = self.standing or stood

    monkeypatch.setattr(StandingQueue, "observe", observed)
    with pytest.raises(AssertionError):
        test_shedding_ends_as_soon_as_the_queue_does_not_stand()
