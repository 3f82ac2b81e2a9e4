"""What the breaker promises of a whole relay, as checks that a broken breaker must fail.

Each runs a world of its own from a seed and raises AssertionError when the promise does not hold.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from world import TICK_S, Behaviour, World

from relay_service.core.breaker import BreakerState, BreakerStatus
from relay_service.core.policy import (
    NO_RETRY,
    WIDE_OPEN,
    AdmissionPolicy,
    BreakerPolicy,
    MethodPolicy,
    RelayPolicy,
    RetryPolicy,
    UpstreamPolicy,
)
from relay_service.core.reason import Reason
from relay_service.core.status import Code

HEALTHY = Behaviour(latency_s=0.01)
DEAD = Behaviour(fail_before=1.0, latency_s=0.01)
SILENT = Behaviour(lose_before=1.0, latency_s=0.01)
QUEUED = 2_000
"""More than Python's stack is deep: refusing one call must not lead into refusing the next."""
IN_A_ROW = BreakerPolicy(consecutive_failures=5, failure_ratio=None, probe_timeout_s=2.0)


@dataclass
class Run:
    """A world with a breaker, steady traffic, and notes of what the breaker said and when."""

    seed: int
    breaker: BreakerPolicy
    method: MethodPolicy = field(default_factory=lambda: MethodPolicy(retry=NO_RETRY))

    def __post_init__(self) -> None:
        upstreams = {"upstream": UpstreamPolicy(target="127.0.0.1:1")}
        policy = RelayPolicy(
            "simulated", upstreams, {"": self.method}, (), WIDE_OPEN, None, breakers={"": self.breaker}
        )
        self.world = World(self.seed, policy, HEALTHY)
        self.draw = Random(self.seed)
        self.start = self.world.clock.now
        self.offered: dict[bytes, float] = {}
        self.seen: list[tuple[float, BreakerStatus]] = []

    def behave(self, at_s: float, behaviour: Behaviour) -> None:
        """The upstream is like this from then on."""
        self._later(at_s, lambda: setattr(self.world.upstream, "behaviour", behaviour))

    def traffic(self, from_s: float, to_s: float, per_s: float, timeout_s: float | None = None) -> None:
        """Calls at random times."""
        for _ in range(round((to_s - from_s) * per_s)):
            at_s = self.draw.uniform(from_s, to_s)
            call_id = b"%d" % len(self.offered)
            self.offered[call_id] = at_s
            self._later(at_s, lambda call_id=call_id: self.world.call(call_id, timeout_s=timeout_s))

    def calls_that_are_cancelled(self, from_s: float, to_s: float, per_s: float, after_s: float) -> None:
        """Calls whose callers leave."""
        for _ in range(round((to_s - from_s) * per_s)):
            at_s = self.draw.uniform(from_s, to_s)
            call_id = b"left-%d" % len(self.offered)
            self.offered[call_id] = at_s
            self._later(at_s, lambda call_id=call_id, at_s=at_s: self._leave(call_id, at_s + after_s))

    def _leave(self, call_id: bytes, at_s: float) -> None:
        call = self.world.call(call_id)
        if call is not None:
            self._later(at_s, call.on_cancelled)

    def run(self, watch_until_s: float) -> None:
        """To the end, noting every 20 ms how the breaker stands."""
        for step in range(round(watch_until_s * 50)):
            self._later(step / 50, self._look)
        self.world.clock.run()

    def _look(self) -> None:
        self.seen.append((self.world.clock.now - self.start, self.status()))

    def _later(self, at_s: float, do: Callable[[], None]) -> None:
        self.world.clock.call_at(self.start + at_s, lambda _: do(), None)

    def status(self) -> BreakerStatus:
        (view,) = self.world.relay.breakers.views(self.world.clock.now)
        return view.status

    def first(self, since_s: float, *states: BreakerState) -> float:
        """When the breaker was first seen so, at or after ``since_s``; never is infinity."""
        return next(
            (at for at, status in self.seen if at >= since_s and status.state in states), float("inf")
        )

    def attempts(self, from_s: float, to_s: float) -> int:
        return sum(from_s <= at - self.start < to_s for at, _, _ in self.world.upstream.attempts)

    def share(self, from_s: float, to_s: float) -> float:
        """Of the calls that came then, how many were tried."""
        verdicts = self.world.observer.verdicts
        came = [verdicts[c].attempts for c, at in self.offered.items() if from_s <= at < to_s]
        return sum(attempts > 0 for attempts in came) / len(came)

    def codes(self, from_s: float, to_s: float) -> list[Code | None]:
        return [self.world.replies[c].code for c, at in self.offered.items() if from_s <= at < to_s]


