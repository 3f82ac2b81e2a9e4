"""What the operator may choose about telemetry, validated once."""

from dataclasses import dataclass
from pathlib import Path


class TelemetryError(Exception):
    """A telemetry setting cannot be used; the message says which one and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """The bounds and targets of spans, counters and log lines.

    Raises:
        TelemetryError: a value is out of its range.
    """

    service_version: str = "unknown"
    instance_id: str = ""
    """Tells the relays of one fleet apart (``service.instance.id``); a random one when empty."""
    listen_address: str = ""
    """``host:port`` at which callers reach the relay: the SERVER spans' ``server.address``."""

    otlp_endpoint: str | None = None
    """Where spans go by OTLP/gRPC: ``https://host:port`` for TLS, ``http://host:port`` or ``host:port``."""
    trace_file: Path | None = None
    """A file that gets one line of OTLP JSON per batch of spans, appended."""
    sample_ratio: float = 0.01
    """The share of traces that begin here and are recorded; a caller's own decision is always followed."""
    afterwards_per_s: float = 20.0
    """How many failed calls per second whose trace was not sampled get a span after all ..."""
    afterwards_burst: int = 100
    """... and how many of them at once."""

    queue_spans: int = 2048
    """Finished spans that may wait for each exporter; more are dropped and counted."""
    batch_spans: int = 512
    batch_delay_s: float = 1.0
    export_timeout_s: float = 5.0
    """How long one batch may take, its retries included."""
    shutdown_timeout_s: float = 2.0
    """How long `shutdown` may take to flush all exporters."""

    max_methods: int = 200
    """Methods that have counters of their own; the calls of all others are counted as ``other``."""
    log_lines_per_s: float = 20.0
    """How many refused and failed calls are logged per second; the next line tells how many were left out."""
    log_burst: int = 100

    def __post_init__(self) -> None:
        if not 0.0 <= self.sample_ratio <= 1.0:
            raise TelemetryError(f"sample_ratio is a share from 0 to 1, not {self.sample_ratio}")
        for name in (
            "afterwards_per_s",
            "afterwards_burst",
            "queue_spans",
            "batch_spans",
            "batch_delay_s",
            "export_timeout_s",
            "shutdown_timeout_s",
            "max_methods",
            "log_lines_per_s",
            "log_burst",
        ):
            if getattr(self, name) <= 0:
                raise TelemetryError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if self.batch_spans > self.queue_spans:
            raise TelemetryError(
                f"batch_spans ({self.batch_spans}) cannot exceed queue_spans ({self.queue_spans})"
            )
