"""A call goes on at another upstream while nothing was executed, and never after; mutants are caught."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from world import Behaviour, Catalog, Clock, Observer, Upstream, World

from relay_service.core.breaker import CircuitBreaker
from relay_service.core.call import Call
from relay_service.core.evidence import Evidence, Safety
from relay_service.core.lane import Lane
from relay_service.core.policy import (
    AdmissionPolicy,
    BreakerPolicy,
    MethodPolicy,
    RelayPolicy,
    RetryBudgetPolicy,
    RetryPolicy,
    Route,
    ThrottlePolicy,
    UpstreamPolicy,
)
from relay_service.core.status import Code
from relay_service.relay import Relay

Patch = pytest.MonkeyPatch
RATIO, BURST = 0.1, 5
CALLS = 300
OPENS_SOON = BreakerPolicy(consecutive_failures=5, failure_ratio=None, open_s=1.0)


class TwoUpstreams(World):
    """Calls go to ``own`` and fall back to ``spare``; each has effects and a ledger of its own."""

    def __init__(
        self,
        seed: int,
        own: Behaviour,
        spare: Behaviour,
        breaker: BreakerPolicy = OPENS_SOON,
    ) -> None:
        self.rng = Random(seed)
        self.clock = Clock()
        self.observer = Observer()
        self.own, self.spare = (Upstream(self.clock, self.rng, one) for one in (own, spare))
        self.own.name, self.spare.name = "own", "spare"
        method = MethodPolicy(safety=Safety.KEYED, retry=RetryPolicy(max_attempts=4), fallback=("spare",))
        policy = RelayPolicy(
            "two",
            {"own": UpstreamPolicy("h:1"), "spare": UpstreamPolicy("h:2")},
            {"": method},
            (Route("", None, "own"),),
            budget=RetryBudgetPolicy(RATIO, BURST),
            breakers={"": breaker},
        )
        self.relay = Relay(
            policy,
            {"own": self.own, "spare": self.spare},
            Catalog(),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=self.rng,
            own_services={},
        )
        self.replies = {}
        self.sent_at = {}

    def run(self, *, with_keys: bool = True) -> Counter[str]:
        """So many calls over ten seconds; how they ended, by code and decision."""
        for number in range(CALLS):
            key = b"k%d" % number if with_keys else None
            self.call_at(self.rng.uniform(0, 10), b"%d" % number, key=key, timeout_s=5)
        self.clock.run()
        assert self.relay.in_flight == 0
        assert all(one.calls == 0 for one in self.relay._courses.destinations.values())
        return Counter(
            f"{reply.code.name} {reply.trailers[b'relay-decision'].decode()}"
            for reply in self.replies.values()
        )


def nothing_listens(seed: int) -> None:
    """Connections are refused: every call is answered by the other one."""
    world = TwoUpstreams(seed, Behaviour(refuse_connect=1.0), Behaviour())
    ended = world.run()
    assert ended == {"OK FALLBACK": CALLS}, f"seed {seed}: {ended}"
    assert len(world.own.attempts) < CALLS / 2, "the breaker spares most of them the way"


def no_effect_is_made_twice(seed: int) -> None:
    """Answers get lost, breakers open: what may have been executed stays where it is."""
    broken = Behaviour(refuse_connect=0.3, lose_after=0.4, fail_before=0.1)
    world = TwoUpstreams(seed, broken, Behaviour())
    ended = world.run()
    for call_id, reply in world.replies.items():
        effects = world.own.effects[call_id] + world.spare.effects[call_id]
        assert effects <= 1, f"seed {seed}: call {call_id!r} had {effects} effects"
        assert reply.code is not Code.OK or effects == 1, f"seed {seed}"
    assert ended["OK FALLBACK"] > 20, f"seed {seed}: {ended}"
    assert ended["UNKNOWN OUTCOME_UNKNOWN"] > 0, f"seed {seed}: {ended}"


def retries_at_the_fallback_are_paid_for_there(seed: int) -> None:
    """The spare fails too: its retries stay within its own budget, whatever the other's has left."""
    never_opens = BreakerPolicy(failure_ratio=None)
    world = TwoUpstreams(seed, Behaviour(refuse_connect=1.0), Behaviour(fail_before=0.5), never_opens)
    world.run()
    gate = world.relay.gates["spare"].state()
    assert world.relay.fallbacks["spare"] == CALLS, f"seed {seed}"
    assert len(world.spare.attempts) - CALLS == gate.granted, f"seed {seed}"
    assert 0 < gate.granted <= RATIO * CALLS + BURST, f"seed {seed}: {gate.granted}"


