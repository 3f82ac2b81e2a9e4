"""What alerts are judged by, from a relay's own figures."""

from dataclasses import replace

from relay_service.control.lookout import look_of
from relay_service.telemetry.histogram import LogHistogram
from relay_service.telemetry.metrics import MethodStats
from tests.integration.control.conftest import RelayState


def test_what_a_caller_sent_in_pieces_that_are_no_message_is_no_failure_of_the_service() -> None:
    state = RelayState()
    state.calls = replace(state.calls, by_reason={"QUEUE_FULL": 2, "MALFORMED_REQUEST": 3})
    codes = {"OK": 5, "NOT_FOUND": 1, "INTERNAL": 4, "RESOURCE_EXHAUSTED": 2, "CANCELLED": 1}
    method = MethodStats("a.B/C", 13, codes, 13, 0, LogHistogram())
    look = look_of(replace(state.stats(), methods=(method,)), "")
    assert (look.errors, look.ended) == (1, 7)
