"""The waiting calls of one class, served fairly over the cohorts of their clients.

Cohorts take turns, one call each (deficit round robin where every call costs the same; Shreedhar and
Varghese, 1995): a client that sends a thousand calls waits behind its own, and not others behind them.
Within a cohort the calls that come back, as they were told to, go before the newcomers and are the last to
be shed: they were promised a turn.
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


class _Cohort(Generic[Ticket]):
    """The calls of one cohort that wait, each kind in the order of arrival."""

    __slots__ = ("newcomers", "returned")

    def __init__(self) -> None:
        self.newcomers: OrderedDict[Ticket, None] = OrderedDict()
        self.returned: OrderedDict[Ticket, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.newcomers) + len(self.returned)


class FairQueue(Generic[Ticket]):
    """Tickets by cohort. All operations are O(1), whatever the number of tickets and cohorts.

    State: the cohorts that wait, in the order of their turns, and the same cohorts by how many tickets
    each has, so that the longest is always known.
    """

    __slots__ = ("_by_length", "_cohorts", "_longest", "length")

    def __init__(self) -> None:
        self._cohorts: OrderedDict[int, _Cohort[Ticket]] = OrderedDict()
        self._by_length: dict[int, set[int]] = {}
        self._longest = 0
        self.length = 0
        """How many wait; to be read only. An attribute, as every refusal of a flood reads several."""

    @property
    def longest(self) -> int:
        """How many tickets the cohort with the most has."""
        return self._longest

    @property
    def longest_cohort(self) -> int | None:
        """A cohort that has so many; None when nobody waits."""
        return next(iter(self._by_length[self._longest])) if self.length else None

    def waiting_of(self, cohort: int) -> int:
        """How many tickets a cohort has."""
        waiting = self._cohorts.get(cohort)
        return 0 if waiting is None else len(waiting)

    def newcomers_of(self, cohort: int) -> int:
        """How many of them had not been here before."""
        waiting = self._cohorts.get(cohort)
        return 0 if waiting is None else len(waiting.newcomers)

    def ahead_of_newcomer(self, cohort: int) -> int:
        """How many tickets at most would be taken before one that the cohort added now."""
        return min(self.length, (self.waiting_of(cohort) + 1) * len(self._cohorts))

    def ahead_of_returned(self, cohort: int) -> int:
        """The same for one that comes back."""
        before = self.waiting_of(cohort) - self.newcomers_of(cohort)
        return min(self.length, (before + 1) * len(self._cohorts))

    def add(self, ticket: Ticket, cohort: int) -> None:
        """Let a ticket wait, as its cohort's newest newcomer."""
        waiting = self._waiting_in(cohort)
        waiting.newcomers[ticket] = None
        self._resized(cohort, len(waiting) - 1, len(waiting))

    def add_returned(self, ticket: Ticket, cohort: int) -> None:
        """Let a ticket wait that comes back, before the newcomers of its cohort."""
        waiting = self._waiting_in(cohort)
        waiting.returned[ticket] = None
        self._resized(cohort, len(waiting) - 1, len(waiting))

    def _waiting_in(self, cohort: int) -> _Cohort[Ticket]:
        waiting = self._cohorts.get(cohort)
        if waiting is None:
            waiting = self._cohorts[cohort] = _Cohort()
        return waiting

    def take(self, which: Which) -> Ticket:
        """Remove the ticket whose turn it is; there must be one. ``which`` chooses among newcomers: those
        who come back are served in the order in which they did."""
        cohort = next(iter(self._cohorts))
        self._cohorts.move_to_end(cohort)
        waiting = self._cohorts[cohort]
        if waiting.returned:
            return self._take_from(cohort, waiting.returned, Which.OLDEST)
        return self._take_from(cohort, waiting.newcomers, which)

    def take_from_longest(self, which: Which) -> Ticket:
        """Remove a ticket of the cohort that has most, to be shed; there must be one. One that came back goes
        only when the cohort has no newcomer: the last in its order."""
        cohort = next(iter(self._by_length[self._longest]))
        waiting = self._cohorts[cohort]
        if waiting.newcomers:
            return self._take_from(cohort, waiting.newcomers, which)
        return self._take_from(cohort, waiting.returned, Which.NEWEST)

    def take_newcomer(self, cohort: int) -> Ticket:
        """Remove the cohort's newest newcomer; there must be one."""
        return self._take_from(cohort, self._cohorts[cohort].newcomers, Which.NEWEST)

    def remove(self, ticket: Ticket, cohort: int) -> None:
        """Remove a ticket that waits."""
        waiting = self._cohorts[cohort]
        del (waiting.newcomers if ticket in waiting.newcomers else waiting.returned)[ticket]
        self._resized(cohort, len(waiting) + 1, len(waiting))

    def _take_from(self, cohort: int, tickets: OrderedDict[Ticket, None], which: Which) -> Ticket:
        ticket, _ = tickets.popitem(last=which is Which.NEWEST)
        left = len(self._cohorts[cohort])
        self._resized(cohort, left + 1, left)
        return ticket

    def _resized(self, cohort: int, before: int, after: int) -> None:
        self.length += after - before
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
