"""An upstream that pays for every refusal, and what must hold of whoever asks it. A check takes a seed."""

from collections.abc import Callable
from random import Random

from overload import Group, Overload, Server, ServerAttempt
from world import Catalog, Clock, Observer

from relay_service.core.evidence import Delivery
from relay_service.core.policy import (
    NO_RETRY,
    WIDE_OPEN,
    MethodPolicy,
    RelayPolicy,
    ThrottlePolicy,
    UpstreamPolicy,
)
from relay_service.core.status import Code
from relay_service.ports import AttemptEnd, AttemptSink, Headers
from relay_service.relay import Relay

WINDOW_S = 1.0
THROTTLE = ThrottlePolicy(window_s=WINDOW_S)
SHEDDABLE = ((b"relay-criticality", b"SHEDDABLE"),)


class PayingServer(Server):
    """Refuses what it cannot queue, and each refusal takes a worker for a third of a service time: it goes
    before the work, as what happens at the door does."""

    queue_max = 20
    refusal_share = 1 / 3

    def __init__(self, clock: Clock, rng: Random, workers: int, service_s: float) -> None:
        super().__init__(clock, rng, workers, service_s)
        self.refuses_all = False
        self.refuses_share = 0.0
        """A share it refuses at random, as a flaky service does."""
        self.refuses_class: bytes | None = None
        self.asked = 0

    def start(
        self, method: str, metadata: Headers, timeout_s: float | None, sink: AttemptSink
    ) -> ServerAttempt:
        self.asked += 1
        named = dict(metadata).get(b"relay-criticality")
        if (
            self.refuses_all
            or len(self._waiting) >= self.queue_max
            or (self.refuses_class is not None and named == self.refuses_class)
            or self._rng.random() < self.refuses_share
        ):
            attempt = RefusedAttempt(sink)
            self._waiting.appendleft(attempt)
            self._clock.call_at(self._clock.now, Server._serve, self)
            return attempt
        return super().start(method, metadata, timeout_s, sink)

    def _serve(self) -> None:
        while self._waiting and self._serving < self.workers:
            attempt = self._waiting.popleft()
            if not attempt.over:
                self._serving += 1
                share = self.refusal_share if isinstance(attempt, RefusedAttempt) else 1.0
                self._clock.call_at(self._clock.now + share * self._drawn_s(), self._served, attempt)


class RefusedAttempt(ServerAttempt):
    def answer(self) -> None:
        self.over = True
        self._sink.on_end(self, AttemptEnd(Delivery.ANSWERED, Code.RESOURCE_EXHAUSTED, "no room"))


class Asking(Overload):
    """The same world with such a server, and nothing in the relay that limits but the throttle."""

    server: PayingServer

    def __init__(self, seed: int, throttle: ThrottlePolicy | None = THROTTLE) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.clock = Clock()
        self.server = PayingServer(self.clock, self.rng, workers=6, service_s=0.05)
        self.observer = Observer()
        policy = RelayPolicy(
            "asking",
            {"upstream": UpstreamPolicy(target="127.0.0.1:1")},
            {"": MethodPolicy(retry=NO_RETRY)},
            admission=WIDE_OPEN,
            adaptive_throttle=throttle,
        )
        self.relay = Relay(
            policy,
            {"upstream": self.server},
            Catalog(),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=self.rng,
            own_services={},
        )
        self.epoch = self.clock.now
        self.pushbacks_ms: list[int] = []

    def goodput(self, group: Group, since: float, until: float) -> float:
        """As a share of what the server could do if it refused nothing."""
        return group.ok_between(since, until) / ((until - since) * self.server.capacity_per_s)


def goodput_at(seed: int, times: float, throttle: ThrottlePolicy | None = THROTTLE) -> float:
    """The goodput at so many times the capacity, from the third window on."""
    world = Asking(seed, throttle)
    callers = Group("callers", times * world.server.capacity_per_s)
    world.run(6 * WINDOW_S, callers)
    return world.goodput(callers, 2 * WINDOW_S, 6 * WINDOW_S)


def useful_work_comes_back(seed: int) -> None:
    """With K = 2 half of what goes through is refused: 1 / (1 + 1/3) of the capacity is left for work."""
    goodput = goodput_at(seed, 6.0)
    assert goodput > 0.65, f"seed {seed}: {goodput:.3f}"


