"""One upstream, or one method, hangs: what that costs the others, with bulkheads. Seeds are printed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from overload import CountedReply, Group, Overload, Server
from world import Catalog, Clock, Observer, framed

from relay_service.config.loading import load_policy
from relay_service.core.bulkheads import Bulkheads
from relay_service.core.evidence import Safety
from relay_service.core.policy import (
    AdmissionPolicy,
    BulkheadsPolicy,
    HedgePolicy,
    MethodPolicy,
    RelayPolicy,
    Route,
    UpstreamPolicy,
)
from relay_service.ports import CallHead
from relay_service.relay import Relay
from relay_service.workers import Workers

Patch = pytest.MonkeyPatch
ADAPTIVE: AdmissionPolicy = load_policy("default", "h:1").admission
FIXED = AdmissionPolicy(queue_capacity=50, workers=20)
SECONDS = 12.0
HANGS_AT_S, BACK_AT_S = 2.0, 8.0
SEEDS = range(3)


class TwoServices(Overload):
    """``shop.S`` and ``mail.S`` at upstreams ``shop`` and ``mail``.

    ``hanging_method`` is the one that hangs while a server does; empty for all.
    """

    def __init__(
        self,
        seed: int,
        admission: AdmissionPolicy,
        bulkheads: BulkheadsPolicy,
        hanging_method: str = "",
        method: MethodPolicy | None = None,
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.clock = Clock()
        self.observer = Observer()
        self.shop, self.mail = (HangingServer(self.clock, self.rng, hanging_method) for _ in range(2))
        self.shop.name, self.mail.name = "shop", "mail"
        self.policy = RelayPolicy(
            "two",
            {"shop": UpstreamPolicy("h:1"), "mail": UpstreamPolicy("h:2")},
            {"": method or MethodPolicy(attempt_timeout_s=1.0)},
            (Route("shop.S", None, "shop"), Route("mail.S", None, "mail")),
            admission=admission,
            bulkheads=bulkheads,
        )
        ports = {"shop": self.shop, "mail": self.mail}
        self.relay = Relay(
            self.policy,
            ports,
            Catalog(),
            self.observer,
            self.clock,
            now=lambda: self.clock.now,
            rng=self.rng,
            own_services={},
            hedge_upstreams=ports,
        )
        self.epoch = self.clock.now
        self.pushbacks_ms = []

    def call(self, group: Group) -> None:
        """One call of the group, which is named after its method."""
        group.offered += 1
        head = CallHead(group.name, [], group.timeout_s, self.clock.now, "caller:1")
        call = self.relay.on_call(head, CountedReply(self, group))
        if call is not None:
            call.on_request_data(framed(b"x"), end=True)

    def run(self, seconds: float, *groups: Group, start: float = 0.0) -> None:
        super().run(seconds, *groups, start=start)
        for one in self.relay.bulkheads or ():
            left = (one.admission.busy, one.admission.queued, one.admission.streams)
            assert left == (0, 0, 0), f"seed {self.seed}: {one.upstream} {one.methods}: {left}"


class HangingServer(Server):
    """Silent as a whole, or for one method, while ``silent`` is set."""

    def __init__(self, clock: Clock, rng: Random, hanging_method: str) -> None:
        super().__init__(clock, rng, workers=10, service_s=0.02)
        self._hanging_method = hanging_method

    def start(self, method: str, metadata: Any, timeout_s: float | None, sink: Any) -> Any:
        silent = self.silent
        self.silent = silent and (not self._hanging_method or method == self._hanging_method)
        try:
            return super().start(method, metadata, timeout_s, sink)
        finally:
            self.silent = silent


def between(group: Group, world: TwoServices) -> float:
    """The share of what it offered that succeeded while the other hung."""
    return group.ok_between(HANGS_AT_S, BACK_AT_S) / (group.rate_per_s * (BACK_AT_S - HANGS_AT_S))


def hang(world: TwoServices, server: HangingServer) -> None:
    world.at(HANGS_AT_S, lambda: setattr(server, "silent", True))
    world.at(BACK_AT_S, lambda: setattr(server, "silent", False))


EACH_UPSTREAM: Mapping[str, BulkheadsPolicy] = {
    "fixed": BulkheadsPolicy({"shop": FIXED, "mail": FIXED}),
    "adaptive": BulkheadsPolicy({"shop": ADAPTIVE, "mail": ADAPTIVE}),
    "only the one that hangs": BulkheadsPolicy({"mail": FIXED}),
}


def one_upstream_hangs(seed: int, kind: str = "fixed") -> None:
    world = TwoServices(seed, ADAPTIVE if kind == "adaptive" else FIXED, EACH_UPSTREAM[kind])
    shop, mail = Group("shop.S/Buy", 100.0), Group("mail.S/Send", 100.0)
    hang(world, world.mail)
    world.run(SECONDS, shop, mail)
    print(f"seed {seed}: shop {shop.ok_share:.4f} {shop.ended}, mail {mail.ended}")
    assert shop.ok_share >= 0.99, f"seed {seed}: {shop.ended}"
    assert between(mail, world) < 0.1, "it did hang"
    assert mail.ok_between(BACK_AT_S + 2, SECONDS) > 0.75 * 100 * (SECONDS - BACK_AT_S - 2), f"seed {seed}"


def one_method_hangs(seed: int) -> None:
    small = BulkheadsPolicy(methods={"shop.S/Export": AdmissionPolicy(queue_capacity=5, workers=4)})
    world = TwoServices(seed, FIXED, small, hanging_method="shop.S/Export")
    buy, export = Group("shop.S/Buy", 100.0), Group("shop.S/Export", 100.0)
    hang(world, world.shop)
    world.run(SECONDS, buy, export)
    print(f"seed {seed}: buy {buy.ok_share:.4f} {buy.ended}, export {export.ended}")
    assert buy.ok_share >= 0.99, f"seed {seed}: {buy.ended}"


def one_upstream_keeps_all_streams(seed: int) -> None:
    limits = AdmissionPolicy(max_streams=20)
    world = TwoServices(seed, limits, BulkheadsPolicy({"mail": limits}))
    watch, mail = Group("shop.S/WatchStream", 20.0), Group("mail.S/WatchStream", 20.0, timeout_s=6.0)
    hang(world, world.mail)
    world.run(SECONDS, watch, mail)
    print(f"seed {seed}: shop {watch.ended}, mail {mail.ended}")
    assert watch.ok_share >= 0.99, f"seed {seed}: {watch.ended}"
    assert mail.ended["STREAM_LIMIT"] > 0, f"seed {seed}"


CHECKS: dict[str, Callable[[int], None]] = {
    check.__name__: check for check in (one_upstream_hangs, one_method_hangs, one_upstream_keeps_all_streams)
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("check", CHECKS)
def test_what_hangs_in_its_compartment_costs_the_others_nothing(check: str, seed: int) -> None:
    CHECKS[check](seed)


@pytest.mark.parametrize("kind", EACH_UPSTREAM)
def test_whatever_limits_the_compartments(kind: str) -> None:
    one_upstream_hangs(3, kind)


def test_hedges_and_fallbacks_leave_every_compartment_empty_behind_them() -> None:
    """Hedges hold workers of their own, fallbacks go from one compartment to the other."""
    method = MethodPolicy(
        safety=Safety.IDEMPOTENT,
        attempt_timeout_s=0.2,
        hedging=HedgePolicy(quantile=None, min_delay_s=0.02),
        fallback=("mail",),
    )
    both = BulkheadsPolicy({"shop": replace(FIXED, workers=8), "mail": replace(FIXED, workers=8)})
    world = TwoServices(7, FIXED, both, method=method)
    shop, mail = Group("shop.S/Buy", 300.0), Group("mail.S/Send", 100.0)
    hang(world, world.shop)
    world.run(SECONDS, shop, mail)
    hedged = world.relay.hedging["shop"].state()
    print(f"seed 7: {shop.ended}, {mail.ended}, {hedged.started} hedges")
    assert hedged.started > 50
    assert world.relay.admission.state().taken == dict.fromkeys(world.relay.admission.state().taken, 0), (
        "nothing is taken of what all share"
    )


def test_a_policy_that_takes_the_compartments_away_serves_what_waits_in_them() -> None:
    world = TwoServices(5, FIXED, EACH_UPSTREAM["fixed"])
    shop, mail = Group("shop.S/Buy", 300.0, timeout_s=3.0), Group("mail.S/Send", 600.0, timeout_s=3.0)
    ports = {"shop": world.shop, "mail": world.mail}
    plain = replace(world.policy, bulkheads=BulkheadsPolicy())
    world.at(2.0, lambda: world.relay.adopt(plain, ports, ports) and None)
    world.at(4.0, lambda: world.relay.adopt(world.policy, ports, ports) and None)
    before = list(world.relay.bulkheads or ())
    world.run(6.0, shop, mail)
    print(f"seed 5: {shop.ended}, {mail.ended}")
    assert all((one.admission.busy, one.admission.queued) == (0, 0) for one in before)
    assert world.relay.in_flight == 0


def no_compartments(patch: Patch) -> None:
    patch.setattr(Bulkheads, "holding", lambda _self, _upstream, _method: None)


def methods_share_their_upstreams(patch: Patch) -> None:
    holding = Bulkheads.holding
    patch.setattr(
        Bulkheads, "holding", lambda self, upstream, _method: holding(self, upstream, "other.S/Any")
    )


def streams_are_not_in_them(patch: Patch) -> None:
    admit = Workers.admit_stream
    patch.setattr(
        Workers, "admit_stream", lambda self, demand, _own, now: admit(self, demand, self.shared, now)
    )


MUTANTS: tuple[tuple[Callable[[Patch], None], str], ...] = (
    (no_compartments, "one_upstream_hangs"),
    (methods_share_their_upstreams, "one_method_hangs"),
    (streams_are_not_in_them, "one_upstream_keeps_all_streams"),
)


@pytest.mark.parametrize(("mutate", "check"), MUTANTS)
def test_the_mutant_is_caught(mutate: Callable[[Patch], None], check: str, monkeypatch: Patch) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="seed"):
        CHECKS[check](0)
