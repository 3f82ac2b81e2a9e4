"""Who gets a worker now, who waits, and who is refused.

A worker is the right to have one attempt under way; how many there are is said by a
`relay_service.core.limit.ConcurrencyLimit`, which may change its mind. Work waits in one bounded queue:
higher classes leave it first, and within a class the clients' cohorts take turns. When there is no room, a
call takes the place of a call of the lowest class below its own, else of the cohort of its own class that
has more waiting than its own, and is refused only if there is none. Lower classes may fill only a share of
the queue, so they are refused before it is full. What is refused is told when to come back
(`relay_service.core.turns`). A call that does come back has a turn: it is served before the
newcomers of its cohort, may take the place of one, and is shed after them. A retry of the relay's own has no
such claim, as nobody was told to wait for it, and it is more load for the same call.

By policy a queue that stands (`relay_service.core.codel`) is shed from, always from the lowest class that
waits, and each client's newest call is served first: it still has time, when the oldest has hardly any.
Or there is a door before it: once a class and those above have not been empty for a while, no call joins
that would wait for longer than the target and than its share of the time that its caller has. So who is
refused hears it on arrival, and who is let in is served in order.

Work that cannot end in time is not begun. A call that would have to wait is refused at once when the
queue before it and the service time take longer than its deadline leaves, and looked at again when its
turn comes. A call that finds a worker free is never refused for that: this is how the relay learns when
the service has become fast again.

Strict priority lets a flood of high classes hold low ones back for as long as it lasts; what was
admitted waits at most until its own deadline.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Any, Generic, TypeVar

from relay_service.core.codel import StandingQueue
from relay_service.core.cohorts import Cohorts
from relay_service.core.criticality import DEFAULT_CRITICALITY, Criticality
from relay_service.core.fair_queue import FairQueue, Which
from relay_service.core.limit import LoadSign, make_limit
from relay_service.core.pace import DrainRate, ServiceTime
from relay_service.core.policy import AdmissionPolicy, LimitKind, QueueOrder, StandingShed
from relay_service.core.reason import Reason
from relay_service.core.turns import Turns, believed_per_s, unknown_pushback_s
from relay_service.core.value import value

OBSERVATIONS_MIN = 30
"""No call is refused for its deadline before so many attempts have shown how long they take."""

PATIENCE = 0.25
"""Of the time that a call has left, the share that its caller is taken to be willing to wait in a queue."""

Ticket = TypeVar("Ticket", bound=Hashable)


class Admitted(Enum):
    """What became of an offer."""

    STARTED = "started"
    QUEUED = "queued"
    REFUSED = "refused"


@value
class Demand:
    """What a call asks of the admission."""

    criticality: Criticality = DEFAULT_CRITICALITY
    deadline: float | None = None
    """Monotonic seconds."""
    client: bytes = b""
    """Who calls, as far as it says so."""
    returning: bool = False
    """Its caller has tried before, so it may have been told to come now."""


@value
class Offer(Generic[Ticket]):
    """The answer to an offer: ``displaced`` is who lost its place to it, ``reason`` what that one is told;
    for a refused offer ``reason`` is why."""

    admitted: Admitted
    reason: Reason | None = None
    displaced: Ticket | None = None


_IGNORED = LoadSign.IGNORED
_DOOR = StandingShed.DOOR
_QUEUE_STANDING = Reason.QUEUE_STANDING
_STARTED: Offer[Any] = Offer(Admitted.STARTED)
_QUEUED: Offer[Any] = Offer(Admitted.QUEUED)


@value
class Grant(Generic[Ticket]):
    """The next ticket of the queue: it has a worker, unless ``refusal`` says why it gets none."""

    ticket: Ticket
    refusal: Reason | None = None


@dataclass(frozen=True, slots=True)
class AdmissionState:
    """For people and dashboards."""

    queued: Mapping[Criticality, int] = field(default_factory=dict)
    """Waiting now, by class."""
    displaced: int = 0
    """Calls that lost their place in the queue to another."""
    taken: Mapping[Criticality, int] = field(default_factory=dict)
    """Calls (and retries) that were given a worker so far, by class."""
    refused: Mapping[Criticality, int] = field(default_factory=dict)
    """Calls (and retries) that got none, by class; those that left by themselves are not among them."""
    standing: bool = False
    """Whether the queue stands."""
    standing_shed: int = 0
    """Calls that were shed because it did, or refused at its door."""
    service_s: float = 0.0
    """The learned quantile of the service time; 0 while nothing is known."""
    workers: int = 0
    """Workers that there may be now."""
    baseline_s: float = 0.0
    """What an attempt takes without load, as far as the concurrency limit has learned it; else 0."""


@value
class _Place:
    """Where a ticket waits, and since when."""

    demand: Demand
    cohort: int
    since: float


class Admission(Generic[Ticket]):
    """The bounded queue, the workers, and the separate limit of streaming calls.

    A ticket is any hashable thing that stands for the waiting work; the same ticket may not be offered
    twice at once. All operations are O(1), whatever the queue's length and the number of clients (there are
    four classes). ``secret`` is what clients' cohorts are drawn with, ``subject`` whose limits these are:
    the relay's, or those of a compartment (`relay_service.core.bulkheads`).
    """

    __slots__ = (
        "_busy",
        "_cohorts",
        "_displaced",
        "_drain",
        "_filled_at",
        "_limit",
        "_policy",
        "_queues",
        "_refused",
        "_room",
        "_service",
        "_standing",
        "_standing_shed",
        "_streams",
        "_taken",
        "_turns",
        "_waiting",
        "subject",
    )

    def __init__(
        self, policy: AdmissionPolicy, now: float, secret: bytes = b"", subject: str = "relay"
    ) -> None:
        self.subject = subject
        self._policy = policy
        self._queues: tuple[FairQueue[Ticket], ...] = tuple(FairQueue() for _ in Criticality)
        # In the order of arrival; a plain dict would search longer and longer for its first entry.
        self._waiting: OrderedDict[Ticket, _Place] = OrderedDict()
        self._room = tuple(math.ceil(share * policy.queue_capacity) for share in _shares(policy))
        self._cohorts = Cohorts(secret)
        self._standing = StandingQueue(policy.standing_target_s, policy.standing_interval_s)
        self._filled_at = [now for _ in Criticality]
        self._busy = 0
        self._streams = 0
        self._displaced = 0
        self._standing_shed = 0
        self._taken = [0 for _ in Criticality]
        self._refused = [0 for _ in Criticality]
        self._limit = make_limit(policy, now)
        self._drain = DrainRate(now)
        self._turns = Turns(now)
        self._service = ServiceTime(policy.feasibility_quantile or 0.9)

    @property
    def policy(self) -> AdmissionPolicy:
        """The limits."""
        return self._policy

    def adopt(self, policy: AdmissionPolicy, now: float) -> None:
        """Go on under other limits; then ask `grant` who gets the workers that may have been added.

        What waits keeps its place, also where there would be no room for it now. A limit that the new
        policy does not change keeps what it has learned, and so does the service time.
        """
        old, self._policy = self._policy, policy
        self._room = tuple(math.ceil(share * policy.queue_capacity) for share in _shares(policy))
        if (policy.limit, policy.workers) != (old.limit, old.workers):
            self._limit = make_limit(policy, now)
        if policy.feasibility_quantile != old.feasibility_quantile:
            self._service = ServiceTime(policy.feasibility_quantile or 0.9)
        standing = (policy.standing_target_s, policy.standing_interval_s)
        if standing != (old.standing_target_s, old.standing_interval_s):
            self._standing = StandingQueue(*standing)

    @property
    def queued(self) -> int:
        """Work that waits."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Workers that are taken."""
        return self._busy

    @property
    def workers(self) -> int:
        """Workers that there may be now. More may still be taken, just after the limit was lowered."""
        return self._limit.limit

    @property
    def streams(self) -> int:
        """Streaming calls that are open."""
        return self._streams

    def state(self) -> AdmissionState:
        """The queue as it stands."""
        return AdmissionState(
            queued={criticality: self._queues[criticality].length for criticality in Criticality},
            displaced=self._displaced,
            taken=dict(zip(Criticality, self._taken, strict=True)),
            refused=dict(zip(Criticality, self._refused, strict=True)),
            standing=self._standing.standing,
            standing_shed=self._standing_shed,
            service_s=self._service.quantile_s,
            workers=self._limit.limit,
            baseline_s=self._limit.baseline_s,
        )

    def refusal(self, demand: Demand, now: float) -> Reason | None:
        """Why an offer made now would be refused; None when it would not."""
        if self._busy < self._limit.limit:
            return None
        if not self._has_room(demand.criticality) and not self._can_displace(demand, now):
            return self._no_room(demand.criticality)
        if self._door_is_shut(demand, now) and self._yields_to(demand, now) is None:
            return _QUEUE_STANDING
        return self._infeasible(demand, now)

    def turn_away(self, demand: Demand, now: float) -> Reason | None:
        """The same for a call that will not be offered then: it is counted as refused."""
        reason = self.refusal(demand, now)
        if reason is not None:
            self._refused[demand.criticality] += 1
            self._standing_shed += reason is _QUEUE_STANDING
        return reason

    def _has_room(self, criticality: Criticality) -> bool:
        return len(self._waiting) < self._room[criticality]

    def _no_room(self, criticality: Criticality) -> Reason:
        if self._policy.queue_capacity == 0 and self._policy.limit.kind is not LimitKind.FIXED:
            return Reason.CONCURRENCY_LIMIT
        sheds_early = self._room[criticality] < self._policy.queue_capacity
        return Reason.SHED_BY_CRITICALITY if sheds_early else Reason.QUEUE_FULL

    def _door_is_shut(self, demand: Demand, now: float) -> bool:
        """Whether somebody of the class or above has been waiting for an interval, and the next call of the
        class and the client would wait for longer than the target, than the work itself takes, and than its
        caller's patience.

        A queue that was empty a moment ago evens out a burst, however large; that lower classes wait all the
        time is nothing to a higher one. Whether the oldest is above the target is not asked: the door keeps
        it about there, so it would open and shut all the time.
        """
        policy = self._policy
        if policy.standing_shed is not _DOOR:
            return False
        if now - self._filled_at[demand.criticality] < policy.standing_interval_s:
            return False
        ahead = self._ahead_of(demand, self._queues[demand.criticality].ahead_of_newcomer, now)
        bearable_s = max(policy.standing_target_s, self._service.mean_s)
        if demand.deadline is not None:
            bearable_s = max(bearable_s, PATIENCE * (demand.deadline - now))
        return ahead > 0 and ahead >= bearable_s * self._drains_per_s(now)

    def _note_joining(self, criticality: Criticality, now: float) -> None:
        """Remember since when somebody of each class, or of one above it, waits: a call joins its queue."""
        waiting = self._waiting_above(criticality)
        for each in range(criticality, -1, -1):
            waiting += self._queues[each].length
            if waiting:
                return
            self._filled_at[each] = now

    def _infeasible(self, demand: Demand, now: float) -> Reason | None:
        if demand.deadline is None or not self._service_is_known:
            return None
        ends_at = now + self._expected_wait_s(demand, now) + self._service.quantile_s
        return Reason.DEADLINE_INFEASIBLE if ends_at > demand.deadline else None

    @property
    def _service_is_known(self) -> bool:
        return (
            self._policy.feasibility_quantile is not None and self._service.observations >= OBSERVATIONS_MIN
        )

    def _expected_wait_s(self, demand: Demand, now: float) -> float:
        """How long the next call of the class and the client would wait.

        The queue drains as fast as it was seen to, or as fast as all workers together could by the mean
        service time (Little's law), whichever is faster: after a quiet time little has drained, and that
        says nothing about what could.
        """
        queue = self._queues[demand.criticality]
        in_class = queue.ahead_of_returned if demand.returning else queue.ahead_of_newcomer
        return (self._ahead_of(demand, in_class, now) + 1) / self._drains_per_s(now)

    def _ahead_of(self, demand: Demand, in_class: Callable[[int], int], now: float) -> int:
        """How many would be served before the next call of the class and the client; ``in_class`` says how
        many of its own class, by cohort."""
        ahead = self._waiting_above(demand.criticality)
        if self._queues[demand.criticality].length:
            ahead += in_class(self._cohorts.of(demand.client, now))
        return ahead

    def _waiting_above(self, criticality: Criticality) -> int:
        waiting = 0
        for queue in self._queues[criticality + 1 :]:
            waiting += queue.length
        return waiting

    def _drains_per_s(self, now: float) -> float:
        return max(self._drain.per_second(now), self._could_per_s)

    @property
    def _could_per_s(self) -> float:
        """How much all workers together could do, by the mean service time (Little's law)."""
        return self._limit.limit / max(self._service.mean_s, 1e-9)

    def offer(self, ticket: Ticket, demand: Demand, now: float) -> Offer[Ticket]:
        """Ask for a worker. STARTED took one; QUEUED will be handed out by a later `grant`.

        The displaced ticket, if any, has left the queue.
        """
        if self._busy < self._limit.limit:
            self._busy += 1
            self._taken[demand.criticality] += 1
            return _STARTED
        if (reason := self.turn_away(demand, now)) is not None:
            return Offer(Admitted.REFUSED, reason)
        offer = self._place_for(demand, now)
        place = _Place(demand, self._cohorts.of(demand.client, now), now)
        queue = self._queues[demand.criticality]
        (queue.add_returned if demand.returning else queue.add)(ticket, place.cohort)
        self._waiting[ticket] = place
        return offer

    def _place_for(self, demand: Demand, now: float) -> Offer[Ticket]:
        """The offer for a call that is not refused."""
        self._note_joining(demand.criticality, now)
        if not self._has_room(demand.criticality):
            return self._in_place_of_another(demand, now)
        if self._door_is_shut(demand, now) and (cohort := self._yields_to(demand, now)) is not None:
            newcomer = self._queues[demand.criticality].take_newcomer(cohort)
            return self._displace(newcomer, _QUEUE_STANDING)
        return _QUEUED

    def _in_place_of_another(self, demand: Demand, now: float) -> Offer[Ticket]:
        """A place that a call has to leave which would be served after the others of its cohort."""
        newest_first = self._serves is Which.NEWEST
        which = Which.OLDEST if newest_first else Which.NEWEST
        if (lower := self._lowest_below(demand.criticality)) is not None:
            return self._displace(lower.take_from_longest(which), Reason.SHED_BY_CRITICALITY)
        queue = self._queues[demand.criticality]
        if (cohort := self._yields_to(demand, now)) is not None:
            return self._displace(queue.take_newcomer(cohort), Reason.QUEUE_FULL)
        reason = _QUEUE_STANDING if newest_first else Reason.FAIR_SHARE
        return self._displace(queue.take_from_longest(which), reason)

    def _displace(self, ticket: Ticket, reason: Reason) -> Offer[Ticket]:
        """The offer that took the place of a ticket, which is off its queue already."""
        self._give_up(ticket)
        self._displaced += 1
        return Offer(Admitted.QUEUED, reason, ticket)

    def _yields_to(self, demand: Demand, now: float) -> int | None:
        """The cohort whose newest newcomer makes room for a call that comes back: its own.

        Another only where that has more waiting, or saying that one comes back would be a way to the places
        of others.
        """
        if not demand.returning:
            return None
        queue = self._queues[demand.criticality]
        own, longest = self._cohorts.of(demand.client, now), queue.longest_cohort
        if queue.newcomers_of(own):
            return own
        if longest is None or not queue.newcomers_of(longest) or queue.longest <= queue.waiting_of(own):
            return None
        return longest

    @property
    def _serves(self) -> Which:
        newest = self._policy.queue_order is QueueOrder.ADAPTIVE_LIFO and self._standing.standing
        return Which.NEWEST if newest else Which.OLDEST

    def _can_displace(self, demand: Demand, now: float) -> bool:
        """Whether a call that waits would have to make room."""
        if self._lowest_below(demand.criticality) is not None or self._yields_to(demand, now) is not None:
            return True
        queue = self._queues[demand.criticality]
        if (longest := queue.longest_cohort) is None:
            return False
        if self._serves is Which.NEWEST and queue.newcomers_of(longest):
            return True
        # One more would still not be as many as the longest: else the two would only change places.
        return queue.longest > queue.waiting_of(self._cohorts.of(demand.client, now)) + 1

    def take_spare(self) -> bool:
        """Take a worker that is free and that nobody waits for; give it back like any other."""
        if self._waiting or self._busy >= self._limit.limit:
            return False
        self._busy += 1
        return True

    def release(self, outcome: LoadSign, held_s: float, now: float) -> None:
        """Give back a worker that was held for so long; ask `grant` who gets it until it says None."""
        self._drain.count(now)
        if outcome is not _IGNORED:
            self._service.observe(held_s)
        self._limit.record(outcome, held_s, self._busy, now)
        self._busy -= 1

    def hand_back(self) -> None:
        """Give back a worker that was not needed; ask `grant` who gets it."""
        self._busy -= 1

    def grant(self, now: float) -> Grant[Ticket] | None:
        """The next ticket, when there is a worker for it: of the highest class, of the cohort whose turn it
        is. While the queue stands it may be one that is shed, of the lowest class."""
        if not self._waiting:
            self._standing.observe(0.0, now)
            return None
        if self._busy >= self._limit.limit:
            return None
        self._standing.observe(now - next(iter(self._waiting.values())).since, now)
        if self._policy.standing_shed is StandingShed.CODEL and self._standing.shed_one(now):
            return self._shed_standing()
        queue = next(queue for queue in reversed(self._queues) if queue.length)
        # What makes it stand is the lowest class that waits; one above it is out of turn for a moment only.
        lowest = next(queue for queue in self._queues if queue.length)
        ticket = queue.take(self._serves if queue is lowest else Which.OLDEST)
        demand = self._forget(ticket).demand
        refusal = self._too_late(demand.deadline, now)
        if refusal is None:
            self._busy += 1
            self._taken[demand.criticality] += 1
        else:
            self._refused[demand.criticality] += 1
        return Grant(ticket, refusal)

    def _shed_standing(self) -> Grant[Ticket]:
        queue = next(queue for queue in self._queues if queue.length)
        ticket = queue.take_from_longest(Which.OLDEST)
        self._give_up(ticket)
        self._standing_shed += 1
        return Grant(ticket, Reason.QUEUE_STANDING)

    def _give_up(self, ticket: Ticket) -> None:
        """A ticket that was taken off its queue gets no worker."""
        self._refused[self._forget(ticket).demand.criticality] += 1

    def _forget(self, ticket: Ticket) -> _Place:
        """A ticket has left its queue."""
        return self._waiting.pop(ticket)

    def _too_late(self, deadline: float | None, now: float) -> Reason | None:
        if deadline is None:
            return None
        if deadline <= now:
            return Reason.DEADLINE_PASSED
        hopeless = self._service_is_known and now + self._service.quantile_s > deadline
        return Reason.DEADLINE_INFEASIBLE if hopeless else None

    def withdraw(self, ticket: Ticket) -> None:
        """Take a waiting ticket off the queue (its caller went away or its deadline passed)."""
        if ticket in self._waiting:
            place = self._forget(ticket)
            self._queues[place.demand.criticality].remove(ticket, place.cohort)

    def _lowest_below(self, criticality: Criticality) -> FairQueue[Ticket] | None:
        for queue in self._queues[:criticality]:
            if queue.length:
                return queue
        return None

    def open_stream(self) -> bool:
        """Count one more streaming call, unless there are too many."""
        if self._streams >= self._policy.max_streams:
            return False
        self._streams += 1
        return True

    def close_stream(self) -> None:
        """A streaming call ended."""
        self._streams -= 1

    def drain_per_second(self, now: float) -> float:
        """How many attempts end per second."""
        return self._drain.per_second(now)

    def pushback_s(self, now: float, rng: Random) -> float:
        """When a refused caller should return, in seconds; negative for not at all (see `Turns.book`)."""
        could_per_s = self._could_per_s if self._service_is_known else 0.0
        rate = believed_per_s(self._drain.per_second(now), could_per_s)
        return self._turns.book(len(self._waiting), rate, now, rng)

    def stream_pushback_s(self, rng: Random) -> float:
        """When a refused streaming call should return; how long the others will last, nobody can know."""
        return unknown_pushback_s(rng)


def _shares(policy: AdmissionPolicy) -> tuple[float, ...]:
    """How much of the queue may be filled when a call of each class still joins it, lowest class first."""
    return (policy.sheddable_share, policy.sheddable_plus_share, 1.0, 1.0)
