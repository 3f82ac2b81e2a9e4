"""What the operator decided about durable jobs and their batches, as frozen values."""

from dataclasses import dataclass
from random import Random

from relay_service.core.jitter import Jitter

ATTEMPTS_MAX = 1_000

DAY_S = 86_400.0


def in_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g}, not {value}")


@dataclass(frozen=True, slots=True)
class JobRetryPolicy:
    """How often a job is run and how far apart: long waits, because what fails it is an outage."""

    max_attempts: int = 8
    """Runs, the first included; each is a call with the retries of its method's policy."""
    initial_backoff_s: float = 30.0
    max_backoff_s: float = 240.0
    backoff_multiplier: float = 2.0
    jitter: Jitter = Jitter.EQUAL

    def __post_init__(self) -> None:
        in_range("max_attempts", self.max_attempts, 1, ATTEMPTS_MAX)
        in_range("initial_backoff_s", self.initial_backoff_s, 0.001, 365 * DAY_S)
        in_range("max_backoff_s", self.max_backoff_s, self.initial_backoff_s, 365 * DAY_S)
        in_range("backoff_multiplier", self.backoff_multiplier, 1, 1000)
        if self.jitter is Jitter.DECORRELATED:
            raise ValueError("jitter of jobs must be none, full or equal: a stored job keeps no last wait")

    def backoff_s(self, attempts: int, rng: Random) -> float:
        """The wait after so many runs (from 1)."""
        ceiling_s = min(
            self.max_backoff_s,
            self.initial_backoff_s * self.backoff_multiplier ** min(max(attempts, 1) - 1, 64),
        )
        match self.jitter:
            case Jitter.FULL:
                return rng.uniform(0.0, ceiling_s)
            case Jitter.EQUAL:
                return ceiling_s / 2 + rng.uniform(0.0, ceiling_s / 2)
            case _:
                return ceiling_s


@dataclass(frozen=True, slots=True)
class BatchItems:
    """How jobs become the items of a batch request, by protobuf field number."""

    field: int = 1
    """The repeated field of the batch request."""
    request_field: int | None = None
    """The item's field that holds the request; None: the item is the request."""
    key_field: int | None = None
    """The item's field for its derived idempotency key (a string); None: the batch method knows no keys."""


@dataclass(frozen=True, slots=True)
class BatchResults:
    """How a batch response is taken apart again, by protobuf field number."""

    field: int = 1
    """The repeated field of the batch response: one result per item, in the items' order."""
    code_field: int | None = None
    """The result's status code (a number); None: every result is a success."""
    message_field: int | None = None
    answer_field: int | None = None
    """The result's field that holds the answer; None: the result is the answer."""
    answer_as: int | None = None
    """The field of the job's own response that the answer is put in; None: it is the response."""


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Jobs of one method are joined into calls of another."""

    method: str
    """``package.Service/Method`` of the batch method."""
    max_size: int = 100
    max_delay_s: float = 0.05
    """How long the first job waits for others."""
    items: BatchItems = BatchItems()
    results: BatchResults = BatchResults()

    def __post_init__(self) -> None:
        in_range("batch.max_size", self.max_size, 2, 10_000)
        in_range("batch.max_delay_s", self.max_delay_s, 0, 60)

    def share(self, failures: int) -> int:
        """How large a batch may be for a job that failed so often: each failure halves it, so that one that
        breaks its batches ends up alone and the others get through."""
        return max(1, self.max_size >> failures)


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """How durable jobs are accepted and run."""

    workers: int = 16
    """Jobs (or batches) of this relay under way at once; their calls pass the admission like any other."""
    lease_s: float = 30.0
    """A job whose worker said nothing for so long is given to another."""
    progress_s: float = 300.0
    """The longest one run may take, however alive its worker is."""
    ttl_s: float = 7 * DAY_S
    """What is not done by then becomes a dead letter; a submission may ask for less."""
    keep_s: float = 1 * DAY_S
    """How long jobs that ended can be looked up."""
    max_unfinished: int = 1_000_000
    """More are not accepted."""
    poison_after: int = 3
    """A job that lost its worker so often becomes a dead letter."""
    retry: JobRetryPolicy = JobRetryPolicy()

    def __post_init__(self) -> None:
        in_range("jobs.workers", self.workers, 1, 10_000)
        in_range("jobs.lease_s", self.lease_s, 0.1, 3600)
        in_range("jobs.progress_s", self.progress_s, 0.1, DAY_S)
        in_range("jobs.ttl_s", self.ttl_s, 1, 3650 * DAY_S)
        in_range("jobs.keep_s", self.keep_s, 0, 3650 * DAY_S)
        in_range("jobs.max_unfinished", self.max_unfinished, 1, 1_000_000_000)
        in_range("jobs.poison_after", self.poison_after, 1, ATTEMPTS_MAX)

    @property
    def heartbeat_s(self) -> float:
        """Three in every lease, so that one may be lost."""
        return self.lease_s / 3
