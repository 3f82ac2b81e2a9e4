"""The highest class that a caller gets, and what those behind the relay are told."""

from typing import Any

import pytest
from world import Behaviour, Reply, World, framed

from relay_service.arrival import capped
from relay_service.core.criticality import Criticality
from relay_service.core.policy import CriticalityCaps, RelayPolicy, UpstreamPolicy
from relay_service.ports import AttemptSink, CallHead, Headers

CAPS = CriticalityCaps(
    anonymous=Criticality.SHEDDABLE,
    identified=Criticality.SHEDDABLE_PLUS,
    named={"shop": Criticality.CRITICAL_PLUS},
)


class Listening(World):
    """Remembers what the upstream is told of each call's class."""

    def __init__(self, caps: CriticalityCaps | None) -> None:
        policy = RelayPolicy("p", {"upstream": UpstreamPolicy("h:1")}, criticality_caps=caps)
        super().__init__(1, policy, Behaviour())
        self.told: list[list[bytes]] = []
        start = self.upstream.start

        def started(method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink) -> Any:
            self.told.append([value for name, value in metadata if name == b"relay-criticality"])
            return start(method, metadata, timeout_s, sink)

        self.upstream.start = started  # type: ignore[method-assign]  # listens in

    def ask(self, identity: str, *classes: bytes) -> list[bytes]:
        """What the upstream is told when a caller names ``classes``."""
        fields = [(b"call-id", b"c"), *((b"relay-criticality", one) for one in classes)]
        head = CallHead("t.S/Unary", fields, None, self.clock.now, "caller:1", identity)
        call = self.relay.on_call(head, Reply(self.clock))
        assert call is not None
        call.on_request_data(framed(b"x"), end=True)
        self.clock.run()
        return self.told[-1]


@pytest.mark.parametrize(
    ("identity", "asked", "told", "counted"),
    [
        ("shop", b"CRITICAL_PLUS", [b"CRITICAL_PLUS"], 0),
        ("mail", b"critical_plus", [b"SHEDDABLE_PLUS"], 1),
        ("mail", b"SHEDDABLE", [b"SHEDDABLE"], 0),
        ("", b"SHEDDABLE_PLUS", [b"SHEDDABLE"], 1),
        ("", b"nonsense", [b"SHEDDABLE"], 1),
    ],
)
def test_what_a_caller_claims_is_put_right_and_passed_on_so(
    identity: str, asked: bytes, told: list[bytes], counted: int
) -> None:
    world = Listening(CAPS)
    assert world.ask(identity, asked) == told
    assert world.relay.capped == counted
    got = Criticality[told[0].decode()]
    assert {one for one, count in world.relay.admission.state().taken.items() if count} == {got}


def test_a_caller_that_claims_nothing_is_critical_only_where_it_may_be() -> None:
    assert Listening(CAPS).ask("") == [b"SHEDDABLE"]
    assert Listening(CAPS).ask("shop") == []


def test_a_class_claimed_twice_is_one_claim() -> None:
    assert Listening(CAPS).ask("", b"SHEDDABLE", b"CRITICAL_PLUS") == [b"SHEDDABLE"]


def test_without_the_policy_nothing_is_touched() -> None:
    assert Listening(None).ask("", b"CRITICAL_PLUS") == [b"CRITICAL_PLUS"]


def test_a_call_that_asks_for_no_more_than_it_may_is_the_same_call() -> None:
    head = CallHead("t.S/Unary", [(b"relay-criticality", b"SHEDDABLE")], None, 0.0, "caller:1")
    assert capped(head, CAPS) is head
