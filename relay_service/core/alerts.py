"""Alerts: what is wrong now, since when, and who has been told.

A state machine fed with looks at the relay. It says something when trouble has lasted long enough, when
it gets worse, again after a while, and when it is over. What is over and comes back is told anew.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from relay_service.core.alert_policy import AlertPolicy


class Severity(Enum):
    """How soon somebody has to look. The worst is last."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class AlertKind(Enum):
    """What is wrong."""

    STORE_AWAY = "store_away"
    UPSTREAM_AWAY = "upstream_away"
    BREAKER_OPEN = "breaker_open"
    JOBS_WAIT = "jobs_wait"
    DEAD_LETTERS = "dead_letters"
    ERRORS = "errors"
    LEASES_LOST = "leases_lost"


@dataclass(frozen=True, slots=True)
class Look:
    """The relay as it is at one moment; counters run from its start."""

    store_trouble: str = ""
    """Empty while the store works, or where there is none."""
    upstreams_away: Mapping[str, str] = field(default_factory=dict)
    """By name, what was heard last of those that cannot be reached."""
    breakers_open: frozenset[str] = frozenset()
    oldest_ready_s: float = 0.0
    unsettled: int = 0
    letters_max: int = 0
    """0 where no letters are kept."""
    ended: int = 0
    """Calls that were answered or failed; what was refused for load or cancelled tells nothing."""
    errors: int = 0
    leases_lost: int = 0


@dataclass(frozen=True, slots=True)
class Alert:
    """Something is wrong, or was."""

    kind: AlertKind
    subject: str
    """Of which upstream or breaker; empty for what there is one of."""
    severity: Severity
    message: str
    since: float
    """Monotonic: when the trouble was first seen."""
    is_over: bool = False


@dataclass(slots=True)
class _Trouble:
    """State of one alert: when it began, what was told last and when (None: nothing yet)."""

    since: float
    told: Alert | None = None
    told_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Finding:
    """What a look shows to be wrong; an alert once it has lasted ``for_s``."""

    kind: AlertKind
    subject: str
    severity: Severity
    message: str
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Counted:
    """The counters of one look, for the window."""

    at: float
    ended: int
    errors: int
    leases_lost: int


class Alerts:
    """Compares looks with what it has told.

    State: the troubles there are, by kind and subject, and the counters of the last window.
    """

    def __init__(self, policy: AlertPolicy) -> None:
        self.policy = policy
        self._troubles: dict[tuple[AlertKind, str], _Trouble] = {}
        self._past: deque[_Counted] = deque()

    def look(self, look: Look, now: float) -> list[Alert]:
        """What has to be told now."""
        found = {(one.kind, one.subject): one for one in self._findings(look, now)}
        told = list(self._over(found.keys(), now))
        for name, finding in found.items():
            trouble = self._troubles.setdefault(name, _Trouble(now))
            alert = Alert(finding.kind, finding.subject, finding.severity, finding.message, trouble.since)
            if now - trouble.since >= finding.for_s and self._is_news(trouble, alert, now):
                trouble.told, trouble.told_at = alert, now
                told.append(alert)
        return told

    @property
    def firing(self) -> list[Alert]:
        """What was told and is not over, as told last."""
        return [trouble.told for trouble in self._troubles.values() if trouble.told is not None]

    def _is_news(self, trouble: _Trouble, alert: Alert, now: float) -> bool:
        if trouble.told is None or trouble.told.severity is not alert.severity:
            return True
        return now - trouble.told_at >= self.policy.repeat_s

    def _over(self, still: Collection[tuple[AlertKind, str]], now: float) -> Iterator[Alert]:
        for name in [name for name in self._troubles if name not in still]:
            told = self._troubles.pop(name).told
            if told is not None:
                after = f"over after {now - told.since:.0f} s: {told.message}"
                yield replace(told, severity=Severity.INFO, message=after, is_over=True)

    def _findings(self, look: Look, now: float) -> Iterator[_Finding]:
        policy = self.policy
        if look.store_trouble:
            text = f"the store does not work: {look.store_trouble}"
            yield _Finding(AlertKind.STORE_AWAY, "", Severity.CRITICAL, text, policy.store_away_s)
        for name, last_error in look.upstreams_away.items():
            text = f"upstream {name} cannot be reached: {last_error or 'no connection'}"
            yield _Finding(AlertKind.UPSTREAM_AWAY, name, Severity.CRITICAL, text, policy.upstream_away_s)
        for name in sorted(look.breakers_open):
            text = f"the breaker of {name} has been open for more than {policy.breaker_open_s:g} s"
            yield _Finding(AlertKind.BREAKER_OPEN, name, Severity.WARNING, text, policy.breaker_open_s)
        if look.oldest_ready_s >= policy.oldest_ready_s > 0:
            text = f"a job has been ready for {look.oldest_ready_s:.0f} s and nobody has taken it"
            yield _Finding(AlertKind.JOBS_WAIT, "", Severity.WARNING, text)
        yield from self._letters(look)
        yield from self._of_the_window(look, now)

    def _letters(self, look: Look) -> Iterator[_Finding]:
        if not look.letters_max or look.unsettled < self.policy.dead_letters_share * look.letters_max:
            return
        text = f"{look.unsettled} dead letters are unsettled, {look.letters_max} may be"
        if look.unsettled < look.letters_max:
            yield _Finding(AlertKind.DEAD_LETTERS, "", Severity.WARNING, text)
        else:
            yield _Finding(AlertKind.DEAD_LETTERS, "", Severity.CRITICAL, f"{text}: no job is accepted")

    def _of_the_window(self, look: Look, now: float) -> Iterator[_Finding]:
        """Judged by what has been added since the first look of the window."""
        self._past.append(_Counted(now, look.ended, look.errors, look.leases_lost))
        while self._past[0].at < now - self.policy.window_s:
            self._past.popleft()
        before = self._past[0]
        ended, errors = look.ended - before.ended, look.errors - before.errors
        if ended >= self.policy.error_calls_min and errors >= self.policy.error_share * ended:
            text = f"{errors} of the last {ended} calls failed"
            yield _Finding(AlertKind.ERRORS, "", Severity.WARNING, text)
        lost = look.leases_lost - before.leases_lost
        if lost >= self.policy.leases_lost_max:
            text = f"{lost} jobs were taken from this relay's workers in {self.policy.window_s:g} s"
            yield _Finding(AlertKind.LEASES_LOST, "", Severity.WARNING, text)
