"""When alerts are told: after long enough, when it gets worse, again, and when it is over."""

from typing import Any

import pytest

from relay_service.core.alert_policy import AlertPolicy
from relay_service.core.alerts import Alert, AlertKind, Alerts, Look, Severity

POLICY = AlertPolicy(
    store_away_s=10, breaker_open_s=60, oldest_ready_s=300, error_calls_min=20, repeat_s=1000, window_s=60
)


class Told:
    """Alerts, looked at as often as a test says; what they told."""

    def __init__(self) -> None:
        self.alerts = Alerts(POLICY)

    def at(self, now: float, **look: Any) -> list[tuple[AlertKind, Severity, bool]]:
        return [shape(alert) for alert in self.alerts.look(Look(**look), now)]


def shape(alert: Alert) -> tuple[AlertKind, Severity, bool]:
    return alert.kind, alert.severity, alert.is_over


def firing(kind: AlertKind, severity: Severity) -> list[tuple[AlertKind, Severity, bool]]:
    return [(kind, severity, False)]


def over(kind: AlertKind) -> list[tuple[AlertKind, Severity, bool]]:
    return [(kind, Severity.INFO, True)]


STORE = firing(AlertKind.STORE_AWAY, Severity.CRITICAL)


def test_trouble_is_told_once_it_has_lasted_and_once_when_it_is_over() -> None:
    told = Told()
    assert told.at(0) == []
    assert told.at(1, store_trouble="gone") == []
    assert told.at(10.9, store_trouble="gone") == []
    assert told.at(11, store_trouble="gone") == STORE
    assert told.at(12, store_trouble="gone") == []
    assert [alert.since for alert in told.alerts.firing] == [1]
    assert told.at(13) == over(AlertKind.STORE_AWAY)
    assert told.alerts.firing == []
    assert told.at(14) == []


def test_trouble_that_passes_in_time_is_never_told() -> None:
    told = Told()
    for start in range(0, 100, 10):
        assert told.at(start, store_trouble="gone") == []
        assert told.at(start + 5) == []


def test_what_comes_back_is_told_anew_and_what_stays_is_told_again_after_a_while() -> None:
    told = Told()
    told.at(0, store_trouble="gone")
    assert told.at(10, store_trouble="gone") == STORE
    assert told.at(1009, store_trouble="gone") == []
    assert told.at(1010, store_trouble="gone") == STORE
    told.at(1011)
    assert told.at(1012, store_trouble="gone") == []
    assert told.at(1022, store_trouble="gone") == STORE


def test_dead_letters_are_a_warning_and_critical_when_no_more_fit() -> None:
    told = Told()
    assert told.at(0, unsettled=49, letters_max=100) == []
    warning = firing(AlertKind.DEAD_LETTERS, Severity.WARNING)
    assert told.at(1, unsettled=50, letters_max=100) == warning
    assert told.at(2, unsettled=99, letters_max=100) == []
    assert told.at(3, unsettled=100, letters_max=100) == firing(AlertKind.DEAD_LETTERS, Severity.CRITICAL)
    assert told.at(4, unsettled=60, letters_max=100) == warning
    assert told.at(5, unsettled=10, letters_max=100) == over(AlertKind.DEAD_LETTERS)
    assert told.at(6, unsettled=7, letters_max=0) == []


def test_each_breaker_and_upstream_has_an_alert_of_its_own() -> None:
    told = Told()
    told.at(0, breakers_open=frozenset({"a"}), upstreams_away={"a": "refused"})
    told.at(30, breakers_open=frozenset({"a", "b"}), upstreams_away={"a": "refused", "b": ""})
    assert told.at(60, breakers_open=frozenset({"a", "b"})) == [
        *over(AlertKind.UPSTREAM_AWAY),
        *firing(AlertKind.BREAKER_OPEN, Severity.WARNING),
    ]
    assert {alert.subject for alert in told.alerts.firing} == {"a"}
    told.at(90, breakers_open=frozenset({"a", "b"}))
    assert {alert.subject for alert in told.alerts.firing} == {"a", "b"}


def test_a_job_that_nobody_takes_is_told_by_its_age() -> None:
    told = Told()
    assert told.at(0, oldest_ready_s=299) == []
    assert told.at(1, oldest_ready_s=300) == firing(AlertKind.JOBS_WAIT, Severity.WARNING)
    assert told.at(2, oldest_ready_s=1) == over(AlertKind.JOBS_WAIT)


def test_errors_are_judged_over_the_window_and_only_of_enough_calls() -> None:
    told = Told()
    told.at(0, ended=1000, errors=900)
    assert told.at(1, ended=1019, errors=919) == []
    assert told.at(2, ended=1020, errors=910) == firing(AlertKind.ERRORS, Severity.WARNING)
    assert told.at(61.5, ended=1020, errors=910) == over(AlertKind.ERRORS)


def test_lost_leases_are_counted_over_the_window() -> None:
    told = Told()
    told.at(0)
    assert told.at(30, leases_lost=9) == []
    assert told.at(59, leases_lost=10) == firing(AlertKind.LEASES_LOST, Severity.WARNING)
    assert told.at(120, leases_lost=10) == over(AlertKind.LEASES_LOST)


@pytest.mark.parametrize(
    "wrong", [{"store_away_s": -1}, {"dead_letters_share": 0}, {"error_share": 1.1}, {"repeat_s": 0}]
)
def test_a_policy_that_means_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"alerts\."):
        AlertPolicy(**wrong)
