"""The relay's promises under thousands of seeded runs, and its theory under many calls."""

import math
from random import Random

import pytest
from world import TICK_S, Behaviour, World

from relay_service.core.evidence import Safety
from relay_service.core.policy import (
    WIDE_OPEN,
    AdmissionPolicy,
    BreakerPolicy,
    HedgePolicy,
    MethodPolicy,
    RelayPolicy,
    RetryBudgetPolicy,
    RetryPolicy,
    UpstreamPolicy,
)
from relay_service.core.status import Code
from relay_service.core.verdict import Fate

UPSTREAMS = {"upstream": UpstreamPolicy(target="127.0.0.1:1")}


def policy(
    method: MethodPolicy,
    admission: AdmissionPolicy = WIDE_OPEN,
    budget: RetryBudgetPolicy | None = None,
    breaker: BreakerPolicy | None = None,
) -> RelayPolicy:
    breakers = {"": breaker} if breaker else {}
    return RelayPolicy("simulated", UPSTREAMS, {"": method}, (), admission, budget, breakers=breakers)


def a_run(seed: int) -> World:
    """A random policy, a random behaviour, a few dozen calls of all kinds, run to the end."""
    draw = Random(seed)
    safety = draw.choice(list(Safety))
    behaviour = Behaviour(
        *(draw.choice([0.0, draw.uniform(0, 0.2)]) for _ in range(5)),
        latency_s=draw.choice([0.001, 0.05, 2.0]),
    )
    hedging = draw.choice(
        [
            None,
            HedgePolicy(draw.randint(2, 4), quantile=None, min_delay_s=draw.choice([0.0, 0.02, 0.5])),
            HedgePolicy(quantile=draw.choice([0.5, 0.95]), min_delay_s=0.0, min_samples=draw.randint(1, 5)),
        ]
    )
    world = World(
        seed,
        policy(
            MethodPolicy(
                safety=safety,
                default_timeout_s=draw.choice([None, 1.0, 10.0]),
                max_timeout_s=draw.choice([None, 8.0]),
                attempt_timeout_s=draw.choice([None, 0.5]) if not behaviour.lose_before else 0.5,
                retry=RetryPolicy(max_attempts=draw.randint(1, 6), initial_backoff_s=0.01, max_backoff_s=1.0),
                hedging=hedging,
            ),
            AdmissionPolicy(queue_capacity=draw.randint(0, 10), workers=draw.randint(1, 5), max_streams=3),
            draw.choice([None, RetryBudgetPolicy(ratio=draw.uniform(0, 0.5), burst=draw.uniform(1, 5))]),
            draw.choice([None, BreakerPolicy(consecutive_failures=draw.randint(1, 3), open_s=0.1)]),
        ),
        behaviour,
    )
    for number in range(40):
        world.clock.call_at(world.clock.now + draw.uniform(0, 2.0), _one_call, (world, draw, number))
    world.clock.run()
    return world


def _one_call(argument: tuple[World, Random, int]) -> None:
    world, draw, number = argument
    call_id = b"%d" % number
    streaming = draw.random() < 0.2
    call = world.call(
        call_id,
        method="t.S/Stream" if streaming else "t.S/Unary",
        key=b"key-%d" % number if not streaming and draw.random() < 0.5 else None,
        # A stream without a deadline in a world that loses answers would wait for ever, and rightly so.
        timeout_s=draw.uniform(0.0, 3.0) if streaming else draw.choice([None, draw.uniform(0.0, 3.0)]),
    )
    if call is not None and draw.random() < 0.1:
        world.clock.call_at(world.clock.now + draw.uniform(0, 0.5), lambda gone: gone.on_cancelled(), call)


