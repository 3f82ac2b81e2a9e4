"""When those who are refused should return: each is given a turn of their own.

A spike's callers who all returned when the queue is empty would be refused again. So each refusal books the
next free turn, at the rate at which the work is done, and its caller is told when that is.
"""

from random import Random

PUSHBACK_MIN_S = 0.01
PUSHBACK_MAX_S = 10.0
PUSHBACK_UNKNOWN_S = 1.0
"""What is told while nothing has left yet; all three before the jitter."""
TURN_SLACK = 1.2
"""Turns are so much longer than a piece of work takes: who is told does not come back evenly spaced."""
OPTIMISM_MAX = 3.0
"""A queue is taken to drain at most so many times as fast as it was seen to."""
DO_NOT_RETURN = -1.0


def believed_per_s(drained_per_s: float, could_per_s: float) -> float:
    """How fast the next turns come, from how fast the queue drained and how fast its workers could be.

    What left before a spike says how much was asked for, and not how much can be done. What could be done
    is believed within bounds, as attempts that fail at once look like plenty; it is 0 where it is not known.
    """
    return max(drained_per_s, min(could_per_s, OPTIMISM_MAX * drained_per_s))


def unknown_pushback_s(rng: Random) -> float:
    """When to return where nothing says how long the others will take, in seconds."""
    return PUSHBACK_UNKNOWN_S * rng.uniform(0.5, 1.5)


class Turns:
    """The turns that are booked."""

    __slots__ = ("_told_until",)

    def __init__(self, now: float) -> None:
        self._told_until = now

    def book(self, waiting: int, per_second: float, now: float, rng: Random) -> float:
        """The next free turn, in seconds from now: once those who wait are served, and those told before.

        Jittered by 0.75 to 1.25. Where every turn of the next `PUSHBACK_MAX_S` is booked the answer is
        negative: not to come back, rather than to come back for a turn that is another's.
        """
        if per_second <= 0.0:
            return unknown_pushback_s(rng)
        turn_s = TURN_SLACK / per_second
        emptied_at = now + (waiting + 1) * turn_s
        # A queue that takes longer than that to drain says little of when it will be empty.
        horizon = now + PUSHBACK_MAX_S
        booked = max(self._told_until + turn_s, min(emptied_at, horizon))
        if booked > horizon:
            return DO_NOT_RETURN
        self._told_until = booked
        return max(PUSHBACK_MIN_S, booked - now) * rng.uniform(0.75, 1.25)
