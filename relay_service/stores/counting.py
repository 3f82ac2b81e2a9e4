"""How many jobs and letters there are and how long they have waited. Engines' triggers keep the counts,
here they are read; ages are looked up in indexes, so that this costs the same with a million jobs."""

from relay_service.core.job import Cause, JobState, LetterState
from relay_service.stores.interface import NEXT_JOBS, UNSETTLED, Backlog, Counts
from relay_service.stores.statements import Run, Transaction, placeholders


def counts(now: float) -> Transaction[Counts]:
    """Every state is named, also those nothing is in."""
    jobs = yield Run("SELECT state, sum(n) FROM job_counts GROUP BY state")
    letters = yield Run("SELECT state, sum(n) FROM letter_counts GROUP BY state")
    return Counts(
        jobs=dict.fromkeys(JobState, 0) | {JobState(state): int(n) for state, n in jobs},
        letters=dict.fromkeys(LetterState, 0) | {LetterState(state): int(n) for state, n in letters},
        oldest_ready_s=(yield from _oldest_ready_s(now)),
        unsettled=(yield from _unsettled(now)),
    )


def _oldest_ready_s(now: float) -> Transaction[float]:
    """Those next in line, and the first of those whose delay is over and that nobody has let pass yet."""
    rows = yield Run(
        "SELECT min(at) FROM (SELECT ready_at AS at FROM"
        " (SELECT ready_at FROM jobs WHERE gate = 0 ORDER BY rank, seq LIMIT $1) AS next"
        " UNION ALL SELECT min(ready_at) AS at FROM jobs WHERE gate = 1 AND ready_at <= $2) AS waiting",
        (NEXT_JOBS, now),
    )
    at = rows[0][0]
    return 0.0 if at is None else max(0.0, now - at)


def _unsettled(now: float) -> Transaction[dict[Cause, Backlog]]:
    states = sorted(state.value for state in UNSETTLED)
    known = placeholders(len(states))
    counted = yield Run(
        f"SELECT cause, sum(n) FROM letter_counts WHERE state IN ({known}) GROUP BY cause", tuple(states)
    )
    oldest = yield Run(
        "SELECT cause, min((SELECT min(died_at) FROM letters WHERE letters.method = seen.method"
        " AND letters.cause = seen.cause AND letters.code = seen.code AND letters.state = seen.state))"
        " FROM (SELECT DISTINCT method, cause, code, state FROM letter_counts"
        f" WHERE state IN ({known}) AND n <> 0) AS seen GROUP BY cause",
        tuple(states),
    )
    died_at = dict(oldest)
    return {
        Cause(cause): Backlog(int(n), max(0.0, now - (died_at.get(cause) or now)))
        for cause, n in counted
        if n > 0
    }