def a_fallback_whose_breaker_is_open_is_left_alone(seed: int) -> None:
    """Both are dead: calls are refused in a moment, and neither is hammered on."""
    world = TwoUpstreams(seed, Behaviour(refuse_connect=1.0), Behaviour(refuse_connect=1.0))
    ended = world.run()
    assert ended["UNAVAILABLE BREAKER_OPEN"] > 0.8 * CALLS, f"seed {seed}: {ended}"
    assert len(world.spare.attempts) < 0.2 * CALLS, f"seed {seed}: {len(world.spare.attempts)}"


def a_fallback_that_takes_nothing_is_asked_less(seed: int) -> None:
    """Its throttle holds back the first attempts of those that come to it, too, not only their retries."""
    never_opens = BreakerPolicy(failure_ratio=None)
    world = TwoUpstreams(seed, Behaviour(refuse_connect=1.0), Behaviour(fail_before=1.0), never_opens)
    throttled = replace(world.relay.policy, adaptive_throttle=ThrottlePolicy())
    world.relay.adopt(throttled, {"own": world.own, "spare": world.spare})
    ended = world.run()
    assert ended["RESOURCE_EXHAUSTED ADAPTIVE_THROTTLE"] > 0.3 * CALLS, f"seed {seed}: {ended}"
    assert len(world.spare.attempts) < 0.7 * CALLS, f"seed {seed}: {len(world.spare.attempts)}"


def a_refusal_over_the_wire_diverts_nobody(seed: int) -> None:
    """It answers UNAVAILABLE now and then: retries serve its callers, and the breaker stays closed."""
    world = TwoUpstreams(seed, Behaviour(fail_before=0.1), Behaviour())
    ended = world.run()
    assert not world.spare.attempts, f"seed {seed}: {ended}"


CHECKS: dict[str, Callable[[int], None]] = {
    check.__name__: check
    for check in (
        nothing_listens,
        no_effect_is_made_twice,
        retries_at_the_fallback_are_paid_for_there,
        a_fallback_whose_breaker_is_open_is_left_alone,
        a_fallback_that_takes_nothing_is_asked_less,
        a_refusal_over_the_wire_diverts_nobody,
    )
}
SEEDS = 10


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("check", CHECKS)
def test_with_a_fallback(check: str, seed: int) -> None:
    CHECKS[check](seed)


def test_the_way_there_is_told() -> None:
    world = TwoUpstreams(1, Behaviour(refuse_connect=1.0), Behaviour())
    world.call(b"one", key=b"k", timeout_s=5)
    world.clock.run()
    trailers = world.replies[b"one"].trailers
    assert (trailers[b"relay-decision"], trailers[b"relay-attempts"]) == (b"FALLBACK", b"2")
    assert (trailers[b"relay-origin"], trailers[b"relay-outcome"]) == (b"upstream", b"executed")
    assert world.relay.fallbacks == {"own": 0, "spare": 1}


def test_a_call_that_finds_the_breaker_open_goes_straight_to_the_fallback() -> None:
    world = TwoUpstreams(1, Behaviour(refuse_connect=1.0), Behaviour())
    for number in range(6):
        world.call(b"%d" % number, timeout_s=5)
        while world.replies[b"%d" % number].code is None:
            world.clock.step()
    before = len(world.own.attempts)
    world.call(b"last", timeout_s=5)
    while world.replies[b"last"].code is None:
        world.clock.step()
    trailers = world.replies[b"last"].trailers
    assert (trailers[b"relay-decision"], trailers[b"relay-attempts"]) == (b"FALLBACK", b"1")
    assert len(world.own.attempts) == before