def an_outage_opens_it_and_it_closes_by_itself(seed: int) -> None:
    """By rate, with retries: soon open, a trickle of probes while it lasts, soon closed and all well."""
    run = Run(seed, BreakerPolicy(min_calls=20), MethodPolicy(retry=RetryPolicy()))
    run.behave(3.0, DEAD)
    run.behave(13.0, HEALTHY)
    run.traffic(0.0, 20.0, per_s=100)
    run.run(20.0)
    opened = run.first(3.0, BreakerState.OPEN)
    assert run.status().opened > 0, seed
    assert opened < 13.0, (seed, opened)
    # One probe each openTime, that fails after its latency and opens it again.
    assert run.attempts(opened + 0.1, 13.0) <= 13.0 - opened + 1, seed
    assert run.first(13.0, BreakerState.CLOSED) <= 13.0 + 1.0 + 0.5, seed
    # openTime, three probes of about 20 ms each, rampTime.
    assert set(run.codes(13.0 + 1.0 + 0.5 + 2.0, 20.0)) == {Code.OK}, seed


def every_refusal_is_typed_and_says_when_to_return(seed: int) -> None:
    """UNAVAILABLE, BREAKER_OPEN, not executed, and not before the next probe is due."""
    run = Run(seed, BreakerPolicy(consecutive_failures=5, failure_ratio=None, open_s=10.0))
    run.behave(0.0, DEAD)
    run.traffic(0.0, 8.0, per_s=50)
    run.run(8.0)
    opened = run.first(0.0, BreakerState.OPEN)
    refused = 0
    for call_id, verdict in run.world.observer.verdicts.items():
        if verdict.reason is Reason.BREAKER_OPEN:
            refused += 1
            reply = run.world.replies[call_id]
            assert (reply.code, reply.trailers[b"relay-origin"]) == (Code.UNAVAILABLE, b"relay"), seed
            assert reply.trailers[b"relay-outcome"] == b"not-executed", seed
            back_s = run.offered[call_id] + int(reply.trailers[b"grpc-retry-pushback-ms"]) / 1000
            assert back_s >= opened + 10.0 - 0.03, (seed, back_s, opened)
    assert refused > 300, seed


def silence_opens_it(seed: int) -> None:
    """Attempts that die at their limit, or with their caller's deadline, are failures."""
    for method, timeout_s in (
        (MethodPolicy(retry=NO_RETRY, attempt_timeout_s=0.5), None),
        (MethodPolicy(retry=NO_RETRY, attempt_timeout_s=None), 0.5),
    ):
        run = Run(seed, BreakerPolicy(min_calls=20), method)
        run.behave(0.0, SILENT)
        run.traffic(0.0, 3.0, per_s=100, timeout_s=timeout_s)
        run.run(3.0)
        # 20 calls take 0.2 s to come, and each half a second to fail.
        assert run.first(0.0, BreakerState.OPEN) <= 1.2, (seed, timeout_s)


def hanging_calls_open_it_before_they_end(seed: int) -> None:
    """With a limit on how long a call may hang, nobody has to wait for its timeout."""
    run = Run(
        seed, BreakerPolicy(min_calls=20, stuck_call_s=0.5), MethodPolicy(retry=NO_RETRY, max_timeout_s=30.0)
    )
    run.behave(0.0, SILENT)
    run.traffic(0.0, 3.0, per_s=100)
    run.run(3.0)
    assert run.first(0.0, BreakerState.OPEN) <= 1.2, seed


def late_results_are_harmless(seed: int) -> None:
    """Calls lost before it opened fail long after it closed: old news."""
    run = Run(seed, IN_A_ROW, MethodPolicy(retry=NO_RETRY, attempt_timeout_s=6.0))
    run.behave(0.0, SILENT)
    run.behave(1.0, DEAD)
    run.behave(1.9, HEALTHY)
    run.traffic(0.0, 0.9, per_s=100)
    run.traffic(1.0, 1.9, per_s=100)
    run.traffic(1.9, 9.0, per_s=10)
    run.run(9.0)
    opened = run.first(0.0, BreakerState.OPEN)
    closed = run.first(opened, BreakerState.CLOSED)
    assert closed < 6.0, (seed, closed)
    assert run.first(closed, BreakerState.OPEN, BreakerState.HALF_OPEN) == float("inf"), seed
    assert run.status().late >= 80, seed


