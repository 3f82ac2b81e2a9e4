"""An admission in front of a service of so much capacity: callers, admission, service, and nothing between.

The whole relay is simulated in `overload`; here its admission is alone, so that hundreds of seeds with tens
of thousands of calls each are a matter of seconds.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from random import Random
from typing import Any

from relay_service.core.admission import Admission, Admitted, Demand
from relay_service.core.criticality import DEFAULT_CRITICALITY, Criticality
from relay_service.core.limit import LoadSign
from relay_service.core.policy import AdmissionPolicy
from relay_service.core.reason import Reason


class Spread(Enum):
    """How service times lie about their mean."""

    CONSTANT = "constant"
    UNIFORM = "uniform"
    """Within a half of it."""
    EXPONENTIAL = "exponential"


class End(Enum):
    """What became of a call, besides a `Reason` to refuse it."""

    OK = "ok"
    LATE = "late"
    """It was begun, and its deadline came first."""
    CUT = "cut"
    """Its attempt was given up at the time the policy gives one."""


@dataclass(slots=True, eq=False)
class Arrival:
    """One call on its way."""

    crowd: "Crowd"
    demand: Demand
    deadline: float
    given_up_at: float = 0.0
    """When the attempt is cancelled."""
    began: float = 0.0
    over: bool = False
    serving: bool = False


@dataclass(slots=True)
class Crowd:
    """Callers of one kind, who call at a rate whatever happens to them (a Poisson process)."""

    rate_per_s: float
    timeout_s: float = 1.0
    since_s: float = 0.0
    until_s: float = 1e9
    criticality: Criticality = DEFAULT_CRITICALITY
    client: bytes = b""
    ended: list[tuple[float, End | Reason]] = field(default_factory=list)
    """When and how each call ended; at a refusal, when it was made."""

    def ok_between(self, since: float, until: float) -> int:
        return sum(end is End.OK and since <= at < until for at, end in self.ended)

    def offered_between(self, since: float, until: float) -> int:
        return sum(since <= at < until for at, end in self.ended)


class Service:
    """``workers`` at once, each busy for a service time; the rest waits, first in first out.

    Work that is given up while it waits leaves; what is being served is served to its end, for nobody.
    """

    def __init__(self, world: "CapacityWorld", workers: int, service_s: float, spread: Spread) -> None:
        self._world = world
        self.workers, self.service_s, self.spread = workers, service_s, spread
        self.silent = False
        """Takes everything and answers nothing."""
        self._waiting: OrderedDict[Arrival, None] = OrderedDict()
        self._serving = 0
        self.served_at: list[float] = []
        self.wasted_at: list[float] = []
        """Work that ended after its caller had gone."""

    @property
    def capacity_per_s(self) -> float:
        return self.workers / self.service_s

    def becomes(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, value)
        self._serve()

    def submit(self, arrival: Arrival) -> None:
        if not self.silent:
            self._waiting[arrival] = None
            self._serve()

    def give_up(self, arrival: Arrival) -> None:
        self._waiting.pop(arrival, None)

    def _serve(self) -> None:
        while self._waiting and self._serving < self.workers:
            arrival, _ = self._waiting.popitem(last=False)
            self._serving += 1
            arrival.serving = True
            self._world.at(self._world.now + self._drawn_s(), self._served, arrival)

    def _drawn_s(self) -> float:
        rng = self._world.rng
        match self.spread:
            case Spread.CONSTANT:
                return self.service_s
            case Spread.UNIFORM:
                return rng.uniform(0.5, 1.5) * self.service_s
            case Spread.EXPONENTIAL:
                return rng.expovariate(1 / self.service_s)

    def _served(self, arrival: Arrival) -> None:
        self._serving -= 1
        self.served_at.append(self._world.now)
        if arrival.over:
            self.wasted_at.append(self._world.now)
        else:
            self._world.ended(arrival, End.OK, LoadSign.SUCCESS)
        self._serve()


class CapacityWorld:
    """The event loop; times are seconds from the start."""

    def __init__(
        self,
        seed: int,
        policy: AdmissionPolicy,
        *,
        workers: int,
        service_s: float,
        spread: Spread = Spread.UNIFORM,
        attempt_timeout_s: float | None = None,
    ) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self.attempt_timeout_s = attempt_timeout_s
        self.service = Service(self, workers, service_s, spread)
        self.admission: Admission[Arrival] = Admission(policy, 0.0, b"secret")

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, arguments))

    def run(self, until: float, crowds: Sequence[Crowd]) -> None:
        """Let everybody call until then, and see every call to its end."""
        for crowd in crowds:
            self._next(crowd, crowd.since_s, min(until, crowd.until_s))
        while self._events:
            self.now, _, what, arguments = heapq.heappop(self._events)
            what(*arguments)
        assert self.admission.busy == self.admission.queued == 0

    def _next(self, crowd: Crowd, now: float, until: float) -> None:
        at = now + self.rng.expovariate(crowd.rate_per_s)
        if at < until:
            self.at(at, self._arrives, crowd, until)

    def _arrives(self, crowd: Crowd, until: float) -> None:
        now = self.now
        self._next(crowd, now, until)
        deadline = now + crowd.timeout_s
        demand = Demand(crowd.criticality, deadline, crowd.client)
        arrival = Arrival(crowd, demand, deadline)
        offer = self.admission.offer(arrival, demand, now)
        if offer.displaced is not None:
            assert offer.reason is not None
            self._refused(offer.displaced, offer.reason)
        match offer.admitted:
            case Admitted.STARTED:
                self._begin(arrival)
            case Admitted.QUEUED:
                self.at(deadline, self._waited_in_vain, arrival)
            case Admitted.REFUSED:
                assert offer.reason is not None
                self._refused(arrival, offer.reason)

    def _refused(self, arrival: Arrival, reason: Reason) -> None:
        arrival.over = True
        arrival.crowd.ended.append((self.now, reason))

    def _waited_in_vain(self, arrival: Arrival) -> None:
        if not arrival.over and not arrival.began:
            self.admission.withdraw(arrival)
            self._refused(arrival, Reason.DEADLINE_PASSED)

    def _begin(self, arrival: Arrival) -> None:
        arrival.began = self.now
        arrival.given_up_at = arrival.deadline
        if self.attempt_timeout_s is not None:
            arrival.given_up_at = min(arrival.deadline, self.now + self.attempt_timeout_s)
        self.at(arrival.given_up_at, self._give_up, arrival)
        self.service.submit(arrival)

    def _give_up(self, arrival: Arrival) -> None:
        if not arrival.over:
            self.service.give_up(arrival)
            self.ended(arrival, End.LATE if self.now >= arrival.deadline else End.CUT, LoadSign.TIMED_OUT)

    def ended(self, arrival: Arrival, end: End, sign: LoadSign) -> None:
        """A call that was begun is over; its worker goes to the next."""
        arrival.over = True
        arrival.crowd.ended.append((self.now, end))
        self.admission.release(sign, self.now - arrival.began, self.now)
        while (grant := self.admission.grant(self.now)) is not None:
            if grant.refusal is not None:
                self._refused(grant.ticket, grant.refusal)
            else:
                self._begin(grant.ticket)
