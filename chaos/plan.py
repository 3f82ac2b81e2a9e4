"""What load will be offered, decided before the first call: seed -> timed calls, byte for byte the same.

Everything a call needs is drawn here, so a run differs from its repetition only in what the system
under test makes of it.
"""

import base64
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from protos.downstream.v1 import payment_pb2
from protos.relay.v1 import job_pb2

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


class Style(Enum):
    """How messages go to and fro in a call."""

    UNARY = "unary"
    SERVER_STREAM = "server-stream"
    BIDI = "bidi"


RequestMaker = Callable[[random.Random, str], bytes]


@dataclass(frozen=True, slots=True)
class CallKind:
    """A method and how its requests are made from the generator and the operation's name."""

    method: str
    """``package.Service/Method``."""
    make_request: RequestMaker
    keys: Keys = Keys.NONE
    weight: float = 1.0
    style: Style = Style.UNARY
    messages: int = 1
    """A stream's messages: how many answers a sound one has and, for `Style.BIDI`, how many are sent."""
    criticality: str | None = None
    """Sent as ``relay-criticality``."""
    client: str | None = None
    """Sent as ``relay-client-id``."""


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
    style: Style = Style.UNARY
    messages: int = 1
    criticality: str | None = None
    client: str | None = None

    def line(self) -> str:
        """It as one JSON line, to compare plans by."""
        request = base64.b64encode(self.request).decode()
        drawn = [self.id, round(self.at_s, 9), self.method, self.operation, request, self.key, self.traced]
        # Only where they say something, so that plans of calls without them stay as they were.
        if self.style is not Style.UNARY or self.criticality or self.client:
            drawn += [self.style.value, self.messages, self.criticality, self.client]
        return json.dumps(drawn, separators=(",", ":"))


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


def watch_request(messages: int) -> RequestMaker:
    """Makes a `WatchChargesRequest` for so many made-up entries of about 1 kB, as fast as they are read."""
    request = payment_pb2.WatchChargesRequest(max_charges=messages, padding_bytes=1000, synthetic=True)
    body = request.SerializeToString(deterministic=True)
    return lambda _rng, _operation: body


def authorize_request(rng: random.Random, operation: str) -> bytes:
    """An `AuthorizeRequest` of a drawn amount, which charges nothing."""
    charge = payment_pb2.ChargeRequest(
        account=f"account-{rng.randrange(100)}",
        amount_minor=rng.randrange(100, 2_000_000),
        currency="EUR",
        note=operation,
    )
    request = payment_pb2.AuthorizeRequest(request_id=operation, charge=charge)
    return request.SerializeToString(deterministic=True)


def submit_request(rng: random.Random, operation: str) -> bytes:
    """A `SubmitRequest` for a charge of a drawn amount as a durable job; its key is the operation's name."""
    request = job_pb2.SubmitRequest()
    request.work.method = CHARGE_METHOD
    request.work.idempotency_key = operation
    request.work.request.type_url = "type.googleapis.com/downstream.v1.ChargeRequest"
    request.work.request.value = charge_request(rng, operation)
    return request.SerializeToString(deterministic=True)


CHARGE_METHOD = f"{PAYMENT_SERVICE}/Charge"
"""The method whose effect the ledger witnesses."""
CHARGE = CallKind(CHARGE_METHOD, charge_request)
CHARGE_KEYED = CallKind(CHARGE_METHOD, charge_request, keys=Keys.FRESH)
SUBMIT_METHOD = "relay.v1.JobService/Submit"
SUBMIT = CallKind(SUBMIT_METHOD, submit_request)
LIST = CallKind(f"{PAYMENT_SERVICE}/ListCharges", list_request)
WATCH = CallKind(f"{PAYMENT_SERVICE}/WatchCharges", watch_request(20), style=Style.SERVER_STREAM, messages=20)
AUTHORIZE = CallKind(f"{PAYMENT_SERVICE}/Authorize", authorize_request, style=Style.BIDI, messages=5)


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
            style=kind.style,
            messages=kind.messages,
            criticality=kind.criticality,
            client=kind.client,
        )


def plan_lines(plan: Iterable[PlannedCall]) -> Iterator[str]:
    """The plan as text."""
    return (call.line() for call in plan)


def plan_digest(plan: Iterable[PlannedCall]) -> tuple[int, str]:
    """How many calls a plan has, and the SHA-256 of its lines: equal for equal plans, byte for byte."""
    digest, count = hashlib.sha256(), 0
    for count, line in enumerate(plan_lines(plan), start=1):  # noqa: B007 (the last count is the answer)
        digest.update(line.encode() + b"\n")
    return count, digest.hexdigest()


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
