"""Accepting jobs: what a submission must be, and one commit before anybody is told that it was accepted."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from relay_service import contract
from relay_service.core.idempotency import RecordState
from relay_service.core.job import Job, Work
from relay_service.core.job_policy import JobPolicy
from relay_service.core.names import is_method_name
from relay_service.core.policy import RelayPolicy
from relay_service.core.reason import Reason
from relay_service.fault_points import FaultPoint
from relay_service.jobs.carrier import HINTS
from relay_service.jobs.counters import JobCounters
from relay_service.jobs.fullness import Fullness
from relay_service.jobs.sending import Message, Sender
from relay_service.methods import MethodCatalog
from relay_service.stores.interface import (
    JobStore,
    KeyTakenError,
    StoreUnavailableError,
    Submission,
)

PRIORITY_MAX = 100
ORDER_KEY_CHARS_MAX = 255
METADATA_BYTES_MAX = 8 * 1024

_METADATA_NAME = re.compile(r"[0-9a-z_.-]{1,255}")
_OURS = frozenset(name.decode() for name in contract.TOLD_TO_OWN_SERVICES)
_RESERVED = _OURS | HINTS | {"te", "content-type"}
_RESERVED_PREFIXES = ("grpc-", ":")
_REASONS = {
    RecordState.IN_PROGRESS: Reason.IDEMPOTENCY_IN_PROGRESS,
    RecordState.DEAD_LETTERED: Reason.IDEMPOTENCY_KEY_DEAD_LETTERED,
}
"""Why a key that a call took cannot be a job's; in its other states it had its effect or may have had."""


