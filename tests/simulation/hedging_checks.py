"""What hedging promises of a whole relay, as checks that a relay which is broken must fail.

Each runs a world of its own from a seed and raises AssertionError when the promise does not hold.
"""

from collections.abc import Callable
from random import Random

from world import Behaviour, Reply, World

from relay_service.core.evidence import Safety
from relay_service.core.policy import (
    NO_RETRY,
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

HEAVY_TAILED = Behaviour(latency_s=0.02, slow=0.03, slow_s=1.0)
BUDGET = RetryBudgetPolicy(ratio=0.1, burst=20.0)
FIXED = HedgePolicy(quantile=None, min_delay_s=0.1)


def world_of(
    seed: int,
    behaviour: Behaviour,
    hedging: HedgePolicy | None,
    *,
    safety: Safety = Safety.NO_SIDE_EFFECTS,
    retry: RetryPolicy = NO_RETRY,
    budget: RetryBudgetPolicy | None = BUDGET,
    admission: AdmissionPolicy = WIDE_OPEN,
    breaker: BreakerPolicy | None = None,
) -> World:
    method = MethodPolicy(safety=safety, retry=retry, hedging=hedging)
    breakers = {"": breaker} if breaker else {}
    upstreams = {"upstream": UpstreamPolicy(target="127.0.0.1:1")}
    policy = RelayPolicy(
        "hedged", upstreams, {"": method}, admission=admission, budget=budget, breakers=breakers
    )
    return World(seed, policy, behaviour)


def send(world: World, calls: int, per_s: float, *, keyed: bool = False, prefix: bytes = b"") -> list[bytes]:
    """Calls at random times; they are run by ``world.clock.run()``."""
    draw = Random(world.rng.random())
    ids = [prefix + b"%d" % number for number in range(calls)]
    for call_id in ids:
        world.call_at(draw.uniform(0, calls / per_s), call_id, key=b"key-" + call_id if keyed else None)
    return ids


def latencies_s(world: World) -> list[float]:
    assert all(reply.code is Code.OK for reply in world.replies.values())
    return sorted(reply.answered_at - world.sent_at[call_id] for call_id, reply in world.replies.items())


def p99_s(world: World) -> float:
    sorted_s = latencies_s(world)
    return sorted_s[int(0.99 * len(sorted_s))]


def the_tail_is_cut_for_a_twentieth_more_attempts(seed: int) -> None:
    calls = 2500
    plain, hedged = (world_of(seed, HEAVY_TAILED, policy) for policy in (None, HedgePolicy()))
    for world in (plain, hedged):
        send(world, calls, per_s=200.0)
        world.clock.run()
    assert len(plain.upstream.attempts) == calls
    extra = len(hedged.upstream.attempts) / calls - 1
    assert p99_s(hedged) <= p99_s(plain) / 2, (seed, p99_s(hedged), p99_s(plain))
    assert extra <= 0.05, (seed, extra)


def no_hedge_is_made_when_the_budget_is_out(seed: int) -> None:
    """Retries use it up; then the tail comes, and nothing flows in."""
    budget = RetryBudgetPolicy(ratio=0.0, burst=10.0)
    retry = RetryPolicy(max_attempts=4, initial_backoff_s=0.01, max_backoff_s=0.01)
    failing = Behaviour(fail_before=1.0, latency_s=0.01)
    world = world_of(seed, failing, FIXED, retry=retry, budget=budget)
    send(world, 20, per_s=100.0)
    world.clock.run()
    assert world.relay.gates["upstream"].state().tokens == 0, seed
    world.upstream.behaviour = HEAVY_TAILED
    made = len(world.upstream.attempts)
    send(world, 500, per_s=200.0, prefix=b"late-")
    world.clock.run()
    assert len(world.upstream.attempts) == made + 500, seed


def retries_and_hedges_stay_within_the_budget_in_every_window(seed: int) -> None:
    """I4, while much fails and much is slow."""
    bad = Behaviour(fail_before=0.2, latency_s=0.05, slow=0.5, slow_s=0.5)
    retry = RetryPolicy(max_attempts=3, initial_backoff_s=0.001, max_backoff_s=0.001)
    world = world_of(seed, bad, FIXED, retry=retry)
    send(world, 1000, per_s=500.0)
    world.clock.run()
    draw = Random(seed)
    times = [at for at, _, _ in world.upstream.attempts]
    assert any(is_repeat for _, _, is_repeat in world.upstream.attempts)
    for _ in range(300):
        since, until = sorted(draw.choices(times, k=2))
        # A retry is paid for up to its backoff, and what follows the timer, before it is seen.
        firsts = sum(since - 0.01 <= at <= until for at, _, again in world.upstream.attempts if not again)
        repeats = sum(since <= at <= until for at, _, again in world.upstream.attempts if again)
        assert repeats <= BUDGET.ratio * firsts + BUDGET.burst + 1e-9, (seed, since, until)


def a_call_that_may_not_be_executed_twice_is_not(seed: int) -> None:
    slow = Behaviour(latency_s=0.05, slow=0.3, slow_s=0.3, lose_after=0.1)
    for safety, keyed in ((Safety.NONE, False), (Safety.NONE, True), (Safety.KEYED, False)):
        world = world_of(seed, slow, FIXED, safety=safety)
        send(world, 300, per_s=200.0, keyed=keyed)
        world.clock.run()
        assert len(world.upstream.attempts) == 300, (seed, safety)
    world = world_of(seed, slow, FIXED, safety=Safety.KEYED, budget=None)
    send(world, 300, per_s=200.0, keyed=True)
    world.clock.run()
    assert len(world.upstream.attempts) > 350, (seed, "too few hedges to show anything")
    assert max(world.upstream.effects.values()) == 1, seed


def nothing_of_a_call_is_under_way_when_it_is_answered(seed: int) -> None:
    world = world_of(seed, HEAVY_TAILED, FIXED, budget=None)
    left: list[bytes] = []
    answer = Reply.send_trailers

    class Watched(dict[bytes, Reply]):
        def __setitem__(self, call_id: bytes, reply: Reply) -> None:
            def send_trailers(*given: object) -> None:
                left.extend([call_id] * world.upstream.running[call_id])
                answer(reply, *given)

            reply.send_trailers = send_trailers
            super().__setitem__(call_id, reply)

    world.replies = Watched()
    send(world, 500, per_s=200.0)
    world.clock.run()
    assert world.relay.hedging["upstream"].state().started > 10, seed
    assert not left, (seed, left)


def losers_do_not_open_the_breaker(seed: int) -> None:
    breaker = BreakerPolicy(consecutive_failures=2, failure_ratio=0.02, min_calls=50)
    world = world_of(seed, HEAVY_TAILED, FIXED, budget=None, breaker=breaker)
    send(world, 1000, per_s=200.0)
    world.clock.run()
    state = world.relay.hedging["upstream"].state()
    assert state.won > 20, seed
    (view,) = world.relay.breakers.of_upstream("upstream", world.clock.now)
    assert (view.status.opened, view.status.failures) == (0, 0), seed


def a_connection_that_stalls_is_answered_around(seed: int) -> None:
    world = world_of(seed, Behaviour(latency_s=0.02), FIXED)
    world.upstream.stalled_until["main"] = world.clock.now + 2.0
    send(world, 8, per_s=100.0)
    world.clock.run()
    assert latencies_s(world)[-1] < 1.0, (seed, latencies_s(world))


def no_hedge_takes_the_worker_of_a_call_that_waits(seed: int) -> None:
    """Twice as much work as the workers can do: a hedge would be made at a waiting call's cost."""
    admission = AdmissionPolicy(queue_capacity=1000, workers=4, feasibility_quantile=None)
    world = world_of(
        seed,
        Behaviour(latency_s=0.2),
        HedgePolicy(quantile=None, min_delay_s=0.05),
        admission=admission,
        budget=None,
    )
    send(world, 400, per_s=40.0)
    waiting_at_a_hedge: list[int] = []
    start = world.upstream.start_on

    def start_on(connection: str, *rest: object) -> object:
        if connection == "hedges":
            waiting_at_a_hedge.append(world.relay.admission.queued)
        assert world.relay.admission.busy <= 4, seed
        return start(connection, *rest)

    world.upstream.start_on = start_on
    world.clock.run()
    assert not any(waiting_at_a_hedge), (seed, waiting_at_a_hedge)


CHECKS: dict[str, Callable[[int], None]] = {
    check.__name__: check
    for check in (
        the_tail_is_cut_for_a_twentieth_more_attempts,
        no_hedge_is_made_when_the_budget_is_out,
        retries_and_hedges_stay_within_the_budget_in_every_window,
        a_call_that_may_not_be_executed_twice_is_not,
        nothing_of_a_call_is_under_way_when_it_is_answered,
        losers_do_not_open_the_breaker,
        a_connection_that_stalls_is_answered_around,
        no_hedge_takes_the_worker_of_a_call_that_waits,
    )
}