def a_lost_probe_does_not_hold_it(seed: int) -> None:
    """Half-open with a probe that never ends, in a call without any limit: the lease ends it."""
    unlimited = MethodPolicy(
        retry=NO_RETRY, default_timeout_s=None, max_timeout_s=None, attempt_timeout_s=None
    )
    run = Run(seed, IN_A_ROW, unlimited)
    run.behave(0.0, DEAD)
    run.behave(0.8, SILENT)
    run.behave(3.0, HEALTHY)
    run.traffic(0.0, 12.0, per_s=50)
    run.run(12.0)
    assert run.status().probes_lost > 0, seed
    assert run.attempts(1.0, 3.0) <= 2, (seed, "one probe at a time, each for its lease")
    # At worst a probe was lost just before: its lease, the open time, three probes.
    assert run.first(3.0, BreakerState.CLOSED) <= 3.0 + 2.0 + 1.0 + 0.5, seed


def a_cancelled_probe_does_not_hold_it(seed: int) -> None:
    """Callers that leave while they probe make room for the next at once."""
    run = Run(seed, IN_A_ROW)
    run.behave(0.0, DEAD)
    run.behave(0.8, SILENT)
    run.behave(3.0, HEALTHY)
    run.traffic(0.0, 0.8, per_s=50)
    run.calls_that_are_cancelled(0.8, 3.0, per_s=50, after_s=0.05)
    run.traffic(3.05, 8.0, per_s=50)
    run.run(8.0)
    assert run.status().probes_lost == 0, seed
    assert run.first(3.0, BreakerState.CLOSED) <= 3.5, seed


def reopening_is_ramped(seed: int) -> None:
    """Just closed, a small share goes through, and it grows to all within the ramp."""
    run = Run(seed, BreakerPolicy(consecutive_failures=5, failure_ratio=None, ramp_s=4.0))
    run.behave(0.0, DEAD)
    run.behave(0.5, HEALTHY)
    run.traffic(0.0, 10.0, per_s=200)
    run.run(10.0)
    closed = run.first(0.5, BreakerState.CLOSED)
    shares = [run.share(closed + n, closed + n + 1) for n in range(5)]
    assert [round(share, 1) for share in shares] == sorted(round(share, 1) for share in shares), (
        seed,
        shares,
    )
    assert shares[0] <= 0.25, (seed, shares)
    assert shares[4] == 1.0, (seed, shares)


def callers_that_leave_and_callers_in_error_open_nothing(seed: int) -> None:
    """Only what the upstream does wrong is held against it."""
    run = Run(seed, IN_A_ROW)
    run.behave(0.0, Behaviour(fail_definite=1.0, latency_s=0.01))
    run.traffic(0.0, 2.0, per_s=50)
    run.behave(2.5, SILENT)
    run.calls_that_are_cancelled(2.5, 4.0, per_s=50, after_s=0.1)
    run.run(5.0)
    assert run.status().opened == 0, seed


def a_refused_queue_frees_every_worker(seed: int) -> None:
    """When it opens with calls waiting for a worker, all of them are told, and no worker is lost."""
    upstreams = {"upstream": UpstreamPolicy(target="127.0.0.1:1")}
    policy = RelayPolicy(
        "simulated",
        upstreams,
        {"": MethodPolicy(retry=NO_RETRY, attempt_timeout_s=1.0)},
        (),
        AdmissionPolicy(queue_capacity=QUEUED, workers=5),
        None,
        breakers={"": IN_A_ROW},
    )
    world = World(seed, policy, SILENT)
    for number in range(QUEUED):
        world.call(b"%d" % number)
    world.clock.run()
    refused = [c for c, verdict in world.observer.verdicts.items() if verdict.reason is Reason.BREAKER_OPEN]
    # Five attempts fail and open it; each of the first four had handed its worker on before.
    assert len(refused) == QUEUED - 9, seed
    assert (world.relay.admission.busy, world.relay.admission.queued, world.relay.in_flight) == (0, 0, 0)
    assert max(world.replies[c].answered_at - world.sent_at[c] for c in refused) <= 1.0 + 2 * TICK_S, seed


CHECKS: dict[str, Callable[[int], None]] = {
    check.__name__: check
    for check in (
        an_outage_opens_it_and_it_closes_by_itself,
        every_refusal_is_typed_and_says_when_to_return,
        silence_opens_it,
        hanging_calls_open_it_before_they_end,
        late_results_are_harmless,
        a_lost_probe_does_not_hold_it,
        a_cancelled_probe_does_not_hold_it,
        reopening_is_ramped,
        callers_that_leave_and_callers_in_error_open_nothing,
        a_refused_queue_frees_every_worker,
    )
}