def a_flaky_upstream_is_not_held_back(seed: int) -> None:
    """It takes seven of ten: more than half, so with K = 2 nothing is refused here."""
    world = Asking(seed)
    world.server.refuses_share = 0.3
    callers = Group("callers", 0.5 * world.server.capacity_per_s)
    world.run(6 * WINDOW_S, callers)
    assert callers.ended["ADAPTIVE_THROTTLE"] < 0.01 * callers.offered, f"seed {seed}: {callers.ended}"


def service_is_whole_soon_after_the_end_of_an_overload(seed: int) -> None:
    """The capacity comes back: a window and a half later nothing is held back any more."""
    world = Asking(seed)
    callers = Group("callers", 3 * world.server.capacity_per_s)
    heals_at = 6 * WINDOW_S
    world.at(heals_at, lambda: setattr(world.server, "workers", 40))
    world.run(heals_at + 4 * WINDOW_S, callers)
    since = heals_at + 1.5 * WINDOW_S
    recovered = callers.ok_between(since, heals_at + 4 * WINDOW_S) / (2.5 * WINDOW_S * callers.rate_per_s)
    assert recovered > 0.95, f"seed {seed}: {recovered:.3f}"


def service_is_whole_soon_after_everything_was_refused(seed: int) -> None:
    """Nothing was accepted for three windows: two windows after that all is let through."""
    world = Asking(seed)
    world.server.workers = 40
    callers = Group("callers", 0.7 * world.server.capacity_per_s)
    world.at(WINDOW_S, lambda: setattr(world.server, "refuses_all", True))
    heals_at = 4 * WINDOW_S
    world.at(heals_at, lambda: setattr(world.server, "refuses_all", False))
    world.run(heals_at + 5 * WINDOW_S, callers)
    since = heals_at + 2 * WINDOW_S
    recovered = callers.ok_between(since, heals_at + 5 * WINDOW_S) / (3 * WINDOW_S * callers.rate_per_s)
    assert recovered > 0.95, f"seed {seed}: {recovered:.3f}"


def a_class_that_is_shed_does_not_cost_the_others(seed: int) -> None:
    world = Asking(seed)
    world.server.refuses_class = b"SHEDDABLE"
    critical = Group("critical", 0.3 * world.server.capacity_per_s)
    flood = Group("flood", 1.2 * world.server.capacity_per_s, metadata=SHEDDABLE)
    world.run(5 * WINDOW_S, critical, flood)
    assert flood.ended["ADAPTIVE_THROTTLE"] > 0.7 * flood.offered, f"seed {seed}: {flood.ended}"
    assert critical.ok_share > 0.97, f"seed {seed}: {critical.ended}"


def callers_that_leave_say_nothing(seed: int) -> None:
    """Impatient callers of a slow service: no answer says that it took too much."""
    world = Asking(seed)
    world.server.service_s, world.server.workers = 0.2, 40
    callers = Group("callers", 0.3 * world.server.capacity_per_s, timeout_s=0.05)
    world.run(5 * WINDOW_S, callers)
    assert callers.ended["OUTCOME_UNKNOWN"] > 0.5 * callers.offered, f"seed {seed}: {callers.ended}"
    assert not callers.ended["ADAPTIVE_THROTTLE"], f"seed {seed}: {callers.ended}"


def a_few_refusals_hold_nothing_back(seed: int) -> None:
    world = Asking(seed)
    world.server.refuses_all = True
    callers = Group("callers", 4.0)
    world.run(10 * WINDOW_S, callers)
    assert not callers.ended["ADAPTIVE_THROTTLE"], f"seed {seed}: {callers.ended}"


CHECKS: tuple[Callable[[int], None], ...] = (
    useful_work_comes_back,
    a_flaky_upstream_is_not_held_back,
    service_is_whole_soon_after_the_end_of_an_overload,
    service_is_whole_soon_after_everything_was_refused,
    a_class_that_is_shed_does_not_cost_the_others,
    callers_that_leave_say_nothing,
    a_few_refusals_hold_nothing_back,
)

__all__ = ["CHECKS", "THROTTLE", "WINDOW_S", "Asking", "goodput_at"]
