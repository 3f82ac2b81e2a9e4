"""Alerts told: in the log, to a webhook where there is one, and as metrics."""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay_service.core.alerts import Alert, AlertKind, Severity
from relay_service.telemetry.webhook import Webhook

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.CRITICAL,
}
OUTCOMES = ("delivered", "failed", "dropped")

log = logging.getLogger(__name__)


class AlertDesk:
    """Tells alerts. ``instance_id`` names this relay among others."""

    def __init__(self, webhook: Webhook | None, instance_id: str) -> None:
        self.webhook = webhook
        self._instance_id = instance_id

    def tell(self, alert: Alert, now: float, unix_s: float) -> None:
        """One alert, now (monotonic and wall time). Never waits."""
        log.log(_LEVELS[alert.severity], "alert %s: %s", alert.kind.value, alert.message)
        if self.webhook is not None:
            self.webhook.send(self._notification(alert, now, unix_s))

    def _notification(self, alert: Alert, now: float, unix_s: float) -> dict[str, Any]:
        return {
            "alert": alert.kind.value,
            "subject": alert.subject,
            "severity": alert.severity.value,
            "state": "over" if alert.is_over else "firing",
            "message": alert.message,
            "since": _moment(unix_s - (now - alert.since)),
            "time": _moment(unix_s),
            "relay": self._instance_id,
        }


class AlertsCollector(Collector):
    """What fires now, and what became of the notifications."""

    def __init__(self, firing: Callable[[], Sequence[Alert]], webhook: Webhook | None) -> None:
        self._firing = firing
        self._webhook = webhook

    def collect(self) -> Iterator[Metric]:
        """All families; called by the registry for each scrape."""
        firing = GaugeMetricFamily(
            "relay_alerts_firing", "Alerts that were told and are not over.", labels=["alert", "severity"]
        )
        alerts = self._firing()
        for kind in AlertKind:
            for severity in (Severity.WARNING, Severity.CRITICAL):
                count = sum(alert.kind is kind and alert.severity is severity for alert in alerts)
                firing.add_metric([kind.value, severity.value], count)
        yield firing
        sent = CounterMetricFamily(
            "relay_alert_notifications", "Notifications to the webhook.", labels=["outcome"]
        )
        for outcome in OUTCOMES:
            sent.add_metric([outcome], self._webhook.outcomes[outcome] if self._webhook else 0)
        yield sent


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
