"""What load will be offered, decided before the first call: seed -> timed calls, byte for byte the same.

Everything a call needs is drawn here, so a run differs from its repetition only in what the system
under test makes of it.
"""

import base64
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from protos.downstream.v1 import payment_pb2

PAYMENT_SERVICE = "downstream.v1.PaymentService"
CALLS_MAX = 2_000_000
"""No plan is longer, whatever its profile says."""


class Arrivals(Enum):
    """How calls are spread within a step."""

    POISSON = "poisson"
    """Independent callers: exponential gaps."""
    CONSTANT = "constant"
    """A metronome: the same gap every time."""


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of constant mean rate."""

    rate_per_s: float
    duration_s: float

    def __post_init__(self) -> None:
        if not (self.rate_per_s > 0 and self.duration_s > 0):
            raise ValueError(f"a step needs a rate and a duration above 0, not {self}")


@dataclass(frozen=True, slots=True)
class Profile:
    """Steps one after another; at most ``calls_max`` calls in all."""

    steps: tuple[Step, ...]
    arrivals: Arrivals = Arrivals.POISSON
    calls_max: int = CALLS_MAX

    @property
    def duration_s(self) -> float:
        """How long the whole profile takes."""
        return sum(step.duration_s for step in self.steps)


class Keys(Enum):
    """Which calls carry an ``idempotency-key``."""

    NONE = "none"
    FRESH = "fresh"
    """Each operation has its own."""


RequestMaker = Callable[[random.Random, str], bytes]


@dataclass(frozen=True, slots=True)
class CallKind:
    """A method and how its requests are made from the generator and the operation's name."""

    method: str
    """``package.Service/Method``."""
    make_request: RequestMaker
    keys: Keys = Keys.NONE
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One call before it is made."""

    id: int
    at_s: float
    """Since the plan's beginning."""
    method: str
    operation: str
    request: bytes
    key: str | None
    traced: bool

    def line(self) -> str:
        """It as one JSON line, to compare plans by."""
        request = base64.b64encode(self.request).decode()
        return json.dumps(
            [self.id, round(self.at_s, 9), self.method, self.operation, request, self.key, self.traced],
            separators=(",", ":"),
        )


def charge_request(rng: random.Random, operation: str) -> bytes:
    """A `ChargeRequest` of a drawn amount; the note names the operation, so that the ledger can tell."""
    request = payment_pb2.ChargeRequest(
        account=f"account-{rng.randrange(100)}",
        amount_minor=rng.randrange(100, 100_000),
        currency="EUR",
        note=operation,
    )
    return request.SerializeToString(deterministic=True)


def list_request(rng: random.Random, operation: str) -> bytes:  # noqa: ARG001 (a read has no operation to name)
    """A `ListChargesRequest` for the newest few of a drawn account."""
    request = payment_pb2.ListChargesRequest(page_size=5, account=f"account-{rng.randrange(100)}")
    return request.SerializeToString(deterministic=True)


CHARGE = CallKind(f"{PAYMENT_SERVICE}/Charge", charge_request)
CHARGE_KEYED = CallKind(f"{PAYMENT_SERVICE}/Charge", charge_request, keys=Keys.FRESH)
LIST = CallKind(f"{PAYMENT_SERVICE}/ListCharges", list_request)


def make_plan(
    name: str, profile: Profile, mix: tuple[CallKind, ...], seed: int, *, traced_share: float = 1.0
) -> Iterator[PlannedCall]:
    """The calls in the order of their times.

    ``name`` enters the operations and the draws, so that two plans of one run differ. Arrival times and
    contents come from two generators, so that changing the mix leaves the times alone.
    """
    times_rng = random.Random(f"{seed}/{name}/arrivals")
    rng = random.Random(f"{seed}/{name}/calls")
    weights = [kind.weight for kind in mix]
    times = islice(_arrival_times(profile, times_rng), min(profile.calls_max, CALLS_MAX))
    for number, at_s in enumerate(times):
        kind = rng.choices(mix, weights)[0]
        operation = f"{name}-{number:06d}"
        yield PlannedCall(
            id=number,
            at_s=at_s,
            method=kind.method,
            operation=operation,
            request=kind.make_request(rng, operation),
            key=f"{seed}-{operation}" if kind.keys is Keys.FRESH else None,
            traced=rng.random() < traced_share,
        )


def plan_lines(plan: Iterable[PlannedCall]) -> Iterator[str]:
    """The plan as text."""
    return (call.line() for call in plan)


def _arrival_times(profile: Profile, rng: random.Random) -> Iterator[float]:
    begin_s = 0.0
    for step in profile.steps:
        end_s = begin_s + step.duration_s
        at_s = begin_s
        while True:
            match profile.arrivals:
                case Arrivals.POISSON:
                    at_s += rng.expovariate(step.rate_per_s)
                case Arrivals.CONSTANT:
                    at_s += 1.0 / step.rate_per_s
            if at_s > end_s + 1e-9:
                break
            yield at_s
        begin_s = end_s
