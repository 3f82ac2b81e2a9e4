"""What is remembered of methods and of refusals: bounded, and never stale."""

import pytest
from hand_moved import Bench

from relay_service import contract
from relay_service.core.evidence import Safety
from relay_service.core.policy import MethodPolicy
from relay_service.core.reason import Reason
from relay_service.methods import MethodFacts
from relay_service.ports import Headers
from relay_service.refusal import refused
from relay_service.ways import WAYS_MAX, Way, Ways


class KnowsNothing:
    def facts(self, upstream: str, method: str) -> None:
        return None


class Knows:
    def facts(self, upstream: str, method: str) -> MethodFacts:
        return UNARY_FACTS


UNARY_FACTS = MethodFacts(unary=True, safety=None, input_type="t.In", output_type="t.Out")


def test_what_becomes_known_of_a_method_holds_for_its_next_call() -> None:
    bench = Bench(MethodPolicy())
    bench.relay._catalog = KnowsNothing()
    bench.call()
    assert len(bench.upstream.attempts) == 1, "a stream begins with its headers"
    bench.relay._catalog = Knows()
    bench.call()
    assert len(bench.upstream.attempts) == 1, "a unary call waits for its whole request"


def test_made_up_method_names_do_not_pile_up() -> None:
    ways = Ways()
    for number in range(2 * WAYS_MAX + 1):
        ways.remember(f"t.S/{number}", WAY)
    assert len(ways) <= WAYS_MAX
    assert ways.get(f"t.S/{2 * WAYS_MAX}") is WAY


WAY = Way("upstream", MethodPolicy(), UNARY_FACTS, Safety.NONE, unary=True, only_course=None)


def test_callers_refused_alike_are_told_by_one_block() -> None:
    def told(pushback_s: float, method: str = "t.S/Unary") -> Headers:
        verdict = refused(Reason.QUEUE_FULL, Reason.QUEUE_FULL.meaning, pushback_s)
        return contract.trailers_of_refusal(verdict, method)

    assert told(0.1234) is told(0.1239), "two digits are told"
    assert dict(told(0.1234))[contract.PUSHBACK] == b"120"
    assert dict(told(0.0124))[contract.PUSHBACK] == b"12"
    assert dict(told(-1.0))[contract.PUSHBACK] == b"-1"
    assert told(0.1234) != told(0.1234, "t.S/Other")


@pytest.mark.parametrize(
    "name", [b"relay-attempt", b"relay-criticality", b"relay-client-id", b"idempotency-key"]
)
def test_metadata_that_asks_something_of_the_relay_is_never_overlooked(name: bytes) -> None:
    asked = contract.asked([(b"user-agent", b"x"), (name, b"1")])
    assert not asked.is_nothing
    assert asked.keyed is (name == b"idempotency-key")
    assert contract.asked([(b"user-agent", b"x")]).is_nothing
