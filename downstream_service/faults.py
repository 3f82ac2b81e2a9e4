"""The fault plan: which faults strike a call. Pure: no clock, no I/O, one seeded generator."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

LATENCY_MAX_S: Final = 3600.0


class Moment(Enum):
    """When a fault bites, seen from the effect."""

    BEFORE_EFFECT = "before"
    AFTER_EFFECT = "after"


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same latency."""

    latency_s: float

    def sample_s(self, rng: random.Random) -> float:  # noqa: ARG002 (one signature for all distributions)
        """Return the latency in seconds."""
        return self.latency_s


@dataclass(frozen=True, slots=True)
class Uniform:
    """Anything from ``min_s`` to ``max_s``, equally likely."""

    min_s: float
    max_s: float

    def sample_s(self, rng: random.Random) -> float:
        """Draw one latency in seconds."""
        return rng.uniform(self.min_s, self.max_s)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """The long tail of real services: half the draws below ``median_s``, a few far above."""

    median_s: float
    sigma: float

    def sample_s(self, rng: random.Random) -> float:
        """Draw one latency in seconds, at most ``LATENCY_MAX_S``."""
        exponent = rng.gauss(0.0, self.sigma)
        # exp() overflows beyond 709; any such draw is over the cap anyway.
        return min(LATENCY_MAX_S, self.median_s * math.exp(min(exponent, 700.0)))


@dataclass(frozen=True, slots=True)
class Exponential:
    """Memoryless waiting with this mean."""

    mean_s: float

    def sample_s(self, rng: random.Random) -> float:
        """Draw one latency in seconds, at most ``LATENCY_MAX_S``."""
        # 1 - random() is in (0, 1], so the logarithm is always defined.
        return min(LATENCY_MAX_S, -self.mean_s * math.log(1.0 - rng.random()))


Distribution = Fixed | Uniform | LogNormal | Exponential


@dataclass(frozen=True, slots=True)
class Failure:
    """Answer with ``code`` (a google.rpc.Code) instead of the result."""

    code: int
    message: str
    moment: Moment
    retry_pushback_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Wait before the effect."""

    distribution: Distribution


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer."""

    moment: Moment


@dataclass(frozen=True, slots=True)
class Crash:
    """End the process at once."""

    moment: Moment


Ending = Failure | Hang | Crash


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong, checked: the names and bounds are those of ``downstream.v1.Fault``.

    ``methods`` empty means every method; ``max_strikes`` 0 means no limit.
    """

    name: str
    kind: Failure | Latency | Hang | Crash
    probability: float = 1.0
    methods: frozenset[str] = frozenset()
    max_strikes: int = 0


@dataclass(frozen=True, slots=True)
class Strike:
    """What happens to one call: wait ``latency_s``, then meet ``ending`` at its moment, if there is one."""

    names: tuple[str, ...] = ()
    latency_s: float = 0.0
    ending: Ending | None = None


UNHARMED: Final = Strike()


class FaultPlan:
    """Draws for every call what strikes it; the same seed and order of calls give the same draws.

    Mutable state: the generator and one strike count per fault.
    """

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self._faults = tuple(faults)
        self._strikes = [0] * len(self._faults)
        self._rng = random.Random(seed)

    @property
    def strikes(self) -> tuple[int, ...]:
        """How often each fault has struck, in the order they were given."""
        return tuple(self._strikes)

    def draw(self, method: str, own_faults: Sequence[Fault] = ()) -> Strike:
        """Decide one call of ``method`` ("downstream.v1.PaymentService/Charge").

        ``own_faults`` are the call's own; they are tried before the plan's and not counted.
        """
        if not own_faults and not self._faults:
            return UNHARMED
        struck: list[Fault] = []
        for fault in own_faults:
            if self._hits(fault, method):
                struck.append(fault)
                if not isinstance(fault.kind, Latency):
                    return self._strike(struck)
        for index, fault in enumerate(self._faults):
            spent = 0 < fault.max_strikes <= self._strikes[index]
            if not spent and self._hits(fault, method):
                struck.append(fault)
                self._strikes[index] += 1
                if not isinstance(fault.kind, Latency):
                    break
        return self._strike(struck)

    def _hits(self, fault: Fault, method: str) -> bool:
        if fault.methods and method not in fault.methods:
            return False
        # random() is below 1 always and below 0 never, so both ends of the range are exact.
        return self._rng.random() < fault.probability

    def _strike(self, struck: Sequence[Fault]) -> Strike:
        latency_s = sum(
            f.kind.distribution.sample_s(self._rng) for f in struck if isinstance(f.kind, Latency)
        )
        last = struck[-1].kind if struck else None
        ending = None if isinstance(last, Latency) else last
        return Strike(tuple(f.name for f in struck), latency_s, ending)
