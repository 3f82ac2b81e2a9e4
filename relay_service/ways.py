"""What is known of a method's calls before they come: where they go, and by which rules."""

from relay_service.core.evidence import Safety
from relay_service.core.policy import MethodPolicy
from relay_service.core.value import value
from relay_service.courses import Course
from relay_service.methods import MethodFacts

WAYS_MAX = 1_000
"""Methods whose way is remembered; callers may invent their names."""


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

    def __len__(self) -> int:
        return len(self._by_method)

    def get(self, method: str) -> Way | None:
        """The way of ``package.Service/Method``, if it is remembered."""
        return self._by_method.get(method)

    def remember(self, method: str, way: Way) -> None:
        """Keep it for the calls that follow."""
        if len(self._by_method) >= WAYS_MAX:
            self._by_method.clear()  # made-up names came in between; the real ones are soon here again
        self._by_method[method] = way
