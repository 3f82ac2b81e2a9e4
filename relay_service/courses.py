"""Where calls go: the upstreams of the policy in force, what was learned of each, and the choice among them.

Another policy takes the place of the one in force here (`Courses.adopt`), and what has been learned of an
upstream stays with it.
"""

from collections.abc import Mapping, Sequence
from random import Random

from relay_service.core.admission import Demand
from relay_service.core.breakers import Breakers
from relay_service.core.budget import RetryGate
from relay_service.core.criticality import Criticality
from relay_service.core.hedge import Hedging
from relay_service.core.hedged import Hedges
from relay_service.core.lane import Lane
from relay_service.core.policy import MethodPolicy, RelayPolicy
from relay_service.core.reason import Reason
from relay_service.core.throttle import AdaptiveThrottle, Throttles
from relay_service.core.value import value
from relay_service.destination import Destination, Diversion
from relay_service.forwarding import Plan
from relay_service.ports import Headers, UpstreamPort
from relay_service.refusal import Refusal


@value
class Course:
    """Where a call goes: first to the first of both, then, while nothing was executed, to the others."""

    lanes: Sequence[Lane]
    destinations: tuple[Destination, ...]
    fell_back: bool
    """Whether it has left its own upstream before it began."""

    @property
    def lane(self) -> Lane:
        """What judges the first attempts."""
        return self.lanes[0]

    @property
    def later_lanes(self) -> Sequence[Lane]:
        """What judges those that follow elsewhere."""
        return self.lanes[1:]

    def plan(
        self, method: str, metadata: Headers, policy: MethodPolicy, deadline: float | None, demand: Demand
    ) -> Plan:
        """The plan of a call on this course."""
        first, *later = self.destinations
        port = Diversion(first) if self.fell_back else first.port
        hedge_port = None if self.fell_back else first.hedge_port
        return Plan(method, metadata, port, policy, deadline, demand, first, hedge_port, tuple(later))


def same_upstreams(old: RelayPolicy, new: RelayPolicy) -> list[str]:
    """The upstreams that lead where they led before: what was learned of them still holds."""
    return [
        name
        for name, upstream in new.upstreams.items()
        if name in old.upstreams and old.upstreams[name].target == upstream.target
    ]


