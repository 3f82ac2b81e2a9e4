"""A breaker that opens is told once, and so is its closing."""

import logging
from dataclasses import replace

import pytest

from relay_service.core.breaker import CircuitBreaker, Outcome, Work
from relay_service.core.breakers import BreakerView
from relay_service.core.policy import BreakerPolicy
from relay_service.telemetry.breaker_log import BreakerLog

POLICY = BreakerPolicy(consecutive_failures=2, failure_ratio=None, open_s=1.0, probe_successes=1, ramp_s=None)


class Watched:
    """One breaker, its log, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.breaker = CircuitBreaker(POLICY, 0.0)
        self.log = BreakerLog(lambda: [BreakerView("shop", "", self.breaker.status(self.now))])

    def attempt(self, outcome: Outcome) -> None:
        permit = self.breaker.enter(Work.CALL, self.now)
        assert permit is not None
        self.breaker.settle(permit, outcome, self.now)

    def open(self) -> None:
        for _ in range(2):
            self.attempt(Outcome.FAILURE)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_opening_is_a_warning_and_closing_is_information_each_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    watched = Watched()
    watched.log.look()
    watched.open()
    watched.log.look()
    watched.log.look()
    watched.now = 1.5
    watched.log.look()
    watched.attempt(Outcome.FAILURE)  # the probe: still the same outage
    watched.log.look()
    watched.now = 3.0
    watched.attempt(Outcome.SUCCESS)
    watched.log.look()
    watched.log.look()
    (opened, closed) = told(caplog)
    assert opened[0] == logging.WARNING
    assert opened[1].startswith("the breaker of shop opened: failures in a row")
    assert closed == (logging.INFO, "the breaker of shop closed again, after it had opened 2 times")


def test_an_opening_between_two_looks_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watched = Watched()
    watched.log.look()
    watched.open()
    watched.now = 1.5
    watched.attempt(Outcome.SUCCESS)
    watched.log.look()
    assert [level for level, _ in told(caplog)] == [logging.WARNING, logging.INFO]


def test_a_breaker_that_goes_with_its_policy_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.open()
    views = [BreakerView("shop", "", watched.breaker.status(0.0))]
    log = BreakerLog(lambda: views)
    log.look()
    views[:] = []
    log.look()
    views[:] = [BreakerView("shop", "", replace(CircuitBreaker(POLICY, 0.0).status(0.0)))]
    log.look()
    assert len(told(caplog)) == 1, "opened once; the one that is gone never closed"
