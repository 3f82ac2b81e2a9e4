"""Which of a few groups a client waits in: fairness between clients without a list of them.

Clients are hashed into a fixed number of cohorts, so memory is bounded whatever names are made up (shuffle
of stochastic fair queueing, McKenney, 1990). Two clients share a cohort once in `COHORTS` times, and
not for long: the hash is salted, and the salt changes with time.
"""

from hashlib import blake2b

COHORTS = 64
"""More tell clients better apart; how much is kept for each class grows with them."""
RESHUFFLE_S = 20.0
"""For so long two clients that share a cohort go on sharing it."""


class Cohorts:
    """Tells clients' cohorts. ``secret`` (at most 64 bytes) keeps callers from choosing their neighbours."""

    __slots__ = ("_last", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._last: tuple[bytes, int | None, int] = (b"", None, 0)
        """Client, period and cohort asked for last: in a flood it is asked for again and again."""

    def of(self, client: bytes, now: float) -> int:
        """The cohort of a client, from 0 to `COHORTS` - 1, until the next reshuffle."""
        period = int(now / RESHUFFLE_S)
        last_client, last_period, cohort = self._last
        if period != last_period or client != last_client:
            salt = period.to_bytes(8, "big", signed=True)
            digest = blake2b(client, digest_size=4, key=self._secret, salt=salt)
            cohort = int.from_bytes(digest.digest(), "big") % COHORTS
            self._last = client, period, cohort
        return cohort
