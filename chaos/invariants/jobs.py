"""I3, I6 and I7 for durable jobs: what was accepted is never lost, gets done, and adds up.

Three books are held against each other: what callers were told (the history), what the relay says of its
jobs in the end, and the ledger, the only witness of effects. A job's key is the name of its operation.
"""

from collections import Counter
from collections.abc import Collection, Iterator

from chaos.findings import Finding, Offender, judge, offender
from chaos.history import CallRecord, JobRecord, LedgerEntry, Outcome
from chaos.plan import SUBMIT_METHOD
from chaos.selection import chosen

COMPLETED = "completed"
ENDS = frozenset({COMPLETED, "cancelled", "dead"})
"""How a job can end; a dead one is a dead letter, which is kept."""


def accepted_jobs_are_kept(
    calls: Collection[CallRecord], jobs: Collection[JobRecord], ledger: Collection[LedgerEntry]
) -> Finding:
    """I3: each submission answered OK is in the relay's books; what is completed there is in the ledger."""
    by_operation = {job.operation: job for job in jobs}
    charged = {entry.operation for entry in ledger}
    accepted = chosen(calls, lambda call: call.method == SUBMIT_METHOD and call.ok)

    def lost() -> Iterator[Offender]:
        for call in accepted:
            job = by_operation.get(call.operation)
            if job is None:
                yield offender(call, f"{call.operation} was accepted, and the relay has no such job")
            elif job.state == COMPLETED and call.operation not in charged:
                yield offender(call, f"{call.operation} (job {job.id}) is completed and not in the ledger")

    return judge(
        "I3", "every accepted job is kept, and completed ones are in the ledger", len(accepted), lost()
    )


def jobs_get_done(
    calls: Collection[CallRecord], jobs: Collection[JobRecord], within_s: float, minimum: int = 1
) -> Finding:
    """I6: ``within_s`` after the last answer every job has ended."""
    made_by = _by_operation(calls)
    waiting = (
        _of(job, made_by, f"{job.operation} (job {job.id}) is {job.state} after {job.runs} runs")
        for job in jobs
        if job.state not in ENDS
    )
    return judge(
        "I6", f"every job ends within {within_s:g} s of the last answer", len(jobs), waiting, minimum
    )


def jobs_add_up(
    calls: Collection[CallRecord], jobs: Collection[JobRecord], ledger: Collection[LedgerEntry]
) -> Finding:
    """I7: each job was asked for, once; what was definitely refused is neither a job nor in the ledger."""
    made_by = _by_operation(calls)
    charged = {entry.operation for entry in ledger}
    listed = Counter(job.operation for job in jobs)
    believed = {
        call.operation for call in _submissions(calls) if call.outcome in (Outcome.EXECUTED, Outcome.UNKNOWN)
    }

    def wrong() -> Iterator[Offender]:
        for job in jobs:
            if job.operation not in made_by:
                yield _of(job, made_by, f"job {job.id} ({job.operation}) was never asked for")
            elif listed[job.operation] > 1:
                yield _of(job, made_by, f"{job.operation} is {listed[job.operation]} jobs")
        for operation, call in made_by.items():
            if operation not in believed and (operation in listed or operation in charged):
                where = "a job" if operation in listed else "in the ledger"
                yield offender(call, f"{operation} was refused with {call.code} and is {where}")

    return judge("I7", "jobs = those accepted, each once, and none that was refused", len(jobs), wrong())


def _submissions(calls: Collection[CallRecord]) -> Iterator[CallRecord]:
    return (call for call in calls if call.method == SUBMIT_METHOD)


def _by_operation(calls: Collection[CallRecord]) -> dict[str, CallRecord]:
    return {call.operation: call for call in _submissions(calls)}


def _of(job: JobRecord, made_by: dict[str, CallRecord], what: str) -> Offender:
    call = made_by.get(job.operation)
    return Offender(None, job.operation, "", what) if call is None else offender(call, what)
