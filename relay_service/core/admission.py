"""Who gets a worker now, who waits, and who is refused.

A worker is the right to have one attempt under way. Work waits in one bounded queue, first in first
out; it is refused only when every worker is busy and the queue is full. What is refused is told when
to come back, computed from how fast the queue has been draining.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum
from random import Random
from typing import Generic, TypeVar

from relay_service.core.policy import AdmissionPolicy

RATE_TIME_CONSTANT_S = 1.0
"""How far back the drain rate looks: older departures weigh 1/e less each second."""

PUSHBACK_MIN_S = 0.01
PUSHBACK_MAX_S = 10.0
PUSHBACK_UNKNOWN_S = 1.0
"""What is told while nothing has left yet; all three before the jitter."""


Ticket = TypeVar("Ticket", bound=Hashable)


class Admitted(Enum):
    """What became of an offer."""

    STARTED = "started"
    QUEUED = "queued"
    REFUSED = "refused"


class DrainRate:
    """Departures per second, exponentially weighted over `RATE_TIME_CONSTANT_S`."""

    __slots__ = ("_at", "_weight")

    def __init__(self, now: float) -> None:
        self._weight = 0.0
        self._at = now

    def count(self, now: float) -> None:
        """One more left."""
        self._decay(now)
        self._weight += 1.0

    def per_second(self, now: float) -> float:
        """The rate now."""
        self._decay(now)
        return self._weight / RATE_TIME_CONSTANT_S

    def _decay(self, now: float) -> None:
        elapsed_s = max(0.0, now - self._at)
        self._weight *= math.exp(-elapsed_s / RATE_TIME_CONSTANT_S)
        self._at = now


class Admission(Generic[Ticket]):
    """The bounded queue, the workers, and the separate limit of streaming calls.

    A ticket is any hashable thing that stands for the waiting work; the same ticket may not be offered
    twice at once. All operations are O(1), whatever the queue's length.
    """

    __slots__ = ("_busy", "_drain", "_policy", "_queue", "_streams")

    def __init__(self, policy: AdmissionPolicy, now: float) -> None:
        self._policy = policy
        self._queue: OrderedDict[Ticket, None] = OrderedDict()
        self._busy = 0
        self._streams = 0
        self._drain = DrainRate(now)

    @property
    def policy(self) -> AdmissionPolicy:
        """The limits."""
        return self._policy

    @property
    def queued(self) -> int:
        """Work that waits."""
        return len(self._queue)

    @property
    def busy(self) -> int:
        """Workers that are taken."""
        return self._busy

    @property
    def streams(self) -> int:
        """Streaming calls that are open."""
        return self._streams

    @property
    def full(self) -> bool:
        """Whether an offer made now would be refused."""
        return self._busy >= self._policy.workers and len(self._queue) >= self._policy.queue_capacity

    def offer(self, ticket: Ticket) -> Admitted:
        """Ask for a worker. STARTED took one; QUEUED will be handed out by a later `release`."""
        if self._busy < self._policy.workers:
            self._busy += 1
            return Admitted.STARTED
        if self.full:
            return Admitted.REFUSED
        self._queue[ticket] = None
        return Admitted.QUEUED

    def release(self, now: float) -> Ticket | None:
        """Give a worker back; it goes at once to the ticket that waited longest, which is returned."""
        self._drain.count(now)
        return self.hand_on()

    def hand_on(self) -> Ticket | None:
        """The worker just handed out is not needed: it goes to the next ticket, or becomes free."""
        if self._queue:
            return self._queue.popitem(last=False)[0]
        self._busy -= 1
        return None

    def withdraw(self, ticket: Ticket) -> None:
        """Take a waiting ticket off the queue (its caller went away or its deadline passed)."""
        self._queue.pop(ticket, None)

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
        """When a refused caller should return: the time the queue needs to empty, times 0.5 to 1.5."""
        rate = self._drain.per_second(now)
        drained_in_s = (len(self._queue) + 1) / rate if rate > 0.0 else PUSHBACK_UNKNOWN_S
        return min(PUSHBACK_MAX_S, max(PUSHBACK_MIN_S, drained_in_s)) * rng.uniform(0.5, 1.5)

    def stream_pushback_s(self, rng: Random) -> float:
        """When a refused streaming call should return; how long the others will last, nobody can know."""
        return PUSHBACK_UNKNOWN_S * rng.uniform(0.5, 1.5)