@pytest.mark.parametrize("block", range(10))
def test_every_promise_of_a_call_holds_for_every_seed(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        world = a_run(seed)
        check(world, seed)


def check(world: World, seed: int) -> None:
    said = f"seed {seed}"
    relay, observer = world.relay, world.observer
    assert observer.received == sum(observer.by_fate.values()) == 40, said
    assert (relay.in_flight, relay.admission.busy, relay.admission.queued, relay.admission.streams) == (
        0,
    ) * 4, said
    policy_ = relay._policy
    method = policy_.method_policy("t.S/Unary")
    assert not +world.upstream.running, said
    state = relay.hedging["upstream"].state()
    assert state.won + state.cancelled <= state.started, said
    for call_id, verdict in observer.verdicts.items():
        reply = world.replies[call_id]
        if verdict.fate is not Fate.CANCELLED:
            assert reply.code is verdict.code, said
        most = max(method.retry.max_attempts, method.hedging.max_attempts if method.hedging else 1)
        assert verdict.attempts <= most, said
        if verdict.code is Code.OK:
            assert (reply.headers, reply.data[5:]) == (((b"served", b"yes"),), b"hello"), said
        if verdict.fate is Fate.REFUSED:
            assert verdict.attempts == 0, said
            assert verdict.reason is not None, said
    check_deadlines(world, said)
    check_effects(world, said)
    check_budget(world, said)


def check_deadlines(world: World, said: str) -> None:
    """I1: an answer by the deadline; the caps of the policy count as deadlines."""
    method = world.relay._policy.method_policy("t.S/Unary")
    limit_s = max(3.0, method.max_timeout_s or method.default_timeout_s or math.inf)
    for call_id, reply in world.replies.items():
        if reply.code is not None:
            assert reply.answered_at - world.sent_at[call_id] <= limit_s + TICK_S, said


def check_effects(world: World, said: str) -> None:
    """I2 as far as one call goes: OK means an effect, "not-executed" means none, never two unless safe."""
    safety = world.relay._policy.method_policy("t.S/Unary").safety
    for call_id, verdict in world.observer.verdicts.items():
        effects = world.upstream.effects[call_id]
        if verdict.code is Code.OK:
            assert effects >= 1, (said, call_id)
        if verdict.outcome == "not-executed" and safety in (Safety.NONE, Safety.KEYED):
            assert effects == 0, (said, call_id)
        if safety in (Safety.NONE, Safety.KEYED):
            assert effects <= 1, (said, call_id)


def check_budget(world: World, said: str) -> None:
    """I4: in every window, retries and hedges stay within ratio x first attempts + burst."""
    budget = world.relay._policy.budget
    if budget is None:
        return
    attempts = world.upstream.attempts
    for start in range(len(attempts)):
        firsts = retries = 0
        for _, _, is_retry in attempts[start:]:
            firsts, retries = firsts + (not is_retry), retries + is_retry
            # A retry is paid for before its backoff, so what is seen later was bounded when it was paid.
            assert retries <= budget.ratio * (firsts + start) + budget.burst + 1e-9, said


@pytest.mark.parametrize(("failing", "success", "load"), [(0.3, 1 - 0.3**4, 1.417), (0.8, 1 - 0.8**4, 2.952)])
def test_four_attempts_reach_what_theory_says(failing: float, success: float, load: float) -> None:
    calls = 5000
    world = World(7, policy(MethodPolicy(retry=RetryPolicy(max_attempts=4))), Behaviour(fail_before=failing))
    for number in range(calls):
        world.call_at(number * 0.001, b"%d" % number)
    world.clock.run()
    ok = world.observer.by_fate[Fate.OK] / calls
    assert abs(ok - success) < 4 * math.sqrt(success * (1 - success) / calls)
    assert len(world.upstream.attempts) / calls == pytest.approx(load, rel=0.03)


def test_a_tenth_of_budget_turns_99_percent_into_about_77() -> None:
    calls = 20_000
    budget = RetryBudgetPolicy(ratio=0.1, burst=10)
    world = World(
        7, policy(MethodPolicy(retry=RetryPolicy(max_attempts=4)), budget=budget), Behaviour(fail_before=0.3)
    )
    for number in range(calls):
        world.call_at(number * 0.001, b"%d" % number)
    world.clock.run()
    assert world.observer.by_fate[Fate.OK] / calls == pytest.approx(0.77, abs=0.015)
    assert len(world.upstream.attempts) <= 1.1 * calls + 10
