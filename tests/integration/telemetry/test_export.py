"""Getting spans out: to a backend, to a file, and not at all; no call waits for it, no shutdown for long."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from relay_service.telemetry.export import SpanLane, SpanPipeline
from relay_service.telemetry.settings import TelemetryError, TelemetrySettings


@pytest.fixture
def closed_port() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_file_holds_the_same_spans_as_the_backend_got(make_telemetry, sink, calls, tmp_path) -> None:
    path = tmp_path / "new" / "traces.jsonl"
    telemetry = make_telemetry(otlp_endpoint=f"http://{sink.endpoint}", trace_file=path, instance_id="a")
    calls.retried(telemetry, calls.head(calls.traceparent("01"), (b"tracestate", b"v=1")))
    calls.refuse(telemetry, calls.head())
    telemetry.shutdown()
    in_file = calls.spans_in(path)
    assert len(in_file) == 7
    assert in_file == sink.spans
    counts = telemetry.span_counts
    assert (counts.exported, counts.dropped, counts.waiting) == (14, 0, 0)


def test_the_file_is_appended_to(make_telemetry, calls, tmp_path) -> None:
    path = tmp_path / "traces.jsonl"
    for seed in (1, 2):
        telemetry = make_telemetry(trace_file=path, seed=seed)
        calls.refuse(telemetry, calls.head())
        telemetry.shutdown()
    assert len({span.trace_id for span in calls.spans_in(path)}) == 2


def test_spans_leave_while_the_relay_runs(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, batch_delay_s=0.01)
    calls.refuse(telemetry, calls.head())
    assert sink.asked.wait(timeout=10)


@pytest.mark.parametrize("backend", ["closed_port", "black_hole"])
def test_a_backend_that_is_down_delays_no_call_and_bounds_the_shutdown(
    make_telemetry, calls, request, tmp_path, backend: str
) -> None:
    path = tmp_path / "traces.jsonl"
    telemetry = make_telemetry(
        otlp_endpoint=request.getfixturevalue(backend),
        trace_file=path,
        batch_spans=64,
    )
    longest_s = 0.0
    for _ in range(300):
        before = time.perf_counter()
        calls.succeed(telemetry, calls.head())
        longest_s = max(longest_s, time.perf_counter() - before)
    before = time.perf_counter()
    telemetry.shutdown()
    shutdown_s = time.perf_counter() - before

    assert longest_s < 2.0  # waiting for one export would take 5 s
    assert shutdown_s < 4.0  # 2 s is the limit; left alone the SDK takes 30
    counts = telemetry.span_counts
    assert (counts.exported, counts.dropped, counts.waiting) == (900, 900, 0)
    assert len(calls.spans_in(path)) == 900


def test_an_exporter_that_never_returns_is_left_behind_and_its_spans_are_counted() -> None:
    taken, release = threading.Event(), threading.Event()

    class Stuck(SpanExporter):
        def export(self, spans) -> SpanExportResult:
            taken.set()
            release.wait(timeout=20)
            return SpanExportResult.FAILURE

        def shutdown(self) -> None:
            release.wait(timeout=20)

    settings = TelemetrySettings(batch_spans=2, batch_delay_s=0.01)
    pipeline = SpanPipeline([SpanLane(Stuck, settings)], shutdown_timeout_s=0.4)
    pipeline.start()
    try:
        pipeline.offer(_any_span())
        assert taken.wait(timeout=10)
        for _ in range(5):
            pipeline.offer(_any_span())
        before = time.perf_counter()
        pipeline.shutdown()
        assert time.perf_counter() - before < 2.0
        counts = pipeline.counts
        # The one that the exporter holds is neither exported nor lost yet.
        assert (counts.exported, counts.dropped, counts.waiting) == (0, 5, 0)
    finally:
        release.set()


def _any_span() -> ReadableSpan:
    return ReadableSpan("any", context=SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1)))


def test_what_a_full_queue_cannot_take_is_dropped_and_counted_exactly(make_telemetry, sink, calls) -> None:
    sink.gate.clear()
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, queue_spans=20, batch_spans=10)
    calls.refuse(telemetry, calls.head())
    assert sink.asked.wait(timeout=10)  # one span is out and being held; now the queue fills
    for _ in range(50):
        calls.refuse(telemetry, calls.head())
    held = telemetry.span_counts
    assert (held.exported, held.dropped, held.waiting) == (0, 30, 20)
    sink.gate.set()
    telemetry.shutdown()
    counts = telemetry.span_counts
    assert (counts.exported, counts.dropped, counts.waiting) == (21, 30, 0)
    assert len(sink.spans) == 21


def test_spans_after_the_shutdown_are_dropped_and_counted(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    telemetry.shutdown()
    calls.refuse(telemetry, calls.head())
    telemetry.shutdown()
    assert telemetry.span_counts.dropped == 1
    assert sink.spans == []


def test_an_endpoint_of_another_kind_is_refused_at_once(make_telemetry) -> None:
    with pytest.raises(TelemetryError, match="'ftp://x:1' must be host:port, http"):
        make_telemetry(otlp_endpoint="ftp://x:1")


def test_a_file_that_cannot_be_written_is_told_at_the_start(make_telemetry, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TelemetryError, match=r"trace file .*file/traces.jsonl cannot be written"):
        make_telemetry(trace_file=tmp_path / "file" / "traces.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_ratio": 1.5}, "sample_ratio is a share from 0 to 1"),
        ({"queue_spans": 0}, "queue_spans must be greater than 0"),
        ({"queue_spans": 10, "batch_spans": 11}, r"batch_spans \(11\) cannot exceed queue_spans \(10\)"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, message: str) -> None:
    with pytest.raises(TelemetryError, match=message):
        TelemetrySettings(**settings)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed under /proc")
def test_no_thread_or_file_is_left_behind(make_telemetry, sink, calls, tmp_path) -> None:
    path = tmp_path / "traces.jsonl"
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, trace_file=path)
    calls.refuse(telemetry, calls.head())
    telemetry.shutdown()
    open_files = {fd.readlink() for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    assert path not in open_files
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("OtelBatch", "span-lane"))
    ]
