"""Logging: how lines look and where they go, and the one line about a call that went wrong.

What callers sent is not ours to write down: no payloads, no metadata values, no upstream's message;
an idempotency key only as the start of its SHA-256, which finds it again for whoever knows it.
"""

import hashlib
import logging
from enum import Enum
from typing import Final, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.ports import CallHead, Headers
from relay_service.telemetry.throttle import TokenBucket
from relay_service.telemetry.trace_context import TraceHead
from relay_service.telemetry.tracing import SERVER_ERRORS, as_text

LOGGER_NAME: Final = "relay"
_IDEMPOTENCY_KEY = b"idempotency-key"
_HASH_DIGITS = 16


class LogStyle(Enum):
    """How a line looks."""

    AUTO = "auto"
    """CONSOLE on a terminal, else JSON."""
    JSON = "json"
    """One JSON object per line."""
    CONSOLE = "console"
    """``key=value`` for people; values are quoted, so that none can forge a line or an escape sequence."""


def configure_logging(stream: TextIO, style: LogStyle = LogStyle.AUTO, level: int = logging.INFO) -> None:
    """Send structlog's lines, and what libraries log from WARNING on, to ``stream``; may be called again.

    ``level`` is one of `logging`'s numbers. This sets structlog's and logging's process-wide
    configuration, as only a program's entry point may.
    """
    console = stream.isatty() if style is LogStyle.AUTO else style is LogStyle.CONSOLE
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = _console_processors(stream) if console else _json_processors()
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(stream, shared, render, max(level, logging.WARNING))


class CallLog:
    """Writes a line for refused and failed calls, as many per second as ``bucket`` grants.

    State: the bucket's count of refusals that the last line told of.
    """

    __slots__ = ("_bucket", "_logger", "_told")

    def __init__(self, logger: FilteringBoundLogger, bucket: TokenBucket) -> None:
        self._logger = logger
        self._bucket = bucket
        self._told = 0

    @property
    def suppressed(self) -> int:
        """Lines left out so far."""
        return self._bucket.refused

    def failed(self, head: CallHead, trace: TraceHead, verdict: Verdict, now: float) -> None:
        """Log a call with fate REFUSED or ERROR; a WARNING unless an upstream blames the caller."""
        if not self._bucket.take(now):
            return
        fields: dict[str, object] = {
            "trace_id": trace.trace_id,
            "method": as_text(head.method),
            "peer": as_text(head.peer),
            "code": verdict.code.name,
            "origin": verdict.origin.value,
            "outcome": verdict.outcome,
            "attempts": verdict.attempts,
            "duration_ms": round((now - head.received_at) * 1000, 3),
        }
        if verdict.reason is not None:
            fields["reason"] = verdict.reason.name
        if verdict.origin is Origin.RELAY:
            fields["message"] = as_text(verdict.message)
        if (key_hash := hash_of_key(head.metadata)) is not None:
            fields["idempotency_key_sha256"] = key_hash
        if (untold := self._bucket.refused - self._told) > 0:
            fields["suppressed"] = untold
            self._told = self._bucket.refused
        refused = verdict.fate is Fate.REFUSED
        level = logging.WARNING if refused or verdict.code in SERVER_ERRORS else logging.INFO
        self._logger.log(level, "call refused" if refused else "call failed", **fields)


def hash_of_key(metadata: Headers) -> str | None:
    """The first 16 hex digits of the SHA-256 of the caller's idempotency key; None without one."""
    for name, value in metadata:
        if name == _IDEMPOTENCY_KEY:
            return hashlib.sha256(value).hexdigest()[:_HASH_DIGITS]
    return None


class _RelayHandler(logging.StreamHandler[TextIO]):
    """Marks the handler that `configure_logging` installed, so that another call replaces only that."""


def _route_standard_logging(
    stream: TextIO, shared: list[Processor], render: list[Processor], level: int
) -> None:
    handler = _RelayHandler(stream)
    handler.setLevel(level)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _RelayHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)


def _json_processors() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _console_processors(stream: TextIO) -> list[Processor]:
    # A traceback must not show locals: they hold what callers sent.
    return [
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            repr_native_str=True,
            exception_formatter=structlog.dev.plain_traceback,
        )
    ]
