"""Why the relay itself ended a call: every refusal and every failure of its own has one of these."""

from enum import Enum

from relay_service.core.status import Code


class Reason(Enum):
    """The ``reason`` of the ErrorInfo (domain ``resilient-relay``) in the caller's trailers.

    Each carries the status code it is told with; ``None`` means the last attempt's own status.
    """

    QUEUE_FULL = Code.RESOURCE_EXHAUSTED, "all workers are busy and the queue is full"
    SHED_BY_CRITICALITY = (
        Code.RESOURCE_EXHAUSTED,
        "there is no room in the queue for a call of this class",
    )
    FAIR_SHARE = (
        Code.RESOURCE_EXHAUSTED,
        "the queue is full and more of the calls in it are this client's than of the one that took its place",
    )
    CLIENT_QUOTA = Code.RESOURCE_EXHAUSTED, "the client has used up its quota of calls"
    QUEUE_STANDING = (
        Code.RESOURCE_EXHAUSTED,
        "the queue has not emptied for too long, and this call is one too many for it",
    )
    CONCURRENCY_LIMIT = (
        Code.RESOURCE_EXHAUSTED,
        "as many attempts are under way as the adaptive limit allows, and there is no queue",
    )
    DEADLINE_INFEASIBLE = (
        Code.RESOURCE_EXHAUSTED,
        "the call could not be answered in the time that its deadline leaves",
    )
    STREAM_LIMIT = Code.RESOURCE_EXHAUSTED, "as many streaming calls are open as the relay allows"
    BREAKER_OPEN = Code.UNAVAILABLE, "the circuit breaker is open: attempts at the upstream keep failing"
    ADAPTIVE_THROTTLE = (
        Code.RESOURCE_EXHAUSTED,
        "the upstream refuses most of what it is asked, so it is asked less",
    )
    DEADLINE_PASSED = Code.DEADLINE_EXCEEDED, "the deadline passed before an answer came"
    RETRIES_EXHAUSTED = None, "no attempt succeeded and no further one is allowed"
    BUDGET_EXHAUSTED = None, "the retry budget is used up"
    OUTCOME_UNKNOWN = Code.UNKNOWN, "an attempt may have been executed and its answer never came"
    IDEMPOTENCY_KEY_MISSING = Code.INVALID_ARGUMENT, "the policy requires an idempotency-key for this method"
    IDEMPOTENCY_KEY_INVALID = (
        Code.INVALID_ARGUMENT,
        "an idempotency-key is 1 to 255 printable ASCII characters, given once, on a unary method",
    )
    IDEMPOTENCY_IN_PROGRESS = Code.ABORTED, "a call under the same idempotency-key is still under way"
    IDEMPOTENCY_KEY_REUSED = Code.INVALID_ARGUMENT, "the idempotency-key was used with another request"
    IDEMPOTENCY_KEY_EXPIRED = (
        Code.FAILED_PRECONDITION,
        "the idempotency-key had an answer, and the answer is no longer kept",
    )
    IDEMPOTENCY_KEY_DEAD_LETTERED = (
        Code.FAILED_PRECONDITION,
        "the idempotency-key belongs to a dead letter that is still open",
    )
    STORE_UNAVAILABLE = Code.UNAVAILABLE, "the store that keeps the keys cannot be reached"
    MESSAGE_TOO_LARGE = Code.RESOURCE_EXHAUSTED, "the message is larger than the relay accepts"
    MALFORMED_REQUEST = Code.INTERNAL, "the request is not well-formed gRPC"
    ENVELOPE_INVALID = Code.INVALID_ARGUMENT, "the RelayRequest does not hold a unary call that can be made"
    HOP_LIMIT = (
        Code.FAILED_PRECONDITION,
        "the call has passed through too many relays: the routes form a loop",
    )
    JOB_INVALID = Code.INVALID_ARGUMENT, "the submission does not hold a job that can be run"
    JOBS_FULL = Code.RESOURCE_EXHAUSTED, "as many jobs are unfinished as the relay keeps"
    DEAD_LETTERS_FULL = (
        Code.RESOURCE_EXHAUSTED,
        "as many dead letters are unsettled as the relay keeps: discard or replay some",
    )
    NO_ROUTE = Code.UNIMPLEMENTED, "no route leads to this method"
    DRAINING = Code.UNAVAILABLE, "the relay is shutting down"

    __hash__ = object.__hash__  # an enumeration's own is written in Python, and refusals are counted by these

    def __init__(self, code: Code | None, meaning: str) -> None:
        self.code = code
        self.meaning = meaning
