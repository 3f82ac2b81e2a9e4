"""The timer wheel, on a loop whose time the test makes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay_service.timers import SLOTS, TICK_S, TimerWheel


class FakeHandle:
    def __init__(self, when):
        self.when = when
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class FakeLoop:
    """Only what the wheel uses: time, and one kind of timer."""

    def __init__(self):
        self.now = 1_000.0
        self.timers = []

    def call_later(self, delay, callback):
        handle = FakeHandle(self.now + delay)
        self.timers.append((handle, callback))
        return handle

    @property
    def armed(self):
        return [entry for entry in self.timers if not entry[0].cancelled]

    def run_until(self, when):
        wakeups = 0
        while due := [entry for entry in self.armed if entry[0].when <= when]:
            entry = min(due, key=lambda entry: entry[0].when)
            self.timers.remove(entry)
            self.now = max(self.now, entry[0].when)
            entry[1]()
            wakeups += 1
        self.now = when
        return wakeups


@pytest.fixture
def loop():
    return FakeLoop()


@pytest.fixture
def wheel(loop):
    return TimerWheel(loop, lambda: loop.now)


def test_a_timer_fires_once_with_its_argument_not_early_and_at_most_a_tick_late(loop, wheel):
    fired = []
    wheel.call_at(loop.now + 0.1, lambda argument: fired.append((loop.now, argument)), "x")
    loop.run_until(1_010.0)
    assert len(fired) == 1
    at, argument = fired[0]
    assert argument == "x"
    assert 1_000.1 <= at <= 1_000.1 + TICK_S + 1e-9


def test_a_cancelled_timer_does_not_fire_and_leaves_nothing(loop, wheel):
    timer = wheel.call_at(loop.now + 0.1, pytest.fail, "fired")
    timer.cancel()
    timer.cancel()
    assert wheel.count == 0
    loop.run_until(1_001.0)
    assert not loop.armed


def test_an_empty_wheel_does_not_wake_the_loop(loop, wheel):
    wheel.call_at(loop.now + 0.01, lambda _: None, None)
    loop.run_until(1_001.0)
    assert not loop.armed
    assert loop.run_until(2_000.0) == 0


def test_a_time_already_past_fires_at_the_next_tick(loop, wheel):
    fired = []
    wheel.call_at(loop.now - 5, fired.append, 1)
    assert not fired
    loop.run_until(loop.now + 2 * TICK_S)
    assert fired == [1]


def test_a_timer_beyond_one_turn_of_the_wheel_waits_for_its_own_turn(loop, wheel):
    fired = []
    wheel.call_at(loop.now + 30, lambda _: fired.append(loop.now), None)
    wakeups = loop.run_until(1_100.0)
    assert fired
    assert fired[0] >= 1_030.0
    assert wakeups <= 30 / (SLOTS * TICK_S) + 3


def test_an_earlier_timer_set_later_fires_first(loop, wheel):
    fired = []
    wheel.call_at(loop.now + 1.0, fired.append, "late")
    wheel.call_at(loop.now + 0.1, fired.append, "early")
    loop.run_until(1_002.0)
    assert fired == ["early", "late"]


def test_timers_of_one_tick_fire_in_the_order_they_were_set(loop, wheel):
    fired = []
    for number in range(10):
        wheel.call_at(1_000.1, fired.append, number)
    loop.run_until(1_001.0)
    assert fired == list(range(10))


def test_after_a_stall_longer_than_a_turn_everything_due_fires(loop, wheel):
    fired = []
    for number in range(20):
        wheel.call_at(1_000.0 + number, fired.append, number)
    loop.now = 1_100.0
    loop.run_until(1_100.1)
    assert sorted(fired) == list(range(20))


def test_a_callback_may_set_and_cancel_timers(loop, wheel):
    fired = []
    doomed = wheel.call_at(1_000.1, fired.append, "doomed")
    first = wheel.call_at(
        1_000.05, lambda _: (doomed.cancel(), wheel.call_at(1_000.2, fired.append, "second")), None
    )
    loop.run_until(1_001.0)
    first.cancel()
    assert fired == ["second"]


def test_a_failing_callback_does_not_stop_the_others(loop, wheel, caplog):
    fired = []
    wheel.call_at(1_000.1, lambda _: 1 / 0, None)
    wheel.call_at(1_000.1, fired.append, "other")
    loop.run_until(1_001.0)
    assert fired == ["other"]
    assert "callback failed" in caplog.text


def test_a_closed_wheel_fires_nothing(loop, wheel):
    wheel.call_at(1_000.1, pytest.fail, "fired")
    wheel.close()
    assert loop.run_until(1_010.0) == 0


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_any_schedule_fires_each_timer_once_and_in_time(seed):
    rng = random.Random(seed)
    loop = FakeLoop()
    wheel = TimerWheel(loop, lambda: loop.now)
    fired = {}
    timers = {}
    cancelled = set()
    due = {}
    for number in range(100):
        due[number] = loop.now + rng.choice([0.0, 0.003, 0.05, 1.0, 10.0]) * rng.random()
        timers[number] = wheel.call_at(
            due[number], lambda number: fired.setdefault(number, []).append(loop.now), number
        )
        if rng.random() < 0.3:
            loop.run_until(loop.now + rng.random() * 0.02)
        if rng.random() < 0.3:
            victim = rng.randrange(number + 1)
            if victim not in fired:
                cancelled.add(victim)
            timers[victim].cancel()
    loop.run_until(loop.now + 20)
    assert set(fired) == set(due) - cancelled
    for number, times in fired.items():
        assert len(times) == 1
        assert due[number] <= times[0] <= due[number] + 2 * TICK_S
    assert wheel.count == 0
