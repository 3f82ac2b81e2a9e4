"""Log lines: for what went wrong only, few, with nothing in them that is the callers' own."""

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from relay_service.core.evidence import Evidence
from relay_service.core.reason import Reason
from relay_service.core.status import Code
from relay_service.core.verdict import Fate, Origin, Verdict
from relay_service.telemetry.log_stream import BackgroundStream
from relay_service.telemetry.logs import LogStyle, configure_logging

SECRET = b"customer-4711-order-42"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    structlog.reset_defaults()
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)


def test_a_refused_call_is_one_line_that_says_why(make_telemetry, calls, log_book) -> None:
    telemetry = make_telemetry()
    call = calls.refuse(telemetry, calls.head(received_at=99.5))
    assert log_book.lines == [
        {
            "event": "call refused",
            "level": "warning",
            "trace_id": call.trace_id,
            "method": calls.METHOD,
            "peer": "127.0.0.1:40000",
            "code": "RESOURCE_EXHAUSTED",
            "reason": "QUEUE_FULL",
            "origin": "relay",
            "outcome": "not-executed",
            "message": "the queue is full",
            "attempts": 0,
            "duration_ms": 500.0,
        }
    ]


@pytest.mark.parametrize(("code", "level"), [(Code.UNAVAILABLE, "warning"), (Code.NOT_FOUND, "info")])
def test_a_failed_call_is_a_warning_only_when_a_server_failed(
    make_telemetry, calls, log_book, code: Code, level: str
) -> None:
    failed = Verdict(code, "x", Origin.UPSTREAM, Fate.ERROR, None, Evidence.DEFINITE, 1)
    calls.refuse(make_telemetry(), calls.head(), verdict=failed)
    (line,) = log_book.lines
    assert (line["event"], line["level"], line["code"]) == ("call failed", level, code.name)


def test_successes_and_callers_that_left_are_not_logged(make_telemetry, calls, log_book) -> None:
    telemetry = make_telemetry()
    calls.succeed(telemetry, calls.head())
    calls.refuse(telemetry, calls.head(), verdict=Verdict(Code.CANCELLED, "", Origin.RELAY, Fate.CANCELLED))
    assert log_book.lines == []


def test_nothing_that_callers_or_upstreams_said_is_logged(make_telemetry, calls, log_book) -> None:
    head = calls.head(
        (b"idempotency-key", SECRET), (b"authorization", b"Bearer " + SECRET), (b"baggage", SECRET)
    )
    said = Verdict(Code.INTERNAL, f"no such {SECRET.decode()}", Origin.UPSTREAM, Fate.ERROR, attempts=1)
    calls.refuse(make_telemetry(), head, verdict=said)
    (line,) = log_book.lines
    assert SECRET.decode() not in json.dumps(line)
    assert line["idempotency_key_sha256"] == hashlib.sha256(SECRET).hexdigest()[:16]


def test_a_flood_of_failures_is_a_trickle_of_lines_that_tell_of_the_rest(
    make_telemetry, calls, log_book
) -> None:
    telemetry = make_telemetry(log_burst=5, log_lines_per_s=2)
    for index in range(3_000):  # 1,000 a second for three seconds
        calls.refuse(telemetry, calls.head(), now=100.0 + index / 1000)
    written = len(log_book.lines)
    assert 5 + 5 <= written <= 5 + 6
    told = sum(line.get("suppressed", 0) for line in log_book.lines)
    calls.refuse(telemetry, calls.head(), now=110.0)
    assert (
        told + log_book.lines[-1]["suppressed"] == 3_000 - written == telemetry.stats().log_lines_suppressed
    )


def test_lines_are_json_on_a_pipe(logging_restored) -> None:
    stream = io.StringIO()
    configure_logging(stream)
    structlog.get_logger().warning("call refused", method="a.S/M\nforged")
    structlog.get_logger().debug("not at this level")
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["event"], record["level"], record["method"]) == (
        "call refused",
        "warning",
        "a.S/M\nforged",
    )
    assert record["timestamp"].endswith("Z")


