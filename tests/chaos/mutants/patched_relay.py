"""``python patched_relay.py MUTANT serve ...``: the relay with one protection taken out of its code.

A process of its own, for the lab's runs only; nothing of it is in the relay. Each patch is as small as the
bug it stands for.
"""

import itertools
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Of this checkout, whichever is installed: a program has its own folder first on the path.
sys.path.insert(0, str(Path(__file__).parents[3]))

from relay_service import contract
from relay_service.cli import main
from relay_service.core.admission import Admission
from relay_service.core.criticality import Criticality
from relay_service.core.job import Job, JobState
from relay_service.core.verdict import Verdict
from relay_service.forwarding import ForwardedCall
from relay_service.jobs.submitting import Accepted, Submitter
from relay_service.telemetry.metrics import CallMetrics
from relay_service.telemetry.observer import CallTelemetry
from relay_service.telemetry.tracing import CallSpans
from relay_service.unary import UnaryCall
from relay_service.upstream import Upstream

start = Upstream.start


def works_for_nobody() -> None:
    """Deadlines are neither kept nor passed on, and a caller's departure changes nothing."""

    def start_without_deadline(self, method, metadata, _timeout_s, sink):
        return start(self, method, metadata, None, sink)

    Upstream.start = start_without_deadline
    for kind in (ForwardedCall, UnaryCall):
        kind.deadline_passed = lambda _self: None
        kind.on_cancelled = lambda _self: None
    Admission.grant = _grant_whatever(Admission.grant)


def _grant_whatever(grant):
    """Also what has expired in the queue gets its worker."""

    def granted(self, now):
        return grant(self, now - 3600.0)

    return granted


def new_key_each_attempt() -> None:
    """Every attempt has an idempotency key of its own."""

    def start_with_new_key(self, method, metadata, timeout_s, sink):
        fresh = [
            (name, secrets.token_hex(32).encode()) if name == contract.IDEMPOTENCY_KEY else (name, value)
            for name, value in metadata
        ]
        return start(self, method, fresh, timeout_s, sink)

    Upstream.start = start_with_new_key


def denies_effects() -> None:
    """Whatever failed is said not to have been executed."""
    told = contract.trailers_of

    def denying(verdict, method, upstream_trailers):
        return [
            (name, b"not-executed" if name == b"relay-outcome" and value == b"unknown" else value)
            for name, value in told(verdict, method, upstream_trailers)
        ]

    contract.trailers_of = denying


def classes_reversed() -> None:
    """SHEDDABLE calls go before CRITICAL ones."""
    meant = contract.criticality
    swapped = {
        Criticality.CRITICAL: Criticality.SHEDDABLE,
        Criticality.SHEDDABLE: Criticality.CRITICAL,
    }

    def reversed_class(metadata):
        named = meant(metadata)
        return swapped.get(named, named)

    contract.criticality = reversed_class


def no_pushback() -> None:
    """A refusal does not say when to return."""
    Admission.pushback_s = lambda _self, _now, _rng: None


def counts_twice() -> None:
    """A call that ended is counted twice."""
    finished = CallMetrics.finished

    def twice(self, method, counters, verdict: Verdict, latency_s):
        finished(self, method, counters, verdict, latency_s)
        finished(self, method, counters, verdict, latency_s)

    CallMetrics.finished = twice


def forgets_the_end() -> None:
    """One in ten calls that ended still counts as in flight."""
    finished = CallMetrics.finished
    ends = itertools.count()

    def nine_in_ten(self, method, counters, verdict: Verdict, latency_s):
        if next(ends) % 10:
            finished(self, method, counters, verdict, latency_s)

    CallMetrics.finished = nine_in_ten


def breaks_traces() -> None:
    """Attempts begin a trace of their own."""
    started = CallTelemetry.attempt_started

    def elsewhere(self, number, upstream, now):
        lost = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01".encode()
        return [
            (name, lost if name == b"traceparent" else value)
            for name, value in started(self, number, upstream, now)
        ]

    CallTelemetry.attempt_started = elsewhere


def forgets_jobs() -> None:
    """One in five jobs is accepted and never stored."""
    commit = Submitter._commit
    numbers = itertools.count()

    async def four_in_five(self, submission):
        if next(numbers) % 5:
            return await commit(self, submission)
        now = time.time()
        work, expire = submission.work, now + submission.ttl_s
        return Accepted(Job(submission.id, work, JobState.PENDING, now, now, expire), is_new=True)

    Submitter._commit = four_in_five


def no_span_afterwards() -> None:
    """Failures of unsampled traces leave no span."""
    CallSpans.recorded_afterwards = lambda _self, _verdict, _now: None


def never_reconnects() -> None:
    """A connection that was lost is not made again."""
    wanted = Upstream._dials_wanted

    def only_once(self):
        return wanted(self) if self.counters.connects == 0 else 0

    Upstream._dials_wanted = only_once


PATCHES: dict[str, Callable[[], None]] = {
    patch.__name__.replace("_", "-"): patch
    for patch in (
        works_for_nobody,
        new_key_each_attempt,
        denies_effects,
        classes_reversed,
        no_pushback,
        counts_twice,
        forgets_the_end,
        breaks_traces,
        forgets_jobs,
        no_span_afterwards,
        never_reconnects,
    )
}

if __name__ == "__main__":
    PATCHES[sys.argv.pop(1)]()
    main()
