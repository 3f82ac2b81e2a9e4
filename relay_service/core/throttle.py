"""Asking less of an upstream that refuses most of what it is asked.

A refusal costs the upstream too. When refusing is a good part of serving, an upstream that is asked for
several times what it can do spends itself on refusals. So whoever asks watches how much is accepted, and
refuses the rest itself, with the probability

    max(0, (requests - K x accepts) / (requests + 1))

over a sliding window, where ``requests`` are the attempts that were made and those that were not let through,
and ``accepts`` those that the upstream took. In the long run it is asked for K times what it accepts: with a
high K it pays for more refusals and is found well again sooner; with a low one, the other way round.

An attempt counts when it has ended, and only with an answer: attempts under way, lost ones and those whose
caller left say nothing about what the upstream accepts. The probability stays below one (``max_rejection``),
so some attempts always go through: what the upstream takes again is seen, and within a window or two all is
let through. There is no state to be stuck in.

Source: Site Reliability Engineering (2016), ch. 21, "Client-Side Throttling", which keeps the account
per criticality, as is done here: an upstream that sheds the lower classes does not cost the higher ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from relay_service.core.criticality import Criticality
from relay_service.core.evidence import Delivery
from relay_service.core.outcomes import OutcomeWindow
from relay_service.core.policy import ThrottlePolicy
from relay_service.core.status import Code

REJECTIONS = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE})
"""Answers by which an upstream says that it does not take the call."""

PUSHBACK_MIN_S = 0.01


@dataclass(frozen=True, slots=True)
class ThrottleState:
    """For people and dashboards. The counter runs from the start of the process."""

    requests: int
    """In the window: attempts that were answered, and those that were not let through."""
    accepts: int
    """Of these, what the upstream took."""
    rejection: float
    """The probability with which the next attempt is not let through."""
    refused: int
    """Attempts that were not let through."""


class AdaptiveThrottle:
    """The account of one upstream and one class of calls. All operations are O(1)."""

    __slots__ = ("_policy", "_refused", "_window")

    def __init__(self, policy: ThrottlePolicy, now: float) -> None:
        self._policy = policy
        self._window = OutcomeWindow(policy.window_s, now)
        self._refused = 0

    def refuses(self, now: float, rng: Random) -> bool:
        """Whether this attempt is not let through; to be asked once for each."""
        rejection = self._rejection(now)
        if rejection == 0.0 or rng.random() >= rejection:
            return False
        self._window.count(now, failed=True, slow=False)
        self._refused += 1
        return True

    def ended(self, delivery: Delivery, code: Code, now: float) -> None:
        """An attempt ended."""
        if delivery is Delivery.ANSWERED:
            self._window.count(now, failed=code in REJECTIONS, slow=False)

    def pushback_s(self, now: float, rng: Random) -> float:
        """When a refused caller should return: the sooner, the less is refused; spread by a half each way."""
        return max(PUSHBACK_MIN_S, self._rejection(now) * self._policy.window_s * rng.uniform(0.5, 1.5))

    def state(self, now: float) -> ThrottleState:
        """The account as it stands."""
        rejection = self._rejection(now)
        requests = self._window.calls
        return ThrottleState(requests, requests - self._window.failures, rejection, self._refused)

    def _rejection(self, now: float) -> float:
        window, policy = self._window, self._policy
        window.slide(now)
        requests = window.calls
        if requests < policy.min_calls:
            return 0.0
        excess = requests - policy.k * (requests - window.failures)
        return min(policy.max_rejection, max(0.0, excess / (requests + 1)))


class Throttles:
    """The accounts of one upstream, one for each class."""

    __slots__ = ("_by_class", "policy")

    def __init__(self, policy: ThrottlePolicy, now: float) -> None:
        self.policy = policy
        """What they are kept by."""
        self._by_class = tuple(AdaptiveThrottle(policy, now) for _ in Criticality)

    def of(self, criticality: Criticality) -> AdaptiveThrottle:
        """The account of a class."""
        return self._by_class[criticality]

    def states(self, now: float) -> Mapping[Criticality, ThrottleState]:
        """All accounts, by class."""
        return {criticality: self._by_class[criticality].state(now) for criticality in Criticality}