class SubmissionRefusedError(Exception):
    """Nothing was accepted: ``reason`` says why, ``reference`` names the job or dead letter in the way."""

    def __init__(self, reason: Reason, message: str, reference: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.reference = reference


@dataclass(frozen=True, slots=True)
class Order:
    """A job as somebody asks for it."""

    work: Work
    """Without its fingerprint, which is made here."""
    delay_s: float = 0.0
    ttl_s: float | None = None
    """None takes the policy's."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that is in the store."""

    job: Job
    is_new: bool
    """False when its key was submitted before: this is that first job."""


class Submitter:
    """Checks an order and has the store commit it."""

    def __init__(
        self,
        store: JobStore,
        in_force: Callable[[], RelayPolicy],
        catalog: MethodCatalog,
        *,
        jobs: JobPolicy,
        fullness: Fullness,
        counters: JobCounters,
        new_id: Callable[[], str],
        fault_point: FaultPoint,
        sender: Sender,
    ) -> None:
        self._store = store
        self._in_force = in_force
        self._catalog = catalog
        self._jobs = jobs
        self._fullness = fullness
        self._counters = counters
        self._new_id = new_id
        self._fault_point = fault_point
        self._sender = sender

    async def submit(self, order: Order) -> Accepted:
        """Accept a job. When this returns it is committed, as durably as the store's word is.

        Submissions that come together share commits in the store. Raises `SubmissionRefusedError`.
        """
        work = order.work
        sending = self._sender.begin(Message(work.method, len(work.request), within=work.traceparent))
        try:
            accepted = await self._accept(replace(order, work=replace(work, traceparent=sending.traceparent)))
        except SubmissionRefusedError as error:
            sending.refused(error.reason.name)
            raise
        sending.sent(accepted.job.id, existed=not accepted.is_new)
        return accepted

    async def _accept(self, order: Order) -> Accepted:
        self.check(order.work)
        self._check_times(order)
        if (full := self._fullness.refusal()) is not None:
            raise SubmissionRefusedError(full, full.meaning)
        submission = self._submission(order)
        self._fault_point("job-submitting")
        accepted = await self._commit(submission)
        self._fault_point("job-submitted")
        if accepted.is_new:
            self._counters.submitted += 1
            self._fullness.accepted_since += 1
            return accepted
        self._counters.duplicates += 1
        if accepted.job.work.fingerprint != submission.work.fingerprint:
            raise _key_refused(Reason.IDEMPOTENCY_KEY_REUSED, submission, accepted.job.id)
        return accepted

    def check(self, work: Work) -> None:
        """Whether work could be run at all. Raises `SubmissionRefusedError` (JOB_INVALID, NO_ROUTE, …)."""
        if not is_method_name(work.method):
            raise _invalid(f"method must be package.Service/Method, not {work.method[:200]!r}")
        upstream = self._in_force().route(work.method)
        if upstream is None:
            raise SubmissionRefusedError(Reason.NO_ROUTE, f"no route leads to {work.method}")
        facts = self._catalog.facts(upstream, work.method)
        if facts is not None and not facts.unary:
            raise _invalid(f"{work.method} is a streaming method; a job is one message each way")
        bytes_max = self._in_force().method_policy(work.method).max_message_bytes
        if len(work.request) > bytes_max:
            raise SubmissionRefusedError(
                Reason.MESSAGE_TOO_LARGE,
                f"the request has {len(work.request)} bytes, {bytes_max} are allowed",
            )
        if work.key and not contract.is_key(work.key):
            raise SubmissionRefusedError(
                Reason.IDEMPOTENCY_KEY_INVALID, Reason.IDEMPOTENCY_KEY_INVALID.meaning
            )
        if not -PRIORITY_MAX <= work.priority <= PRIORITY_MAX:
            raise _invalid(f"priority must be from -{PRIORITY_MAX} to {PRIORITY_MAX}, not {work.priority}")
        if len(work.order_key) > ORDER_KEY_CHARS_MAX:
            raise _invalid(f"order_key has more than {ORDER_KEY_CHARS_MAX} characters")
        _check_metadata(work.metadata)

    def _check_times(self, order: Order) -> None:
        ttl_s = self._ttl_s(order)
        if not 0 < ttl_s <= self._jobs.ttl_s:
            raise _invalid(f"time_to_live must be above 0 and at most {self._jobs.ttl_s:g} s, not {ttl_s:g}")
        if not 0 <= order.delay_s < ttl_s:
            raise _invalid(f"the job would begin after {order.delay_s:g} s and live for {ttl_s:g}")

    def _ttl_s(self, order: Order) -> float:
        return self._jobs.ttl_s if order.ttl_s is None else order.ttl_s

    def _submission(self, order: Order) -> Submission:
        work = replace(order.work, fingerprint=hashlib.sha256(order.work.request).digest())
        return Submission(self._new_id(), work, order.delay_s, self._ttl_s(order))

    async def _commit(self, submission: Submission) -> Accepted:
        try:
            ((job, is_new),) = await self._store.submit([submission])
        except KeyTakenError as error:
            record = error.record
            reason = _REASONS.get(record.state, Reason.IDEMPOTENCY_KEY_EXPIRED)
            if record.fingerprint != submission.work.fingerprint:
                reason = Reason.IDEMPOTENCY_KEY_REUSED
            raise _key_refused(reason, submission, record.reference) from error
        except StoreUnavailableError as error:
            raise SubmissionRefusedError(Reason.STORE_UNAVAILABLE, str(error)) from error
        return Accepted(job, is_new)


def _key_refused(reason: Reason, submission: Submission, reference: str) -> SubmissionRefusedError:
    key = submission.work.key.decode("ascii", "replace")
    return SubmissionRefusedError(reason, f"key {key!r}: {reason.meaning}", reference)


def _check_metadata(metadata: Sequence[tuple[str, bytes]]) -> None:
    for name, value in metadata:
        if name in _RESERVED or name.startswith(_RESERVED_PREFIXES) or not _METADATA_NAME.fullmatch(name):
            raise _invalid(f"metadata must not name {name[:200]!r}")
        if not all(0x20 <= byte <= 0x7E for byte in value):
            raise _invalid(f"metadata {name!r} must be printable ASCII")
    if sum(len(name) + len(value) for name, value in metadata) > METADATA_BYTES_MAX:
        raise _invalid(f"metadata has more than {METADATA_BYTES_MAX} bytes")


def _invalid(message: str) -> SubmissionRefusedError:
    return SubmissionRefusedError(Reason.JOB_INVALID, message)
