"""The waiting calls of one class, served fairly over the cohorts of their clients.

Cohorts take turns, one call each (deficit round robin where every call costs the same; Shreedhar and
Varghese, 1995): a client that sends a thousand calls waits behind its own, and not others behind them.
"""

from collections import OrderedDict
from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)


class Which(Enum):
    """Which of a cohort's calls is meant."""

    OLDEST = "oldest"
    NEWEST = "newest"


class FairQueue(Generic[Ticket]):
    """Tickets by cohort. All operations are O(1), whatever the number of tickets and cohorts.

    State: the cohorts that wait, in the order of their turns, and the same cohorts by how many tickets
    each has, so that the longest is always known.
    """

    __slots__ = ("_by_length", "_cohorts", "_length", "_longest")

    def __init__(self) -> None:
        self._cohorts: OrderedDict[int, OrderedDict[Ticket, None]] = OrderedDict()
        self._by_length: dict[int, set[int]] = {}
        self._longest = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def longest(self) -> int:
        """How many tickets the cohort with the most has."""
        return self._longest

    def waiting_of(self, cohort: int) -> int:
        """How many tickets a cohort has."""
        tickets = self._cohorts.get(cohort)
        return len(tickets) if tickets else 0

    def ahead_of_next(self, cohort: int) -> int:
        """How many tickets at most would be taken before one that the cohort added now."""
        return min(self._length, (self.waiting_of(cohort) + 1) * len(self._cohorts))

    def add(self, ticket: Ticket, cohort: int) -> None:
        """Let a ticket wait, as its cohort's newest."""
        tickets = self._cohorts.get(cohort)
        if tickets is None:
            tickets = self._cohorts[cohort] = OrderedDict()
        tickets[ticket] = None
        self._resized(cohort, len(tickets) - 1, len(tickets))

    def take(self, which: Which) -> Ticket:
        """Remove the ticket whose turn it is; there must be one."""
        cohort = next(iter(self._cohorts))
        self._cohorts.move_to_end(cohort)
        return self._take_from(cohort, which)

    def take_from_longest(self, which: Which) -> Ticket:
        """Remove a ticket of the cohort that has most; there must be one."""
        return self._take_from(next(iter(self._by_length[self._longest])), which)

    def remove(self, ticket: Ticket, cohort: int) -> None:
        """Remove a ticket that waits."""
        tickets = self._cohorts[cohort]
        del tickets[ticket]
        self._resized(cohort, len(tickets) + 1, len(tickets))

    def _take_from(self, cohort: int, which: Which) -> Ticket:
        tickets = self._cohorts[cohort]
        ticket, _ = tickets.popitem(last=which is Which.NEWEST)
        self._resized(cohort, len(tickets) + 1, len(tickets))
        return ticket

    def _resized(self, cohort: int, before: int, after: int) -> None:
        self._length += after - before
        if before:
            peers = self._by_length[before]
            peers.remove(cohort)
            if not peers:
                del self._by_length[before]
        if after:
            self._by_length.setdefault(after, set()).add(cohort)
        else:
            del self._cohorts[cohort]
        # A cohort that shrank has one less now, so the most is found again without looking for it.
        if after > self._longest or (before == self._longest and before not in self._by_length):
            self._longest = after