def test_a_call_that_ends_in_the_queue_on_its_way_to_the_fallback_is_not_counted_there() -> None:
    world = TwoUpstreams(1, Behaviour(refuse_connect=1.0), Behaviour())
    narrow = replace(world.relay.policy, admission=AdmissionPolicy(workers=1, queue_capacity=0))
    world.relay.adopt(narrow, {"own": world.own, "spare": world.spare})
    world.call(b"diverted", timeout_s=5)
    while world.own.running[b"diverted"]:
        world.clock.step()
    world.call(b"first", timeout_s=5)
    world.clock.run()
    assert world.replies[b"diverted"].trailers[b"relay-decision"] != b"FALLBACK"
    assert world.relay.fallbacks["spare"] == sum(call == b"first" for _, call, _ in world.spare.attempts)


def test_a_stream_that_could_not_be_sent_goes_on_elsewhere_with_what_came_meanwhile() -> None:
    world = TwoUpstreams(1, Behaviour(refuse_connect=1.0), Behaviour())
    world.call(b"stream", method="t.S/Stream", timeout_s=5, body=b"said")
    world.clock.run()
    reply = world.replies[b"stream"]
    assert (reply.code, reply.data[5:], reply.trailers[b"relay-decision"]) == (Code.OK, b"said", b"FALLBACK")


def ambiguous_calls_fall_back(patch: Patch) -> None:
    fall_back = Call._fall_back
    after = Call._after_failure

    def after_failure(self: Call, done: Any, judgement: Any, now: float) -> Any:
        evidence, self._evidence = self._evidence, Evidence.NOT_SENT
        elsewhere = fall_back(self, now)
        self._evidence = evidence
        return elsewhere or after(self, done, judgement, now)

    patch.setattr(Call, "_after_failure", after_failure)


def the_first_gate_pays(patch: Patch) -> None:
    fall_back = Call._fall_back

    def fallen(self: Call, now: float) -> Any:
        gate = self._gate
        actions = fall_back(self, now)
        self._gate = gate
        return actions

    patch.setattr(Call, "_fall_back", fallen)


def refusals_divert(patch: Patch) -> None:
    after = Call._after_failure
    patch.setattr(
        Call,
        "_after_failure",
        lambda self, done, judgement, now: self._fall_back(now) or after(self, done, judgement, now),
    )


def never(patch: Patch) -> None:
    patch.setattr(Call, "_fall_back", lambda _self, _now: ())
    patch.setattr(Lane, "is_open", lambda _self, _now: False)


def breakers_never_open(patch: Patch) -> None:
    patch.setattr(CircuitBreaker, "_tripped", lambda _: None)


def no_throttle_is_asked_on_the_way(patch: Patch) -> None:
    fall_back = Call._fall_back

    def fallen(self: Call, now: float) -> Any:
        lanes = list(self._fallbacks)
        self._fallbacks = iter([(index, lane._replace(throttle=None)) for index, lane in lanes])
        actions = fall_back(self, now)
        self._throttle = lanes[0][1].throttle if lanes and actions else self._throttle
        return actions

    patch.setattr(Call, "_fall_back", fallen)


MUTANTS: dict[str, tuple[Callable[[Patch], None], str]] = {
    "after an ambiguous attempt": (ambiguous_calls_fall_back, "no_effect_is_made_twice"),
    "on the first upstream's budget": (the_first_gate_pays, "retries_at_the_fallback_are_paid_for_there"),
    "after any refusal": (refusals_divert, "a_refusal_over_the_wire_diverts_nobody"),
    "never": (never, "nothing_listens"),
    "past the throttle": (no_throttle_is_asked_on_the_way, "a_fallback_that_takes_nothing_is_asked_less"),
    "breakers never open": (
        breakers_never_open,
        "a_fallback_whose_breaker_is_open_is_left_alone",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str, monkeypatch: Patch) -> None:
    mutate, check = MUTANTS[name]
    mutate(monkeypatch)
    for seed in range(3):
        with pytest.raises(AssertionError):
            CHECKS[check](seed)


def test_every_check_catches_a_mutant() -> None:
    assert {check for _, check in MUTANTS.values()} == set(CHECKS)
