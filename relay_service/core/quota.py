"""How many calls each client may make: one token bucket for each.

Clients are told apart by the name they give, which anybody can make up. So the table of buckets is bounded:
when it is full, the bucket used longest ago makes room if it has refilled meanwhile (a new one would be
the same, so nothing is forgotten), and else the newcomer shares one bucket with all others that found no
room. Made-up names thus cost no memory, and cannot be used to get a fresh bucket in the place of a spent one.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from relay_service.core.policy import ClientQuota, ClientsPolicy

CLIENTS_MAX = 10_000
"""Clients without a quota of their own that have a bucket at once."""


@dataclass(frozen=True, slots=True)
class QuotaView:
    """One quota of the policy, for people and dashboards."""

    client: str
    """The client it is for; empty for that of all clients not named."""
    clients: int
    """Buckets there are now."""
    granted: int
    refused: int
    overflowed: int = 0
    """Calls that were counted in the shared bucket."""


class _Count:
    __slots__ = ("granted", "overflowed", "refused")

    def __init__(self) -> None:
        self.granted = 0
        self.refused = 0
        self.overflowed = 0


class _Bucket:
    __slots__ = ("_at", "_quota", "_tokens")

    def __init__(self, quota: ClientQuota, now: float) -> None:
        self._quota = quota
        self._tokens = quota.burst
        self._at = now

    def fill(self, now: float) -> float:
        """The tokens there are now."""
        quota = self._quota
        self._tokens = min(quota.burst, self._tokens + max(0.0, now - self._at) * quota.rate_per_s)
        self._at = max(self._at, now)
        return self._tokens

    def is_full(self, now: float) -> bool:
        return self.fill(now) >= self._quota.burst

    def take(self, now: float) -> float:
        """Take a token and say 0, or say in how many seconds there will be one."""
        if self.fill(now) < 1.0:
            return (1.0 - self._tokens) / self._quota.rate_per_s
        self._tokens -= 1.0
        return 0.0


class ClientQuotas:
    """The buckets of all clients. Each operation is O(1), whatever the number of clients."""

    __slots__ = ("_count", "_counts", "_known", "_named", "_overflow", "_policy")

    def __init__(self, policy: ClientsPolicy, now: float) -> None:
        self._policy = policy
        self._named = {name.encode(): _Bucket(quota, now) for name, quota in policy.named.items()}
        self._counts = {name: _Count() for name in self._named}
        self._known: OrderedDict[bytes, _Bucket] = OrderedDict()
        default = policy.default
        self._overflow = None if default is None else _Bucket(default, now)
        self._count = _Count()

    def take(self, client: bytes, now: float) -> float:
        """Count one call of a client: 0 when it may go on, else in how many seconds it might."""
        bucket = self._bucket(client, now)
        if bucket is None:
            return 0.0
        wait_s = bucket.take(now)
        count = self._counts.get(client, self._count)
        if wait_s > 0.0:
            count.refused += 1
        else:
            count.granted += 1
        if bucket is self._overflow:
            count.overflowed += 1
        return wait_s

    def _bucket(self, client: bytes, now: float) -> _Bucket | None:
        default = self._policy.default
        if (bucket := self._named.get(client)) is not None or default is None:
            return bucket
        known = self._known
        if (bucket := known.get(client)) is not None:
            known.move_to_end(client)
            return bucket
        if len(known) >= CLIENTS_MAX:
            if not next(iter(known.values())).is_full(now):
                return self._overflow
            known.popitem(last=False)
        bucket = known[client] = _Bucket(default, now)
        return bucket

    def views(self) -> Iterator[QuotaView]:
        """Every quota of the policy."""
        for name, count in self._counts.items():
            yield QuotaView(name.decode(), 1, count.granted, count.refused)
        if self._policy.default is not None:
            count = self._count
            yield QuotaView("", len(self._known), count.granted, count.refused, count.overflowed)
