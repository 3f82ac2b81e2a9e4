"""One job's way through a real relay as an OTLP backend sees it: sent, processed, dead, replayed."""

from typing import Any

from protos.relay.v1 import dead_letter_pb2, job_pb2
from tests.integration.telemetry.conftest import OtlpSink

CHARGE = "downstream.v1.PaymentService/Charge"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_runs_are_linked_to_their_submission_and_replays_to_the_first(lab: Any, helpers: Any) -> None:
    sink = OtlpSink()
    try:
        relay = await lab.relay(
            helpers.policy(jobs={"maxAttempts": 2}), "--otlp-endpoint", f"http://{sink.endpoint}"
        )
        await lab.set_faults({"failure": {"code": 14}, "methods": [CHARGE]})
        request = job_pb2.SubmitRequest(work=helpers.a_charge("traced"))
        metadata = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)
        job = (await relay.jobs.Submit(request, timeout=10, metadata=metadata)).job
        await helpers.all_ended(relay, 1)
        await lab.heal()
        plan = dead_letter_pb2.ReplayRequest(canary=1)
        async for event in relay.letters.Replay(plan, timeout=60):
            last = event
        assert last.report.executed == 1

        async def all_told() -> bool:
            return sum(span.name == f"process {CHARGE}" for span in sink.spans) == 3

        await helpers.eventually(all_told)
    finally:
        sink.close()
    first, replay = sorted(
        (span for span in sink.spans if span.kind == "PRODUCER"), key=lambda span: span.start_ns
    )
    within = {span.span_id: span for span in sink.spans if span.trace_id == TRACE}
    assert first.trace_id == TRACE
    assert within[first.parent_id].name == "relay.v1.JobService/Submit"
    assert first.attributes["messaging.message.id"] == job.id
    assert (replay.parent_id, replay.links) == ("", ((first.trace_id, first.span_id),))
    assert replay.attributes["relay.original_trace_id"] == TRACE
    runs = sorted((span for span in sink.spans if span.kind == "CONSUMER"), key=lambda span: span.start_ns)
    assert [span.links for span in runs] == [
        ((first.trace_id, first.span_id),),
        ((first.trace_id, first.span_id),),
        ((replay.trace_id, replay.span_id),),
    ]
    assert [span.attributes["relay.job.run"] for span in runs] == [1, 2, 1]
    assert len({span.trace_id for span in runs} | {TRACE, replay.trace_id}) == 5
