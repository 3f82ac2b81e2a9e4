"""How many jobs and letters are in each state: the engines' triggers keep the counts, here they are read."""

from relay_service.core.job import JobState, LetterState
from relay_service.stores.interface import Counts
from relay_service.stores.statements import Run, Transaction


def counts(_now: float) -> Transaction[Counts]:
    """Every state is named, also those nothing is in."""
    jobs = yield Run("SELECT state, sum(n) FROM job_counts GROUP BY state")
    letters = yield Run("SELECT state, sum(n) FROM letter_counts GROUP BY state")
    return Counts(
        jobs=dict.fromkeys(JobState, 0) | {JobState(state): int(n) for state, n in jobs},
        letters=dict.fromkeys(LetterState, 0) | {LetterState(state): int(n) for state, n in letters},
    )
