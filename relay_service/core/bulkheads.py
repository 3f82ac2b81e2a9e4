"""Which calls have workers, a queue and streams of their own, so that they sink alone.

One pool for all is lost to whoever holds it longest: an upstream that hangs keeps every worker busy and fills
the queue, and calls to upstreams that are well are refused for it. A compartment is an admission of its own;
so its limit learns from its calls only, its queue drains at its own rate, and what it refuses it refuses for
its own sake.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic

from relay_service.core.admission import Admission, Ticket
from relay_service.core.policy import AdmissionPolicy, RelayPolicy

Known = Mapping[str, Mapping[str, Admission[Ticket]]]
"""Compartments by upstream and pattern."""


@dataclass(frozen=True, slots=True)
class Bulkhead(Generic[Ticket]):
    """One compartment: whose calls are in it, and what judges them."""

    upstream: str
    methods: str
    """``package.Service/Method`` or ``package.Service`` when only these; empty for all that have no own."""
    admission: Admission[Ticket]


class Bulkheads(Generic[Ticket]):
    """All compartments of a relay: one for each upstream that has one, and for each upstream and pattern of
    methods that can meet.

    They are made once for a policy, so no stream of made-up method names can make them grow. What waits in a
    compartment that another policy takes away is served there to its end.
    """

    __slots__ = ("_by_upstream",)

    def __init__(
        self,
        policy: RelayPolicy,
        now: float,
        secret: bytes,
        known: Known[Ticket] = MappingProxyType({}),
    ) -> None:
        """``known`` are the compartments of the same upstreams until now, by upstream and pattern: they go
        on with what they have learned, under the new limits."""
        self._by_upstream: dict[str, dict[str, Admission[Ticket]]] = {}
        for (upstream, pattern), limits in _wanted(policy).items():
            kept = known.get(upstream, {}).get(pattern)
            if kept is None:
                kept = Admission(limits, now, secret, subject_of(upstream, pattern))
            elif kept.policy != limits:
                kept.adopt(limits, now)
            self._by_upstream.setdefault(upstream, {})[pattern] = kept

    def of(self, upstreams: Iterable[str]) -> Known[Ticket]:
        """Those of some upstreams, by upstream and pattern."""
        return {name: self._by_upstream[name] for name in upstreams if name in self._by_upstream}

    def holding(self, upstream: str, full_method: str) -> Admission[Ticket] | None:
        """What judges a call to ``package.Service/Method``: the longest match; None when it has no
        compartment of its own."""
        own = self._by_upstream.get(upstream)
        if own is None:
            return None
        return own.get(full_method) or own.get(full_method.rpartition("/")[0]) or own.get("")

    def of_upstream(self, upstream: str) -> list[Bulkhead[Ticket]]:
        """The compartments of one upstream, its own first."""
        return [
            Bulkhead(upstream, pattern, admission)
            for pattern, admission in sorted(self._by_upstream.get(upstream, {}).items())
        ]

    def __iter__(self) -> Iterator[Bulkhead[Ticket]]:
        """Every compartment, those of one upstream together."""
        for upstream in self._by_upstream:
            yield from self.of_upstream(upstream)


def subject_of(upstream: str, pattern: str) -> str:
    """A compartment as refusals name it."""
    return f"bulkhead:{upstream} {pattern}" if pattern else f"bulkhead:{upstream}"


def _wanted(policy: RelayPolicy) -> dict[tuple[str, str], AdmissionPolicy]:
    """The limits of each compartment, by upstream and pattern."""
    asked = policy.bulkheads
    wanted = {(name, ""): limits for name, limits in asked.upstreams.items()}
    for pattern, limits in asked.methods.items():
        wanted |= {(name, pattern): limits for name in policy.upstreams_of(pattern)}
    return wanted


def admissions_of(policy: RelayPolicy) -> Iterator[AdmissionPolicy]:
    """The limits of everything that takes calls on: what all share, and each compartment."""
    yield policy.admission
    yield from _wanted(policy).values()
