"""Which breaker judges which calls."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from relay_service.core.breaker import BreakerStatus, CircuitBreaker
from relay_service.core.policy import RelayPolicy


@dataclass(frozen=True, slots=True)
class BreakerView:
    """One breaker, what it guards, and how it stands."""

    upstream: str
    methods: str
    """``package.Service/Method`` or ``package.Service`` when only these; empty for all that have no own."""
    status: BreakerStatus


class Breakers:
    """All breakers of a relay: one for each upstream and pattern of `RelayPolicy.breakers` that can meet.

    They are made once, so no stream of made-up method names can make them grow.
    """

    __slots__ = ("_by_upstream",)

    def __init__(self, policy: RelayPolicy, now: float) -> None:
        by_upstream: dict[str, dict[str, CircuitBreaker]] = {name: {} for name in policy.upstreams}
        for pattern, breaker in policy.breakers.items():
            for upstream in policy.upstreams_of(pattern):
                by_upstream[upstream][pattern] = CircuitBreaker(breaker, now)
        self._by_upstream: Mapping[str, Mapping[str, CircuitBreaker]] = by_upstream

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