class Courses:
    """The upstreams of the policy in force, by name.

    ``hedge_upstreams`` are the same upstreams over connections of their own; a call to one that is not
    there is never hedged. State: for each upstream its destination, its retry gate, its throttles and what
    was learned for hedging; and the breakers of all.
    """

    def __init__(
        self,
        policy: RelayPolicy,
        upstreams: Mapping[str, UpstreamPort],
        hedge_upstreams: Mapping[str, UpstreamPort],
        rng: Random,
        now: float,
    ) -> None:
        self._policy = policy
        self._rng = rng
        self.destinations = {
            name: Destination(upstreams[name], hedge_upstreams.get(name)) for name in policy.upstreams
        }
        self.gates = {name: RetryGate(policy.budget, policy.throttling, now) for name in policy.upstreams}
        self.breakers = Breakers(policy, now)
        self.throttles = _throttles(policy, {}, now)
        self.hedging = {name: Hedging() for name in policy.upstreams}

    def adopt(
        self,
        policy: RelayPolicy,
        upstreams: Mapping[str, UpstreamPort],
        hedge_upstreams: Mapping[str, UpstreamPort],
        now: float,
    ) -> list[Destination]:
        """Choose by another policy from now on; calls under way keep the course they are on.

        What has been learned of an upstream stays with it as long as its name, its target and the part
        of the policy that it was learned under stay. The result are the destinations that get no new calls.
        """
        same = same_upstreams(self._policy, policy)
        self.gates = {name: self._gate(policy, name, name in same, now) for name in policy.upstreams}
        self.breakers = Breakers(policy, now, self.breakers.of(same))
        learned = {name: self.hedging[name] for name in same}
        self.hedging = {name: learned.get(name) or Hedging() for name in policy.upstreams}
        self.throttles = _throttles(policy, {name: self.throttles.get(name) for name in same}, now)
        left = self.destinations
        kept = {name: one for name, one in left.items() if upstreams.get(name) is one.port}
        self.destinations = {
            name: kept.get(name) or Destination(upstreams[name], hedge_upstreams.get(name))
            for name in policy.upstreams
        }
        self._policy = policy
        return [one for name, one in left.items() if name not in kept]

    def _gate(self, policy: RelayPolicy, name: str, same_upstream: bool, now: float) -> RetryGate:
        policies = (policy.budget, policy.throttling)
        if same_upstream and self.gates[name].policies == policies:
            return self.gates[name]
        return RetryGate(*policies, now)

    def choose(
        self,
        upstream: str,
        method: str,
        policy: MethodPolicy,
        criticality: Criticality,
        now: float,
        *,
        movable: bool,
    ) -> Course:
        """Choose the first upstream whose breaker would let an attempt through, of those that the call may go
        to. Without one, or when the throttle holds it back, it is refused before it costs anything
        (`Refusal`)."""
        # Of a keyed call's fallbacks another policy may have taken some away since its headers came.
        others = [name for name in policy.fallback if name in self.destinations] if movable else ()
        names = (upstream, *others)
        lanes = [self._lane(name, method, criticality) for name in names]
        taken = self._first_open(lanes, now)
        self._check_throttle(lanes[taken].throttle, now)
        destinations = tuple(self.destinations[name] for name in names[taken:])
        return Course(lanes[taken:], destinations, fell_back=taken > 0)

    def only(self, upstream: str, method: str, policy: MethodPolicy) -> Course | None:
        """Where every call of a method goes; None when that depends on the call or on the moment. Holds until
        `adopt`, and has to be checked for each call (`check_open`)."""
        if policy.fallback or self.throttles:
            return None
        lane = Lane(self.gates[upstream], self.breakers.guarding(upstream, method))
        return Course((lane,), (self.destinations[upstream],), fell_back=False)

    def check_open(self, lane: Lane, now: float) -> None:
        """Refuse the call at its headers when its breaker is sure to let no attempt through (`Refusal`)."""
        if lane.is_open(now):
            raise self._refusal_of(lane, now)

    def hedges(self, plan: Plan, upstream: str) -> Hedges | None:
        """What the call needs to be hedged, when its policy wants that.

        A call that came through another relay is left to that one, as with retries.
        """
        policy = plan.policy.hedging
        if policy is None or plan.hedge_upstream is None:
            return None
        return Hedges(self.hedging[upstream], plan.method, policy)

    def _lane(self, upstream: str, method: str, criticality: Criticality) -> Lane:
        throttle = self.throttles[upstream].of(criticality) if self.throttles else None
        return Lane(self.gates[upstream], self.breakers.guarding(upstream, method), throttle)

    def _first_open(self, ways: Sequence[Lane], now: float) -> int:
        """The first upstream whose breaker would let an attempt through. Without one the call is refused at
        its headers, before it costs anything."""
        for index, lane in enumerate(ways):
            if not lane.is_open(now):
                return index
        raise self._refusal_of(ways[0], now)

    def _refusal_of(self, lane: Lane, now: float) -> Refusal:
        pushback_s = lane.breaker.pushback_s(now, self._rng) if lane.breaker is not None else None
        return Refusal(Reason.BREAKER_OPEN, pushback_s)

    def _check_throttle(self, throttle: AdaptiveThrottle | None, now: float) -> None:
        if throttle is not None and throttle.refuses(now, self._rng):
            raise Refusal(Reason.ADAPTIVE_THROTTLE, throttle.pushback_s(now, self._rng))


def _throttles(
    policy: RelayPolicy, known: Mapping[str, Throttles | None], now: float
) -> dict[str, Throttles]:
    """One for each upstream; those ``known`` go on as they stand when the policy asks for the same."""
    asked = policy.adaptive_throttle
    if asked is None:
        return {}
    kept = {name: old for name, old in known.items() if old is not None and old.policy == asked}
    return {name: kept.get(name) or Throttles(asked, now) for name in policy.upstreams}
