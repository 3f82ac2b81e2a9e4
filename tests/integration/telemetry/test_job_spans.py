"""The spans of jobs that are sent on their way, as a real OTLP backend gets them."""

from relay_service.jobs.sending import Message

METHOD = "downstream.v1.PaymentService/Charge"


def test_a_submission_is_a_producer_span_within_the_call_that_brought_it(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    within = calls.traceparent("01")[1].decode()
    sending = telemetry.job_sender().begin(Message(METHOD, 17, within=within))
    sending.sent("job-1", existed=False)
    telemetry.shutdown()
    (span,) = sink.spans
    assert (span.name, span.kind, span.status) == (f"send {METHOD}", "PRODUCER", "UNSET")
    assert (span.trace_id, span.parent_id) == (calls.CALLER_TRACE, calls.CALLER_SPAN)
    assert sending.traceparent == f"00-{span.trace_id}-{span.span_id}-01"
    assert span.attributes == {
        "messaging.system": "resilient_relay",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": METHOD,
        "messaging.message.body.size": 17,
        "messaging.message.id": "job-1",
    }
    assert span.start_ns <= span.end_ns


def test_a_replay_is_a_root_linked_to_the_first_submission_and_recorded_with_it(
    make_telemetry, sink, calls
) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint, sample_ratio=0.0)
    origin = calls.traceparent("01")[1].decode()
    sending = telemetry.job_sender().begin(Message(METHOD, 0, origin=origin, dead_letter_id="letter-1"))
    sending.sent("job-2", existed=False)
    telemetry.shutdown()
    (span,) = sink.spans
    assert (span.trace_id != calls.CALLER_TRACE, span.parent_id) == (True, "")
    assert span.links == ((calls.CALLER_TRACE, calls.CALLER_SPAN),)
    assert span.attributes["relay.original_trace_id"] == calls.CALLER_TRACE
    assert span.attributes["relay.dead_letter_id"] == "letter-1"
    assert sending.traceparent == f"00-{span.trace_id}-{span.span_id}-01"


def test_a_refusal_and_a_known_key_are_told(make_telemetry, sink, calls) -> None:
    telemetry = make_telemetry(otlp_endpoint=sink.endpoint)
    within = calls.traceparent("01")[1].decode()
    sender = telemetry.job_sender()
    sender.begin(Message(METHOD, 0, within=within)).refused("DEAD_LETTERS_FULL")
    sender.begin(Message(METHOD, 0, within=within)).sent("job-1", existed=True)
    telemetry.shutdown()
    refused, known = sink.spans
    assert (refused.status, refused.attributes["error.type"]) == ("ERROR", "DEAD_LETTERS_FULL")
    assert (known.status, known.attributes["relay.job.existed"]) == ("UNSET", True)


def test_what_is_not_recorded_keeps_the_trace_it_came_in(make_telemetry, sink, calls) -> None:
    within = calls.traceparent("00")[1].decode()
    for telemetry in (make_telemetry(), make_telemetry(otlp_endpoint=sink.endpoint, sample_ratio=0.0)):
        sender = telemetry.job_sender()
        for message in (Message(METHOD, 0, within=within), Message(METHOD, 0, origin=within)):
            sending = sender.begin(message)
            sending.sent("job-1", existed=False)
            assert sending.traceparent == within
        telemetry.shutdown()
    assert sink.spans == []