@pytest.mark.parametrize("style", [LogStyle.AUTO, LogStyle.CONSOLE])
@pytest.mark.parametrize("method", ["a.S/M\nforged", "a.S/M\x1b[2Jforged"], ids=["a line", "an escape"])
def test_lines_are_key_value_on_a_terminal_and_cannot_be_forged(
    logging_restored, style: LogStyle, method: str
) -> None:
    stream = Terminal()
    configure_logging(stream, style)
    structlog.get_logger().warning("call refused", method=method)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b[2J" not in line
    assert repr(method) in line


def test_what_libraries_log_comes_out_alike_and_never_shows_locals(logging_restored) -> None:
    stream = io.StringIO()
    configure_logging(stream, LogStyle.JSON)
    configure_logging(stream, LogStyle.JSON)  # again: replaces, does not add
    log = logging.getLogger("some.library")

    def fail() -> None:
        payload = SECRET.decode()
        raise ValueError(len(payload))

    try:
        fail()
    except ValueError:
        log.exception("it failed")
    log.info("chatter")
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["event"], record["logger"], record["level"]) == ("it failed", "some.library", "error")
    assert "ValueError: 22" in record["exception"]
    assert SECRET.decode() not in line


def test_the_relays_own_lines_go_through_the_configured_logging(
    logging_restored, make_telemetry, calls
) -> None:
    from random import Random

    from relay_service.telemetry.observer import Telemetry
    from relay_service.telemetry.settings import TelemetrySettings

    stream = io.StringIO()
    configure_logging(stream, LogStyle.JSON)
    calls.refuse(Telemetry(TelemetrySettings(), rng=Random(1)), calls.head())
    assert json.loads(stream.getvalue())["reason"] == Reason.QUEUE_FULL.name


def test_a_reader_that_does_not_read_delays_no_line_and_drops_are_counted() -> None:
    reading, writing = os.pipe()
    read: list[bytes] = []
    line = "x" * 50_000 + "\n"
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as target:
        stream = BackgroundStream(target, capacity_lines=10)
        before = time.monotonic()
        told = [stream.write(line) for _ in range(50)]  # far more than a pipe and the queue hold
        took_s = time.monotonic() - before
        dropped = stream.dropped
        draining = threading.Thread(target=lambda: read.extend(iter(reader.readline, b"")), daemon=True)
        draining.start()
        stream.finish(timeout_s=10)
        target.close()
        draining.join(timeout=10)
    assert took_s < 5.0
    assert told == [len(line)] * 50
    assert dropped >= 30
    assert len(read) + dropped == 50


def test_a_stream_whose_other_end_is_closed_raises_nothing() -> None:
    target = io.StringIO()
    stream = BackgroundStream(target)
    target.close()
    stream.write("lost\n")
    stream.finish(timeout_s=5)
    assert stream.dropped == 1


def test_lines_written_just_before_the_end_appear() -> None:
    program = """
import sys, structlog
from relay_service.telemetry.log_stream import BackgroundStream
from relay_service.telemetry.logs import configure_logging
stream = BackgroundStream(sys.stderr)
configure_logging(stream)
structlog.get_logger().error("the last word")
stream.finish(timeout_s=5)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=True)
    assert json.loads(done.stderr)["event"] == "the last word"


def test_a_log_line_can_be_written_for_every_verdict(make_telemetry, calls, log_book) -> None:
    telemetry = make_telemetry(log_burst=1000)
    for reason in Reason:
        for origin in Origin:
            verdict = replace(
                calls.QUEUE_FULL, code=reason.code or Code.ABORTED, origin=origin, reason=reason
            )
            calls.refuse(telemetry, calls.head(), verdict=verdict)
    assert len(log_book.lines) == 2 * len(Reason)
