"""What is known of a call before it comes: where its method's calls go, and by which rules."""

from collections.abc import Sequence

from relay_service.core.admission import Demand
from relay_service.core.evidence import Safety
from relay_service.core.lane import Lane
from relay_service.core.policy import MethodPolicy
from relay_service.core.value import value
from relay_service.destination import Destination
from relay_service.forwarding import Plan
from relay_service.methods import MethodFacts
from relay_service.ports import Headers

WAYS_MAX = 1_000
"""Methods whose way is remembered; callers may invent their names."""


@value
class Course:
    """Where a call goes: first to the first of both, then, while nothing was executed, to the others."""

    lanes: Sequence[Lane]
    destinations: tuple[Destination, ...]
    fell_back: bool
    """Whether it has left its own upstream before it began."""

    @property
    def lane(self) -> Lane:
        """What judges the first attempts."""
        return self.lanes[0]

    @property
    def later_lanes(self) -> Sequence[Lane]:
        """What judges those that follow elsewhere."""
        return self.lanes[1:]

    def plan(
        self, method: str, metadata: Headers, policy: MethodPolicy, deadline: float | None, demand: Demand
    ) -> Plan:
        """The plan of a call on this course."""
        first, *later = self.destinations
        hedge_port = None if self.fell_back else first.hedge_port
        return Plan(method, metadata, first.port, policy, deadline, demand, first, hedge_port, tuple(later))


@value
class Way:
    """What holds for every call of one method, under one policy."""

    upstream: str
    policy: MethodPolicy
    facts: MethodFacts | None
    """What the upstream's descriptors said when this was made."""
    safety: Safety
    unary: bool
    only_course: Course | None
    """Where every call goes; None when that depends on the call or on the moment."""

    @property
    def is_known(self) -> bool:
        """Whether anybody has said how many messages go each way."""
        return self.facts is not None or self.policy.unary is not None


class Ways:
    """The ways of the methods that were called lately, `WAYS_MAX` at most."""

    __slots__ = ("_by_method",)

    def __init__(self) -> None:
        self._by_method: dict[str, Way] = {}

    def get(self, method: str) -> Way | None:
        """The way of ``package.Service/Method``, if it is remembered."""
        return self._by_method.get(method)

    def remember(self, method: str, way: Way) -> None:
        """Keep it for the calls that follow."""
        if len(self._by_method) >= WAYS_MAX:
            self._by_method.clear()  # made-up names came in between; the real ones are soon here again
        self._by_method[method] = way
