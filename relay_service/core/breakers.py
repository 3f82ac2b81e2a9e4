"""Which breaker judges which calls."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from relay_service.core.breaker import BreakerStatus, CircuitBreaker
from relay_service.core.policy import RelayPolicy

Known = Mapping[str, Mapping[str, CircuitBreaker]]
"""Breakers by upstream and pattern."""


@dataclass(frozen=True, slots=True)
class BreakerView:
    """One breaker, what it guards, and how it stands."""

    upstream: str
    methods: str
    """``package.Service/Method`` or ``package.Service`` when only these; empty for all that have no own."""
    status: BreakerStatus


class Breakers:
    """All breakers of a relay: one for each upstream and pattern of `RelayPolicy.breakers` that can meet.

    They are made once for a policy, so no stream of made-up method names can make them grow.
    """

    __slots__ = ("_by_upstream",)

    def __init__(self, policy: RelayPolicy, now: float, known: Known = MappingProxyType({})) -> None:
        """``known`` are the breakers that have judged the same upstreams until now: those whose policy
        has not changed go on as they stand."""
        by_upstream: dict[str, dict[str, CircuitBreaker]] = {name: {} for name in policy.upstreams}
        for pattern, breaker in policy.breakers.items():
            for upstream in policy.upstreams_of(pattern):
                old = known.get(upstream, {}).get(pattern)
                kept = old if old is not None and old.policy == breaker else None
                by_upstream[upstream][pattern] = kept or CircuitBreaker(breaker, now)
        self._by_upstream: Known = by_upstream

    def of(self, upstreams: Iterable[str]) -> Known:
        """Those of some upstreams, by upstream and pattern."""
        return {name: self._by_upstream[name] for name in upstreams}

    def guarding(self, upstream: str, full_method: str) -> CircuitBreaker | None:
        """The breaker of a call to ``package.Service/Method``: the longest match; None when it has none."""
        breakers = self._by_upstream[upstream]
        if not breakers:
            return None
        return breakers.get(full_method) or breakers.get(full_method.rpartition("/")[0]) or breakers.get("")

    def of_upstream(self, upstream: str, now: float) -> list[BreakerView]:
        """The breakers of one upstream, its own first."""
        breakers = self._by_upstream[upstream]
        return [BreakerView(upstream, pattern, breakers[pattern].status(now)) for pattern in sorted(breakers)]

    def views(self, now: float) -> Iterator[BreakerView]:
        """Every breaker, those of one upstream together."""
        for upstream in self._by_upstream:
            yield from self.of_upstream(upstream, now)
