"""A dead letter tried once more: its state and its new job in one transaction."""

from relay_service.core.idempotency import RecordState, Scope
from relay_service.core.job import Replay
from relay_service.stores import jobs, keys
from relay_service.stores.interface import KeyTakenError, Submission
from relay_service.stores.queue import work_topic
from relay_service.stores.rows import LETTER_COLUMNS, letter_of, replays_text
from relay_service.stores.statements import FOR_UPDATE, LockOrder, Notify, Run, Transaction


def replay(now: float, letter_id: str, begun: Replay, job: Submission) -> Transaction[bool]:
    """REPLAYING with its job; a second time with the same job is no error."""
    if job.work.order_key:
        yield LockOrder(job.work.tenant, job.work.order_key)
    rows = yield Run(f"SELECT {LETTER_COLUMNS} FROM letters WHERE id = $1 {FOR_UPDATE}", (letter_id,))
    if not rows:
        return False
    letter = letter_of(rows[0])
    if letter.state.value == "replaying" and letter.replays and letter.replays[-1].job_id == job.id:
        return True
    if letter.state.value != "open":
        return False
    yield Run(
        "UPDATE letters SET state = 'replaying', replays = $2 WHERE id = $1",
        (letter_id, replays_text((*letter.replays, begun))),
    )
    yield from _take_key(now, letter_id, job)
    if (yield from jobs.insert(now, job, job.work, letter_id)) is None:
        return False
    yield Notify(work_topic())
    return True


def _take_key(now: float, letter_id: str, job: Submission) -> Transaction[None]:
    """The letter's key becomes the job's; a new key must be free."""
    scope = Scope(job.work.tenant, job.work.method, job.work.key)
    to = (RecordState.QUEUED, job.id)
    if (yield from keys.pass_on(now, scope, (RecordState.DEAD_LETTERED, letter_id), to)):
        return
    in_the_way = yield from keys.queue(now, scope, job.work.fingerprint, job.id)
    if in_the_way is not None:
        raise KeyTakenError(job.id, in_the_way)
